"""Variants at their own best value of an axis: who chooses, and what is shown."""

import math

import pytest
from test_report import manifest, result

from dsd_lab.errors import BadInput
from dsd_lab.report.notebook import Opened
from dsd_lab.report.statistics.tuning import tune
from dsd_lab.report.write import write_report
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.report import ReportSettings, Tuning

LR = "optimiser.lr"
FID = "fid/indomain-n8"
TUNING = Tuning(axis=LR, by="fid")


def grid(figures, variant="naive", name=FID, point=None):
    """figures: {lr: [value of seed 0, 1, ...]}; None for a trial that diverged."""
    return [
        result(variant, seed, "diverged" if v is None else "done", {LR: lr, **(point or {})}, metrics={name: v or 0.0})
        for lr, values in figures.items()
        for seed, v in enumerate(values)
    ]


def test_a_seed_is_reported_at_the_value_that_the_others_choose():
    # Seed 2 alone would choose 1e-3, and its lucky figure would make 1e-3 the best mean of all three.
    kept, (tuned,) = tune(grid({1e-4: [5.0, 5.0, 9.0], 1e-3: [6.0, 6.0, 1.0]}), TUNING)
    assert tuned.chosen == {0: 1e-3, 1: 1e-3, 2: 1e-4} and tuned.left_out
    assert {r.seed: r.metrics[FID] for r in kept} == {0: 6.0, 1: 6.0, 2: 9.0}
    assert all(r.point == {} for r in kept)


def test_values_are_chosen_variant_by_variant_and_point_by_point():
    results = grid({1e-4: [1.0, 1.0], 1e-3: [2.0, 2.0]}, "naive", point={"latent.noise": 0.1})
    results += grid({1e-4: [2.0, 2.0], 1e-3: [1.0, 1.0]}, "naive", point={"latent.noise": 0.2})
    results += grid({1e-4: [3.0, 3.0], 1e-3: [1.0, 1.0]}, "dsd", point={"latent.noise": 0.1})
    kept, tuned = tune(results, TUNING)
    assert [set(t.chosen.values()) for t in tuned] == [{1e-4}, {1e-3}, {1e-3}]
    assert len(kept) == 6 and {len(r.point) for r in kept} == {1}


def test_a_diverged_trial_makes_its_value_the_last_choice_of_the_others():
    _, (tuned,) = tune(grid({1e-4: [5.0, 5.0, 5.0], 1e-3: [None, 1.0, 1.0]}), TUNING)
    assert tuned.chosen == {0: 1e-3, 1: 1e-4, 2: 1e-4}
    assert tuned.by_value[1e-3].n == 2


def test_higher_is_better_turns_the_choice_round_and_figures_may_be_negative():
    results = grid({1e-4: [-0.5, -0.5], 1e-3: [0.5, 0.5]}, name="kid/x")
    assert tune(results, Tuning(axis=LR, by="kid"))[1][0].chosen == {0: 1e-4, 1: 1e-4}
    assert tune(results, Tuning(axis=LR, by="kid"))[1][0].by_value[1e-4].mean == -0.5
    assert tune(results, Tuning(axis=LR, by="kid", higher_is_better=True))[1][0].chosen == {0: 1e-3, 1: 1e-3}


def test_a_variant_without_samples_is_chosen_by_its_reconstruction_loss():
    results = grid({1e-4: [0.3, 0.3], 1e-3: [0.2, 0.2]}, "control", "train/reconstruction")
    _, (tuned,) = tune(results, Tuning(axis=LR, by="fid", higher_is_better=True))
    assert set(tuned.chosen.values()) == {1e-3} and tuned.metric == "train/reconstruction"


def test_a_choice_at_the_end_of_a_grid_and_a_single_seed_are_told(tmp_path):
    settings = ReportSettings(tuned=TUNING)
    results = [r for name in ("control", "naive") for r in grid({1e-4: [1.0], 1e-3: [2.0], 1e-2: [math.e]}, name)]
    page, content = write_report(results, settings, manifest(["control", "naive"]), tmp_path)
    table = next(t for t in page.tables if t.name == "tuning")
    assert [row[-1].detail for row in table.rows] == ["an end of the grid"] * 2
    assert "chosen and reported on the same trial" in table.note
    assert [g["point"] for g in content["variants"]] == [{}, {}]
    assert [len(g["seeds"]) for g in content["variants"]] == [1, 1]
    trials = next(t for t in page.tables if t.name == "trials")
    assert len(trials.rows) == 6, "trials that were not chosen are still listed"


def test_an_opened_sweep_shows_what_its_report_shows():
    results = [r for name in ("dsd", "naive") for r in grid({1e-4: [1.0, 1.5, 1.2], 1e-3: [2.0, 2.5, 2.2]}, name)]
    opened = Opened(manifest(["dsd", "naive"]), results, ReportSettings(tuned=TUNING))
    assert [(g.variant, g.point, len(g.results)) for g in opened.groups] == [("dsd", {}, 3), ("naive", {}, 3)]
    assert set(opened.frame("tuning")[LR]) == {1e-4, 1e-3} and len(opened.frame("trials")) == 12
    with pytest.raises(BadInput, match="no rows for the table 'tuning'"):
        Opened(opened.manifest, results, ReportSettings()).table("tuning")


@pytest.mark.parametrize(("named", "found"), [(None, "dsd"), ("detached", "detached"), ("control", "control")])
def test_variants_are_compared_with_the_one_that_the_spec_names(tmp_path, named, found):
    results = [r for name in ("control", "detached", "dsd") for r in grid({1e-4: [1.0, 2.0]}, name)]
    _, content = write_report(
        results, ReportSettings(reference=named), manifest(["control", "detached", "dsd"]), tmp_path
    )
    assert content["comparisons"]["reference"] == found
    assert {row["variant"] for row in content["comparisons"]["rows"]} == {"control", "detached", "dsd"} - {found}


def test_an_axis_that_the_grid_lacks_is_refused_by_line(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        "schema: 1\nname: s\nvariants: {a: {}}\ngrid: {optimiser.lr: [0.001]}\nreport:\n  control: null\n  tuned: {axis: optimizer.lr}\n"
    )
    with pytest.raises(BadInput, match=r"s.yaml:7.*report.tuned.axis: 'optimizer.lr'.*did you mean 'optimiser.lr'"):
        load_sweep(path)
