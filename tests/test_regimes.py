"""The map over two axes of the grid: paired differences, which cells are marked, and what the spec may ask for."""

from dataclasses import replace

import numpy as np
import pytest
from sweeping import write_spec
from test_report import result

from dsd_lab.errors import BadInput
from dsd_lab.report.figures.regimes import regime_map, regime_table, regimes
from dsd_lab.report.figures.style import looks_of
from dsd_lab.report.groups import groups_of
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.report import ReportSettings

FID = "fid/x-n9"
MAP = {"x": "network.latent_channels", "y": "training.steps"}
SETTINGS = ReportSettings(reference="detached", map=MAP)
NOISE = (0.01, -0.01, 0.02)


def sweep(difference, **axes):
    """FID of `dsd` is that of `detached` plus the difference at (channels, steps), which seeds share but for a little."""
    found = []
    for channels in (4, 16, 64):
        for steps in (10, 20):
            point = dict(zip(MAP.values(), (channels, steps), strict=True)) | axes
            for seed, noise in enumerate(NOISE):
                found.append(result("detached", seed, point=point, metrics={FID: 5.0 + seed}))
                value = 5.0 + seed + difference(channels, steps) + noise
                found.append(result("dsd", seed, point=point, metrics={FID: value}))
    return found


def wins(channels, steps):
    return {4: -1.0, 16: 0.0, 64: 2.0}[channels] if steps == 10 else -3.0


def drawn(results, settings=SETTINGS):
    groups = groups_of(results, settings)
    return groups, regime_map(groups, looks_of(groups, None), settings)


def test_a_cell_is_marked_where_its_paired_interval_excludes_0_and_blue_where_the_variant_is_better():
    groups, figure = drawn(sweep(wins))
    found = regimes(groups, SETTINGS)
    (cells,) = found.panels.values()
    assert {place: found.wins(c) for place, c in cells.items()} == {(4, 10): 1, (16, 10): 0, (64, 10): -1, (4, 20): 1, (16, 20): 1, (64, 20): 1}  # fmt: skip
    panel = figure.axes[0]
    assert panel.get_title() == "dsd" and len(panel.patches) == 5
    picture = panel.images[0]
    assert picture.get_array().tolist() == pytest.approx(np.array([[-1, 0, 2], [-3, -3, -3]]) + np.mean(NOISE))
    red, blue = (picture.cmap(picture.norm(value)) for value in (2.0, -3.0))
    assert red[0] > red[2] and blue[2] > blue[0] and picture.origin == "lower"
    assert [t.get_text() for t in panel.get_yticklabels()] == ["10", "20"]


def test_the_table_has_the_numbers_and_counts_the_cells():
    table = regime_table(groups_of(sweep(wins), SETTINGS), SETTINGS)
    assert [row[1].text for row in table.rows] == ["20", "10"]
    assert [cell.tone for cell in table.rows[1][2:]] == ["good", "", "bad"]
    assert "dsd: better in 4 of 6 cells, worse in 1." in table.note and "would exclude 0 by chance" in table.note
    frame = table.frame.set_index(["network.latent_channels", "training.steps"])
    assert frame.loc[(64, 10), "mean"] == pytest.approx(2 + np.mean(NOISE)) and frame.loc[(64, 10), "shown"] == -1


def test_a_metric_that_is_better_when_higher_turns_the_colours_and_other_axes_have_panels_of_their_own():
    settings = SETTINGS.model_copy(update={"map": SETTINGS.map.model_copy(update={"higher_is_better": True})})
    results = [*sweep(wins, **{"network.width": 32}), *sweep(lambda c, s: 1.0, **{"network.width": 64})]
    groups, figure = drawn(results, settings)
    found = regimes(groups, settings)
    assert list(found.panels) == ["dsd, width=32", "dsd, width=64"]
    assert found.wins(found.panels["dsd, width=32"][64, 10]) == 1
    assert figure.axes[0].images[0].cmap.name == "RdBu"


def test_a_cell_with_a_diverged_seed_says_how_many_are_left():
    results = [replace(r, state="diverged") if (r.variant, r.seed) == ("dsd", 2) and r.point[MAP["x"]] == 64 else r for r in sweep(wins)]  # fmt: skip
    groups, figure = drawn(results)
    texts = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert {place: text.partition("\n")[2] for place, text in texts.items()} == {(x, y): "n 2" if x == 2 else "" for x in range(3) for y in range(2)}  # fmt: skip
    table = regime_table(groups, SETTINGS)
    assert ["n 2" in cell.detail for cell in table.rows[0][2:]] == [False, False, True]


def test_a_map_of_the_std_is_labelled_as_the_logarithm_that_it_shows():
    settings = SETTINGS.model_copy(update={"map": SETTINGS.map.model_copy(update={"by": "latent/std"})})
    results = [replace(result(r.variant, r.seed, point=r.point, std=10.0 if r.variant == "dsd" else 1.0)) for r in sweep(wins)]  # fmt: skip
    groups, figure = drawn(results, settings)
    assert figure.axes[0].images[0].get_array().tolist() == [pytest.approx([1.0] * 3)] * 2
    assert figure.axes[-1].get_ylabel() == "log10 latent std minus detached"
    assert regime_table(groups, settings).note.startswith("log10 latent std: mean difference from detached")


def test_nothing_is_drawn_where_the_spec_asks_for_no_map_or_trials_lack_the_metric():
    plain = ReportSettings(reference="detached")
    assert drawn(sweep(wins), plain)[1] is None and regime_table(groups_of(sweep(wins), plain), plain) is None
    none = [result(v, point=dict.fromkeys(MAP.values(), 1)) for v in ("dsd", "detached")]
    assert drawn(none)[1] is None


def test_a_steps_factor_lengthens_a_variant_at_every_point_and_set_has_the_last_word(tmp_path):
    variants = {"dsd": {}, "staged": {"steps_factor": 1.5, "why": "Cheaper steps."}}
    spec = write_spec(tmp_path, variants, grid={"training.steps": [10, 21]})
    assert [(t.variant, t.point["training.steps"], t.fields.training.steps) for t in load_sweep(spec).trials] == [("dsd", 10, 10), ("dsd", 21, 21), ("staged", 10, 15), ("staged", 21, 32)]  # fmt: skip
    assert {t.fields.training.steps for t in load_sweep(spec, sets=["training.steps=7"]).trials} == {7}
    for wrong in (0, True, -1.5):
        bad = write_spec(tmp_path / "bad", {"dsd": {"steps_factor": wrong}})
        with pytest.raises(BadInput, match=r"variants\.dsd\.steps_factor: .* is no number from 0\.01 to 100"):
            load_sweep(bad)
