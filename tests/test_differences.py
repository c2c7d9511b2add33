"""The figure of paired differences: which rows, which panels, and that marks lie where the numbers are."""

import numpy as np
import pytest
from test_report import result

from dsd_lab.report.figures import differences as figures
from dsd_lab.report.figures import registry, style
from dsd_lab.report.figures.differences import differences
from dsd_lab.report.figures.style import looks_of
from dsd_lab.report.groups import groups_of
from dsd_lab.specs.report import ReportSettings

SETTINGS = ReportSettings()
FID = "fid/indomain-n8"


def drawn(figures, settings=SETTINGS):
    """figures: {variant: [FID of seed 0, 1, ...]}."""
    results = [result(v, seed, metrics={FID: f}) for v, values in figures.items() for seed, f in enumerate(values)]
    groups = groups_of(results, settings)
    return differences(groups, looks_of(groups, "control"), settings)


def marks(axes):
    """Row and place of the large mark of each row."""
    return {round(line.get_ydata()[0]): line.get_xdata()[0] for line in axes.lines if line.get_markersize() == 5 and line.get_marker() not in ("None", ".")}  # fmt: skip


def test_every_variant_is_a_row_and_its_mark_lies_at_the_mean_of_the_paired_differences():
    figure = drawn({"dsd": [1.0, 2.0, 3.0], "control": [2.0, 4.0, 6.0], "naive": [1.5, 2.0, 2.5]})
    capacity, fid = figure.axes
    assert [t.get_text() for t in capacity.get_yticklabels()] == ["control", "naive"]
    assert (capacity.get_title(), fid.get_title()) == ("capacity, bits per token", "in-domain FID")
    assert marks(fid) == pytest.approx({0: 2.0, 1: 0.0}) and figure.get_supxlabel() == "difference from dsd"
    bar = next(line for line in fid.lines if line.get_linestyle() == "-" and list(line.get_ydata()) == [0, 0] and line.get_marker() == "None")  # fmt: skip
    half = 4.302653 / np.sqrt(3)  # Student's t with 2 degrees of freedom, sd 1
    assert bar.get_xdata() == pytest.approx([2 - half, 2 + half], rel=1e-5)


def test_the_reference_is_the_one_that_the_spec_names():
    figure = drawn({"dsd": [1.0, 2.0], "naive": [4.0, 5.0]}, ReportSettings(reference="naive"))
    assert marks(figure.axes[1]) == pytest.approx({0: -3.0})


def test_two_seeds_leave_the_differences_room():
    low, high = drawn({"dsd": [1.0, 2.0], "naive": [2.0, 4.0]}).axes[1].get_xlim()
    assert -1.5 < low < 0 and 2 < high < 3.5


def test_one_seed_has_no_figure_and_a_collapsed_variant_does_not_hide_the_others():
    assert drawn({"dsd": [1.0], "naive": [2.0]}) is None
    axes = drawn({"dsd": [1.0, 1.0], "a": [1.1, 1.2], "b": [0.9, 0.8], "naive": [400.0, 500.0]}).axes[1]
    assert axes.get_xscale() == "symlog"


def test_a_figure_that_leaves_out_rows_or_grid_points_says_so_in_its_caption(monkeypatch, tmp_path):
    """Six rows at three grid points."""
    results = [result(v, seed, point={"network.width": width}, metrics={FID: 1.0 + seed}) for v in ("dsd", "naive", "b") for width in (8, 16, 32) for seed in (0, 1)]  # fmt: skip
    groups = groups_of(results, SETTINGS)
    monkeypatch.setattr(registry, "FIGURES", tuple(f for f in registry.FIGURES if f[0] in ("differences", "verdicts")))
    whole = {drawn.stem: drawn.caption for drawn in registry.draw_all(groups, SETTINGS, tmp_path)}
    assert whole.keys() == {"differences", "verdicts"} and not any("The first" in c for c in whole.values())
    monkeypatch.setattr(figures, "_MAX_ROWS", 5)
    monkeypatch.setattr(style, "MAX_POINTS", 2)
    cut = {drawn.stem: drawn.caption for drawn in registry.draw_all(groups, SETTINGS, tmp_path)}
    assert cut["differences"].endswith("The first 5 of 6 rows of the table.")
    assert cut["verdicts"].endswith("The first 2 of 3 grid points.")
