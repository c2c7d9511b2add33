"""Theory beside measurement in a report: numbers of the table, sentence by sentence, and what the figure draws."""

from dataclasses import replace

import numpy as np
import pytest
from sweeping import described

from dsd_lab.home.history import History
from dsd_lab.report.figures.style import looks_of
from dsd_lab.report.figures.theory import theory
from dsd_lab.report.groups import groups_of
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.agreement import agreement_of, gap_record, scale_record, theory_table
from dsd_lab.report.statistics.theory import scale_gradient
from dsd_lab.specs.report import ReportSettings
from dsd_lab.specs.trial import Trial

SETTINGS = ReportSettings(probes=2)
PROBED = (0, 10, 20, 30)
STD = np.array([[1.0, 0.5, 1e-9], [2.0, 0.5, 1e-9], [2.0, 1.0, 1e-9], [2.0, 1.0, 1e-9]])
NAIVE = {"target": "live", "output": "velocity", "loss_space": "velocity"}
DETACHED = {"target": "stop_gradient", "noised": "detached"}


def trial(variant="naive", seed=0, objective=None, factor=1.0, gaps=(9, 1, -1, 9), ranks=(1, 2, 3, 2.5), state="done"):
    """Measured derivatives are `factor` times the closed form's; three directions, one of them dead."""
    fields = Trial.model_validate({"objective": NAIVE if objective is None else objective}).model_dump()
    rows = [(s, "latent/variance", -1, 10.0 ** (2 * i)) for i, s in enumerate(PROBED)]
    rows += [(s, "latent/effective_rank/token", -1, float(v)) for s, v in zip(PROBED, ranks, strict=True)]
    rows += [(s, f"latent/{n}", -1, 9.0) for n in ("effective_rank/image", "capacity_bits/token", "probe_images") for s in PROBED]  # fmt: skip
    rows += [(s, f"rank_gap/t{b}", -1, float(g + b)) for b in (-1, 1) for s, g in zip(PROBED, gaps, strict=True)]
    if fields["objective"]["noised"] == "live" and fields["objective"]["diffusion_weight"] > 0:
        rows += [(s, "theory/scale_gradient/token/pre", -1, 0.25) for s in PROBED]
        measured = factor * scale_gradient(fields, STD)
        for kind, table in (("std", STD), ("gradient", measured)):
            rows += [(s, f"spectrum/scale_{kind}/token", k, v) for s, r in zip(PROBED, table, strict=True) for k, v in enumerate(r)]  # fmt: skip
    at, names, index, values = zip(*rows, strict=True)
    return Result(
        id=f"{variant}-{seed}", variant=variant, point={}, seed=seed, size="nano8", state=state, steps=30, step=30, seconds=1.0,
        error=None, metrics={"rank_gap/t-1": 0.0, "rank_gap/t1": 0.0},
        history=History(np.array(at), np.array(names, dtype=object), np.array(index), np.array(values)),
        description=described(fields),
    )  # fmt: skip


def table(results):
    groups = groups_of(results, SETTINGS)
    return theory_table(groups, SETTINGS, dict.fromkeys((g.variant for g in groups), "#000000"))


def test_a_trial_that_does_as_the_theory_says_agrees_in_every_direction():
    found = agreement_of(trial(), SETTINGS)
    expected = np.pi / 2 * (2.0 + 1.0 + 0.0) / 3  # joint training in velocity space: (pi / 2) s a direction
    assert (found.predicted, found.measured) == pytest.approx((expected, expected))
    assert found.signs == 1.0 and found.before == 0.25


@pytest.mark.parametrize(("factor", "share"), [(0.1, 1.0), (-1.0, 0.0)])
def test_the_measured_size_is_the_measured_one_and_dead_directions_are_not_counted(factor, share):
    found = agreement_of(trial(factor=factor), SETTINGS)
    assert found.measured == pytest.approx(factor * found.predicted) and found.signs == share
    assert scale_record(trial()).alive.sum(1).tolist() == [2, 2, 2, 2]


def test_a_rank_gap_is_judged_by_the_change_of_rank_that_begins_at_the_next_probe():
    gap, change = gap_record(trial())
    assert gap.tolist() == [1.0] and change.tolist() == [-0.5]
    found = agreement_of(trial(), SETTINGS)
    assert (found.gap, found.gap_signs, found.rank_change) == (3.0, 0.0, 0.75)
    assert agreement_of(trial(gaps=(0, -1, -1, 0)), SETTINGS).gap_signs == 1.0


def test_ranks_that_only_jitter_follow_the_gap_half_of_the_time():
    """The gap has the target's rank in it, so that a change from the same probe would have the other sign in most cases."""
    random = np.random.default_rng(0)
    rank = 6 + 0.1 * random.normal(size=4001)
    rows = [(i, name, -1, v) for name, values in (("latent/effective_rank/token", rank), ("rank_gap/t0", rank - 6)) for i, v in enumerate(values)]  # fmt: skip
    at, names, index, values = (np.array(part) for part in zip(*rows, strict=True))
    jitter = replace(trial(), history=History(at, names.astype(object), index, values))
    assert agreement_of(jitter, SETTINGS).gap_signs == pytest.approx(0.5, abs=0.03)
    gap, change = gap_record(jitter)
    assert abs(np.corrcoef(gap, change)[0, 1]) < 0.05 < 0.65 < -np.corrcoef(rank[1:-1], np.diff(rank)[1:])[0, 1]


def test_changes_are_from_the_second_probe_to_the_median_of_the_last():
    assert agreement_of(trial(), SETTINGS).scale_change == pytest.approx(np.log10(np.median([1e4, 1e6])) / 2 - 1)


def test_latents_that_the_loss_does_not_reach_are_predicted_to_stay_and_nothing_is_measured():
    found = agreement_of(trial(objective=DETACHED), SETTINGS)
    assert (found.predicted, found.measured, found.signs) == (0.0, None, None)


def test_an_objective_that_the_closed_forms_are_not_about_is_compared_with_nothing():
    other = trial()
    other.description.fields["objective"]["weighting"] = "a later one"
    found = agreement_of(other, SETTINGS)
    assert (found.predicted, found.measured) == (None, None) and found.gap == 3.0


def test_the_table_has_a_row_a_variant_with_a_diffusion_loss_and_says_how_often_signs_agree():
    results = [trial(seed=s) for s in range(3)] + [trial("odd", s, factor=-2.0) for s in range(2)]
    results += [trial("detached", 0, DETACHED), trial("control", 0, {"diffusion_weight": 0.0}), trial("odd", 2, state="diverged")]  # fmt: skip
    made = table(results)
    assert [row[0].text for row in made.rows] == ["naive", "odd", "detached"]
    assert [row[3].text for row in made.rows] == ["100 %", "0 %", "-"]
    assert made.note.startswith("The sign of the mean derivative agrees in 3 of 5 trials.")
    assert "frozen at the posterior mean" in made.note
    measured = made.frame.query("quantity == 'measured'").set_index("variant")
    assert measured.loc["odd", "mean"] == pytest.approx(-2 * measured.loc["naive", "mean"])
    assert measured["n"].to_dict() == {"naive": 3, "odd": 2}


def test_the_correlation_of_gap_and_change_of_rank_is_over_trials_from_five_on():
    ends = [trial(seed=s, gaps=(0, s, s, 0), ranks=(1, 2, 2, 2 + s)) for s in range(6)]
    assert "Over 6 trials, Spearman's correlation of mean rank gap and change of rank is +1.00." in table(ends).note
    assert "Spearman" not in table(ends[:4]).note


def test_without_a_measured_derivative_there_is_neither_table_nor_figure():
    results = [trial("detached", 0, DETACHED)]
    groups = groups_of(results, SETTINGS)
    assert table(results) is None and theory(groups, looks_of(groups, None), SETTINGS) is None


def test_the_figure_draws_measured_and_predicted_over_training_and_live_directions_at_the_end():
    groups = groups_of([trial(factor=0.5)], SETTINGS)
    curves, directions, gaps = theory(groups, looks_of(groups, None), SETTINGS).axes
    measured, predicted = (line.get_ydata() for line in curves.lines[:2])
    assert measured == pytest.approx(0.5 * predicted) and len(predicted) == 4
    (marks,) = (c.get_offsets() for c in directions.collections if len(c.get_offsets()) == 2)
    assert np.allclose(marks, [[np.pi, np.pi / 2], [np.pi / 2, np.pi / 4]])
    assert gaps.collections[0].get_offsets().tolist() == [[1.0, -0.5]]
