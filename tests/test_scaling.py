"""Results against the size of the network: the table's numbers and the figure's marks."""

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_report import SETTINGS, result

from dsd_lab.report.figures.scaling import scaling, scaling_table
from dsd_lab.report.figures.style import looks_of
from dsd_lab.report.groups import groups_of

FID = "fid/indomain-n9-cfg1-heun25-holdout-ema0.99"


@pytest.fixture
def groups(tmp_path):
    results = []
    for width, weights in ((64, 30), (32, 7)):
        folder = tmp_path / str(width)
        (folder / "final").mkdir(parents=True)
        save_file({"a": np.zeros(weights)}, folder / "final" / "weights.safetensors")
        for name in ("control", "naive"):
            for seed in range(2):
                results.append(result(name, seed, point={"network.width": width}, folder=folder, std=1.0 + seed, metrics={FID: float(weights)}))  # fmt: skip
    return groups_of(results, SETTINGS)


def test_rows_go_by_variant_and_then_by_the_number_of_weights(groups):
    made = scaling_table(groups, dict.fromkeys(("control", "naive"), "#000000"))
    assert [(r[0].text, r[0].detail, r[1].text) for r in made.rows] == [
        ("control", "width=32", "7"),
        ("control", "width=64", "30"),
        ("naive", "width=32", "7"),
        ("naive", "width=64", "30"),
    ]
    fid = made.frame.query("metric == @FID and variant == 'naive'")
    assert dict(zip(fid["parameters"], fid["mean"], strict=True)) == {7: 7.0, 30: 30.0}


def test_the_figure_has_a_mark_a_size_with_bars_from_the_smallest_to_the_largest_seed(groups):
    figure = scaling(groups, looks_of(groups, "control"), SETTINGS)
    std = figure.axes[0]
    line, _, (bars,) = std.containers[0]
    assert line.get_xdata().tolist() == [7, 30] and line.get_ydata().tolist() == [1.5, 1.5]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[1.0, 2.0]] * 2


def test_networks_of_one_size_have_neither(groups):
    one = [g for g in groups if g.point == {"network.width": 32}]
    assert scaling_table(one, {"control": "", "naive": ""}) is None
    assert scaling(one, looks_of(one, "control"), SETTINGS) is None
