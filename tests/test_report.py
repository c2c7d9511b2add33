"""The report on results built by hand: verdicts, means, comparisons, effects, and what is written, number by number."""

import json
import re
from collections import ChainMap
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import save_file
from sweeping import described

from dsd_lab.home.history import History
from dsd_lab.home.sweep_records import Manifest
from dsd_lab.report.figures.latents import curves
from dsd_lab.report.figures.spectra import spectrum_maps
from dsd_lab.report.figures.style import looks_of
from dsd_lab.report.groups import LATENT_COLUMNS, columns_of, floors_of, groups_of, short_labels
from dsd_lab.report.page.narrative import answer, notices
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.comparisons import compare, conclusions
from dsd_lab.report.statistics.factorial import STEPS, designs_of, effects_of, orders_of
from dsd_lab.report.statistics.verdicts import judge, row_key
from dsd_lab.report.tables.measured_how import in_words, measured_how
from dsd_lab.report.tables.rendering import csv_cell, latex_text, markdown_text, shown
from dsd_lab.report.write import write_report
from dsd_lab.specs.report import ReportSettings
from dsd_lab.specs.trial import Generation, Training, Trial

SETTINGS = ReportSettings()
STEPS_PROBED = (0, 10, 20, 30)
HEALTHY = {"std": 1.0, "token": 6.0, "image": 20.0, "capacity": 4.0}
NAMES = {
    "token": "latent/effective_rank/token",
    "image": "latent/effective_rank/image",
    "capacity": "latent/capacity_bits/token",
    "images": "latent/probe_images",
    "patches": "patches/effective_rank/token",
    "whole": "patches/effective_rank/image",
}
ORIGIN = {
    "code": "0123456789ab",
    "git_commit": None,
    "git_dirty": False,
    "python": "3.12.1",
    "versions": {"torch": "2.11"},
    "device": "cpu",
    "machine": {"host": "here", "system": "Linux", "processor": "a processor"},
}


def history(latents, spectra):
    """Rows of every probe; a quantity is one number, or one a probe."""
    columns = {"latent/variance": np.square(latents["std"])}
    columns |= {name: latents[key] for key, name in NAMES.items() if latents[key] is not None}
    count = max(len(np.atleast_1d(v)) for v in columns.values())
    steps = STEPS_PROBED if count == 1 else tuple(range(0, 10 * count, 10))
    rows = [
        (step, name, -1, float(value))
        for name, values in columns.items()
        for step, value in zip(steps, np.broadcast_to(values, len(steps)), strict=True)
    ]
    if spectra:
        values = latents["std"] * np.geomspace(1, 0.01, 8)
        rows += [(s, f"spectrum/{k}", i, v) for s in steps for k in ("token", "image") for i, v in enumerate(values)]
        rows += [(s, f"rank_gap/t{b}", -1, 0.5 - b + 0.01 * s) for s in steps for b in range(2)]
        rows += [(s, "seconds/train", -1, 0.5) for s in steps[1:]]
    at, names, index, numbers = zip(*rows, strict=True)
    return History(np.array(at), np.array(names, dtype=object), np.array(index), np.array(numbers))


def result(variant, seed=0, state="done", point=None, size="nano8", metrics=None, error=None, **more):
    """A trial of `nano8`: 4 tokens x 8 channels, so ranks are at most 8 and 32 (256 probe images)."""
    fields = Trial.model_validate({k: more.pop(k) for k in ("objective", "network") if k in more}).model_dump()
    folder, spectra, evaluations = more.pop("folder", None), more.pop("spectra", False), more.pop("evaluations", [])
    latents = HEALTHY | {"images": 256, "patches": 12.5, "whole": 35.0} | more
    made = state not in ("pending", "failed")
    return Result(
        id=f"{variant}-{seed}",
        variant=variant,
        point=point or {},
        seed=seed,
        size=size,
        state=state,
        steps=30,
        step=30 if made else 0,
        seconds=36.0 if made else 0.0,
        error=error,
        metrics={**({"rank_gap/t0": 0.0, "rank_gap/t1": 0.0} if spectra else {}), **(metrics or {})},
        history=history(latents, spectra) if made else History.empty(),
        description=described(fields, ORIGIN) if made else None,
        evaluations=evaluations,
        folder=folder,
    )


def judged(results, settings=SETTINGS):
    found = judge(results, settings)
    return [found[row_key(r)] for r in results]


# -- Verdicts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latents", "expected"),
    [
        ({"std": 10.02}, "scale-runaway"),
        ({"std": 10.0}, "healthy"),
        ({"std": 0.399}, "shrunk"),
        ({"std": 0.401}, "healthy"),
        ({"capacity": 0.99}, "shrunk"),
        ({"capacity": 1.0}, "healthy"),
        ({"token": 2.99}, "rank-collapsed"),
        ({"token": 3.0}, "healthy"),
        ({"image": 9.99}, "rank-collapsed"),
        ({"image": 10.0}, "healthy"),
        ({"std": 11.0, "capacity": 0.1, "token": 1.0}, "scale-runaway"),
        ({"std": 0.1, "token": 1.0, "image": 1.0}, "shrunk"),
        ({"capacity": 0.1, "token": 1.0}, "shrunk"),
    ],
)
def test_against_a_control_the_first_verdict_that_applies_is_the_designs(latents, expected):
    found = judged([result("control", std=2.0), result("other", **latents)])[1]
    assert (found.verdict, found.by_control) == (expected, True)


@pytest.mark.parametrize(
    ("latents", "expected"),
    [
        ({"std": 10.1}, "scale-runaway"),
        ({"std": 9.9}, "healthy"),
        ({"std": 0.099}, "shrunk"),
        ({"std": 0.101}, "healthy"),
        ({"token": 1.99}, "rank-collapsed"),  # a quarter of 8 channels
        ({"token": 2.0}, "healthy"),
        ({"image": 7.99}, "rank-collapsed"),  # a quarter of 4 tokens x 8 channels
        ({"image": 8.0}, "healthy"),
        ({"image": 3.99, "images": 17}, "rank-collapsed"),  # a quarter of 17 images - 1
        ({"image": 4.0, "images": 17}, "healthy"),
        ({"token": 0.99, "patches": 4.0}, "rank-collapsed"),  # a quarter of what patches of that rank can fill
        ({"token": 1.0, "patches": 4.0}, "healthy"),
        ({"image": 4.99, "whole": 20.0}, "rank-collapsed"),
        ({"image": 5.0, "whole": 20.0}, "healthy"),
        ({"token": 0.3, "patches": 0.0}, "healthy"),  # images of one colour: nothing to fill
        ({"capacity": 0.0}, "healthy"),
        ({"std": 11.0, "token": 1.0}, "scale-runaway"),
        ({"std": 0.01, "token": 1.0}, "shrunk"),
    ],
)
def test_without_a_control_verdicts_are_against_fixed_bounds(latents, expected):
    found = judged([result("other", **latents)])[0]
    assert (found.verdict, found.by_control) == (expected, False)


@pytest.mark.parametrize(
    ("setting", "latents", "expected"),
    [
        ({"runaway": 2.0}, {"std": 2.1}, "scale-runaway"),
        ({"shrunk": 0.9}, {"std": 0.8}, "shrunk"),
        ({"capacity": 0.9}, {"capacity": 3.0}, "shrunk"),
        ({"rank": 0.9}, {"token": 5.0}, "rank-collapsed"),
        ({"control": None, "runaway_std": 0.5}, {}, "scale-runaway"),
        ({"control": None, "shrunk_std": 2.0}, {}, "shrunk"),
        ({"control": None, "rank_bound": 0.9}, {}, "rank-collapsed"),
    ],
)
def test_every_threshold_is_a_setting(setting, latents, expected):
    results = [result("control"), result("other", **latents)]
    assert judged(results)[1].verdict == "healthy"
    assert judged(results, ReportSettings(**setting))[1].verdict == expected


def test_a_trial_is_judged_against_the_control_of_its_own_seed_grid_point_and_size():
    cells = [(0, {}), (1, {}), (0, {"training.steps": 9})]
    results = [result("control", s, point=p, std=std) for (s, p), std in zip(cells, (1.0, 9.0, 9.0), strict=True)]
    results += [result("other", s, point=p) for s, p in cells] + [result("larger", size="nano28")]
    # A std of 1 is a ninth of a control's 9.
    assert [j.verdict for j in judged(results)[3:]] == ["healthy", "shrunk", "shrunk", "healthy"]
    assert [j.by_control for j in judged(results)] == [False] * 3 + [True] * 3 + [False]


@pytest.mark.parametrize("state", ["pending", "running", "interrupted", "failed", "diverged"])
def test_a_control_that_has_not_finished_judges_nobody_and_the_report_says_so(state):
    results = [result("control", 0, state, std=9.0), result("control", 1, std=9.0)]
    results += [result("other", 0), result("other", 1)]
    found = judged(results)
    assert [(j.verdict, j.by_control) for j in found[2:]] == [("healthy", False), ("shrunk", True)]
    told = notices(groups_of(results, SETTINGS), SETTINGS)
    assert any("1 trial judged against fixed bounds" in n and "'control'" in n for n in told)


def test_the_control_itself_is_judged_against_fixed_bounds():
    assert [j.verdict for j in judged([result("control", std=0.05)])] == ["shrunk"]


@pytest.mark.parametrize(
    ("network", "latents"),
    [
        ({"latent_channels": 32, "patch_size": 2}, {"token": 7.6, "image": 60.0, "patches": 3.5}),
        ({"latent_channels": 128, "patch_size": 4}, {"token": 15.0, "image": 60.0}),
    ],
    ids=["32 channels of 2 x 2 pixels", "128 channels of 4 x 4 pixels"],
)
def test_a_control_is_not_held_against_channels_that_no_image_fills(network, latents):
    assert [j.verdict for j in judged([result("control", network=network, **latents)])] == ["healthy"]


@pytest.mark.parametrize(
    ("latents", "expected"), [({"token": 1.9}, None), ({}, "healthy"), ({"std": 0.05}, "shrunk"), ({"std": 11.0}, "scale-runaway")]
)  # fmt: skip
def test_without_a_control_and_the_rank_of_the_patches_no_rank_is_called_collapsed(latents, expected):
    old = {"patches": None, "whole": None}
    results = [result("control", **old, **latents)]
    assert [j.verdict for j in judged(results)] == [expected]
    told = notices(groups_of(results, SETTINGS), SETTINGS)
    assert any("1 trial without a verdict" in n for n in told) == (expected is None)
    against = judged([result("control", **old), result("other", **old, token=1.9)])[1]
    assert against.verdict == "rank-collapsed"  # against a control nothing else is needed


def test_latents_that_are_not_finite_have_no_verdict_and_are_in_no_mean():
    results = [result("other", std=np.nan, token=np.nan, image=np.nan, capacity=np.nan), result("other", 1)]
    assert [j.verdict for j in judged(results)] == [None, "healthy"]
    assert {e.n for e in groups_of(results, SETTINGS)[0].estimates.values()} == {1}


@pytest.mark.parametrize(
    ("std", "probes", "expected"),
    [
        ([1, 1, 0.01, 1], 3, ("healthy", None)),  # the median of the last three
        ([1, 1, 0.01, 0.01], 3, ("shrunk", 30)),
        ([1, 1, 1, 0.01, 0.01, 0.01], 3, ("shrunk", 40)),
        ([1, 1, 1, 0.01], 1, ("shrunk", 30)),
        ([0.01, 0.01, 0.01], 3, ("shrunk", 0)),
        ([0.01, 0.01, 1, 1, 1], 3, ("healthy", None)),  # recovered
        ([0.01, 1, 0.01, 0.01], 1, ("shrunk", 20)),  # recovered, then for good
        ([0.01], 3, ("shrunk", 0)),
    ],
)
def test_collapse_begins_at_the_first_probe_from_which_every_verdict_is_unhealthy(std, probes, expected):
    found = judged([result("other", std=std)], ReportSettings(probes=probes))[0]
    assert (found.verdict, found.collapsed_at) == expected


def test_the_step_of_collapse_is_found_against_the_control_at_the_same_step():
    results = [result("control", std=[0.2, 0.2, 3.0, 3.0]), result("other", std=[0.2, 0.2, 0.2, 0.2])]
    assert judged(results, ReportSettings(probes=1))[1].collapsed_at == 20


# -- Trials that have not finished, or are not there ----------------------------------------------------


def test_only_trials_that_trained_to_their_end_are_in_means_and_every_other_is_shown_and_noticed():
    unfinished = ("diverged", "running", "interrupted", "failed", "pending")
    values = {"done": 4.0, "stale": 6.0} | dict.fromkeys(unfinished, 90.0)
    each = enumerate(values.items())
    results = [result("other", seed, state, capacity=c, metrics={"fid/x-n9": c}) for seed, (state, c) in each]
    groups = groups_of(results, SETTINGS)
    (group,) = groups
    for column in ("latent/capacity_bits/token", "fid/x-n9"):
        assert (group.estimates[column].mean, group.estimates[column].n) == (5.0, 2)
    assert group.with_verdict == 2
    assert group.states == dict.fromkeys(unfinished, 1)
    told = notices(groups, SETTINGS)
    assert told[0].endswith("partial: 3 of 7 trials have ended (1 pending, 1 running, 1 interrupted, 1 failed).")
    beginnings = (
        "1 trial interrupted before the last step",
        "1 trial diverged",
        "1 trial trained by an older version of the training code",
    )
    assert all(line.startswith(beginning) for line, beginning in zip(told[1:4], beginnings, strict=True))
    figure = curves(groups, looks_of(groups, None), SETTINGS)
    assert [line.get_ydata()[0] for line in figure.axes[3].lines] == [5.0, 90.0, 90.0, 90.0]  # the mean; each by itself


def test_a_trial_that_has_not_finished_changes_no_mean_spectrum():
    results = [result("other", spectra=True), result("other", 1, "interrupted", spectra=True, std=9.0)]
    drawn = [groups_of(results[:count], SETTINGS) for count in (1, 2)]
    figures = [spectrum_maps(groups, looks_of(groups, None), SETTINGS) for groups in drawn]
    first, second = (f.axes[0].images[0].get_array() for f in figures)
    assert first.max() == pytest.approx(1.0)
    np.testing.assert_array_equal(first, second)


def test_a_finished_sweep_has_no_notices():
    assert notices(groups_of([result("control"), result("other")], SETTINGS), SETTINGS) == []


def test_the_answer_tells_what_holds_in_every_seed_where_seeds_disagree_and_what_is_missing():
    kinds = {"control": {}, "good": {}, "bad": {"std": 0.01}, "none": {"state": "diverged"}}
    results = [result(name, s, **more) for name, more in kinds.items() for s in range(3)]
    results += [result("mixed", s, std=(1, 1, 0.01)[s]) for s in range(3)]
    (told,) = answer(groups_of(results, SETTINGS))
    assert "healthy in every seed of control and good: 3 of 3 seeds (95 % interval: 29% to 100%)" in told
    assert "collapse in every seed of bad (shrunk 3 of 3)" in told
    assert "disagree in mixed (healthy 2 of 3, 95 % interval: 9% to 99%; shrunk 1 of 3)" in told
    assert "no verdict for none (3 diverged)" in told


# -- Comparisons and effects -------------------------------------------------------------------------


def compared(results):
    groups = groups_of(results, SETTINGS)
    return {(c.group.variant, c.column.name): c for c in compare(groups, columns_of(results), SETTINGS)}


def test_comparisons_are_paired_by_the_seeds_that_both_variants_finished():
    results = [result("dsd", s, capacity=4.0 + s) for s in (2, 0, 1)] + [result("dsd", 4, "diverged")]
    results += [result("naive", s, capacity=1.0, std=0.01) for s in (0, 1, 2, 3, 4)]
    found = compared(results)["naive", "latent/capacity_bits/token"]
    assert found.reference.variant == "dsd"
    difference = vars(found.paired.difference)
    assert sorted(difference.pop("seeds")) == [0, 1, 2]
    assert difference == pytest.approx(
        {"mean": -4.0, "sd": 1.0, "ci_low": -4 - 2.4841, "ci_high": -4 + 2.4841, "n": 3}, abs=1e-4
    )
    scale = compared(results)["naive", "latent/log10_std"].paired.difference
    assert (scale.mean, scale.sd) == pytest.approx((-2.0, 0.0))


@pytest.mark.parametrize(
    ("seeds", "variants", "p", "adjusted", "said"),
    [
        (1, 1, None, None, "One seed"),
        (5, 1, None, None, "no p-values are given"),
        (6, 1, 2 / 64, 2 / 64, "Holm's correction over the 1 comparison of a quantity"),
        (6, 2, 2 / 64, None, "Corrected tests need 7 seeds"),
        (7, 2, 2 / 128, 4 / 128, "Holm's correction over the 2 comparisons"),
    ],
)
def test_p_values_appear_with_the_seeds_that_let_them_be_small_and_are_explained(seeds, variants, p, adjusted, said):
    results = [result("dsd", s, capacity=4 + 0.1 * s) for s in range(seeds)]
    results += [result(f"other{v}", s, capacity=1.0) for v in range(variants) for s in range(seeds)]
    comparisons = compare(groups_of(results, SETTINGS), [LATENT_COLUMNS[3]], SETTINGS)
    assert len(comparisons) == variants
    assert {(c.paired.p, c.adjusted_p) for c in comparisons} == {(p, adjusted)}
    assert said in conclusions(comparisons)
    alone = f"on average {0.05 * variants:.1f} of the {variants} intervals would exclude 0 by chance"
    assert (alone in conclusions(comparisons)) == (seeds > 1)


def test_the_headline_s_effects_carry_their_intervals(tmp_path):
    results = designed(FIVE)  # each seed shifts all cells alike but this one
    moved = [result("both", s, capacity=4.0 + s + m, objective={"target": "stop_gradient", "output": "clean"}) for s, m in enumerate((-0.1, 0.0, 0.1))]  # fmt: skip
    _, content = write_report([r for r in results if r.variant != "both"] + moved, SETTINGS, manifest(FIVE), tmp_path)
    half = 4.30265 * 0.1 / np.sqrt(3)
    assert f"both together +3.00 [+{3 - half:.2f}, +{3 + half:.2f}] against naive training" in content["answer"]
    assert "with 95 % intervals: stop-gradient alone +1.00 [+1.00, +1.00]" in content["answer"]


def test_accuracies_and_their_differences_have_intervals_within_their_range():
    name = "label_accuracy/indomain-n9-cfg1-heun25-holdout-ema0.99"
    results = [result(v, s, metrics={name: x}) for v, xs in {"dsd": (0.9, 1.0, 1.0), "naive": (0.0, 0.1, 0.9)}.items() for s, x in enumerate(xs)]  # fmt: skip
    groups = groups_of(results, SETTINGS)
    assert groups[0].estimates[name].ci_high == 1.0 and groups[1].estimates[name].ci_low == 0.0
    (comparison,) = compare(groups, [c for c in columns_of(results) if c.name == name], SETTINGS)
    assert comparison.paired.difference.ci_low == -1.0 and 0 < comparison.paired.difference.ci_high < 1.0


CELLS = {
    "naive": ("live", "velocity", 1.0),
    "decoupled": ("stop_gradient", "velocity", 2.0),
    "clean_joint": ("live", "clean", 1.5),
    "both": ("stop_gradient", "clean", 4.0),
    "full": ("ema", "clean", 5.0),
    "odd": ("ema", "velocity", 3.0),
}


def designed(names, seeds=3, noise=0.0, **more):
    """The cells of a design; seeds shift all cells alike, `noise` moves DSD alone."""
    moved = {"full": noise}
    return [
        result(n, s, capacity=c + s + moved.get(n, 0) * (-1) ** s, objective={"target": t, "output": o}, **more)
        for n, (t, o, c) in CELLS.items()
        if n in names
        for s in range(seeds)
    ]


def capacity_effects(results):
    (design,) = designs_of(groups_of(results, SETTINGS))
    return {e.name: e for e in effects_of(design, SETTINGS) if e.column.name == "latent/capacity_bits/token"}


FIVE = ("naive", "decoupled", "clean_joint", "both", "full")


@pytest.mark.parametrize(
    "other",
    [{"auxiliary": {"classification": 0.1}}, {"augmentation": {"mask": 0.2}}, {"latent": {"normaliser": "none"}}],
)
def test_cells_that_differ_in_more_than_the_design_are_of_no_design(other):
    results = designed(FIVE)
    assert len(designs_of(groups_of(results, SETTINGS))) == 1
    mixed = [replace(r, description=_with(r.description, other)) if r.variant == "both" else r for r in results]
    assert designs_of(groups_of(mixed, SETTINGS)) == []


def _with(description, sections):
    return description.changed(fields=Trial.model_validate(description.fields | sections).model_dump())


def test_effects_are_differences_within_seeds_and_shapley_shares_add_up_to_the_recovery():
    found = capacity_effects(designed(FIVE))
    means = {name: e.estimate.mean for name, e in found.items()}
    # Two orders: stop-gradient first (1, 2, 1) or clean prediction first (2.5, 0.5, 1).
    expected = {
        "main effect: stop-gradient, mean over outputs": 1.75,
        "main effect: clean prediction, mean over live and stop-gradient targets": 1.25,
        "simple effect: stop-gradient, velocity output": 1.0,
        "simple effect: stop-gradient, clean output": 2.5,
        "simple effect: clean prediction, live target": 0.5,
        "simple effect: clean prediction, stop-gradient target": 2.0,
        "simple effect: EMA after stop-gradient, clean output": 1.0,
        "interaction: (live, stop-gradient) x output": 1.5,
        "both together: naive to stop-gradient and clean prediction": 3.0,
        "all three: naive to DSD": 4.0,
        "Shapley value of stop-gradient": 1.75,
        "Shapley value of clean prediction": 1.25,
        "Shapley value of EMA target": 1.0,
    }
    assert means == pytest.approx(expected)
    shares = [found[f"Shapley value of {step}"].share for step in STEPS]
    assert shares == pytest.approx([1.75 / 4, 1.25 / 4, 1 / 4]) and sum(shares) == pytest.approx(1)
    assert all(e.estimate.n == 3 and e.estimate.sd == pytest.approx(0) for e in found.values())


def test_main_effects_and_interactions_are_the_coefficients_of_a_regression_on_effect_codes():
    """Six cells: `value ~ target * output` by least squares, the outputs coded -1/2 and 1/2, the targets by steps."""
    found = {name: e.estimate.mean for name, e in capacity_effects(designed((*FIVE, "odd"))).items()}
    rows, values = [], []
    for target, output, value in CELLS.values():
        level, clean = ("live", "stop_gradient", "ema").index(target), 0.5 if output == "clean" else -0.5
        steps = [float(level >= 1), float(level >= 2)]  # backward differences: each level against the one before
        rows.append([1.0, *steps, clean, *(step * clean for step in steps)])
        values.append(value)
    fitted = np.linalg.solve(np.array(rows), np.array(values))
    assert found["main effect: stop-gradient, mean over outputs"] == pytest.approx(fitted[1])
    assert found["main effect: EMA after stop-gradient, mean over outputs"] == pytest.approx(fitted[2])
    assert found["interaction: (live, stop-gradient) x output"] == pytest.approx(fitted[4])
    assert found["interaction: (EMA, stop-gradient) x output"] == pytest.approx(fitted[5]) == pytest.approx(0.0)
    by_target = [found[f"simple effect: clean prediction, {t} target"] for t in ("live", "stop-gradient", "EMA")]
    assert found["main effect: clean prediction, mean over all three targets"] == pytest.approx(np.mean(by_target))
    assert by_target == pytest.approx([0.5, 2.0, 2.0])


def test_a_sixth_cell_adds_the_order_in_which_ema_comes_second_and_ema_is_never_before_the_stop_gradient():
    found = capacity_effects(designed((*FIVE, "odd")))
    # Third order: stop-gradient 1, EMA 1, clean prediction 2.
    values = [found[f"Shapley value of {step}"].estimate.mean for step in STEPS]
    assert values == pytest.approx([4.5 / 3, 4.5 / 3, 1.0])
    every = {(t, o) for t, o, _ in CELLS.values()}
    orders = orders_of(every)
    assert len(orders) == 3 and all(o.index("EMA target") > o.index("stop-gradient") for o in orders)
    assert len(orders_of(every - {("ema", "velocity")})) == 2 and orders_of(every - {("ema", "clean")}) == []


@pytest.mark.parametrize(("seeds", "noise"), [(1, 0.0), (3, 9.0)], ids=["no interval", "an interval that holds 0"])
def test_shares_are_left_out_where_the_recovery_is_not_sure(seeds, noise):
    found = capacity_effects(designed(FIVE, seeds, noise))
    assert [found[f"Shapley value of {step}"].share for step in STEPS] == [None] * 3
    assert found["simple effect: stop-gradient, velocity output"].estimate.mean == pytest.approx(1.0)


def test_cells_form_a_design_only_where_they_agree_in_all_else_and_all_four_are_there():
    four = FIVE[:4]
    assert len(designs_of(groups_of(designed(four), SETTINGS))) == 1
    assert designs_of(groups_of(designed(four[:3]), SETTINGS)) == []
    mixed = designed(four[:3]) + designed(four[3:], network={"width": 32})
    assert designs_of(groups_of(mixed, SETTINGS)) == []
    detached = [result(n, objective={"target": t, "output": o, "noised": "detached"}) for n, (t, o, _) in CELLS.items()]
    assert designs_of(groups_of(detached, SETTINGS)) == []


# -- What is written ---------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script> $x^$ | =1+1"
POINTS = [{"data.path": HOSTILE}, {"data.path": "=2+2"}]
MEASURED = Generation(guidance=1.0, images=9)
FID, FLOOR = "fid/digits-n9-cfg1", "fid_floor/digits-n9"
KINDS = {"control": {}, "naive": {"std": 0.0101}, "dsd": {"token": 5.123}}


def manifest(variants, why="Does *it* hold?"):
    spec = {"variants": {v: {"why": f"# {HOSTILE}"} for v in variants}}
    named = {"name": "a-sweep", "key": "a-sweep--quick", "profile": "quick", "why": why, "run_at": 1.7e9}
    return Manifest(**named, spec=spec, trials=[])


def written(folder):
    """Every file below a folder, the date of the pages left out."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {n: re.sub(rb"Made .{10} .{5} UTC", b"", data) if "/" not in n else data for n, data in files.items()}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A grid of two points with hostile names, three variants and three seeds, one diverged and one failed."""
    root = tmp_path_factory.mktemp("report")
    (root / "trial" / "final").mkdir(parents=True)
    for name in ("reconstruction", "evaluation-x"):
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(root / "trial" / "final" / f"{name}.png")
    save_file({"a": np.zeros((3, 4)), "b": np.zeros(5)}, root / "trial" / "final" / "weights.safetensors")
    same = {"spectra": True, "folder": root / "trial"}

    def measured(seed):
        return {FID: 1 / (3 + seed), FLOOR: 0.25}

    results = [
        result(
            name, seed, point=point, metrics=measured(seed), evaluations=[(MEASURED, measured(seed))], **more, **same
        )
        for point in POINTS
        for name, more in KINDS.items()
        for seed in range(3)
    ]
    results[4] = result("naive", 1, "diverged", POINTS[0], error=f"=lost {HOSTILE}", std=[1.0, 1e9, np.inf, np.nan])
    results[5] = result("naive", 2, "failed", POINTS[0], error=HOSTILE)
    folders = root / "first", root / "second"
    (page, content), _ = (write_report(results, SETTINGS, manifest(KINDS), folder) for folder in folders)
    return page, content, *folders


class Reader(HTMLParser):
    """Tags with their attributes, and the rows of tables by the id of the heading before them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.heading, self.cell = [], {}, "", None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "h2":
            self.heading = dict(attributes).get("id", "")
        elif tag == "tr":
            self.rows.setdefault(self.heading, []).append([])
        elif tag in ("td", "th"):
            self.rows[self.heading][-1].append("")
            self.cell = self.rows[self.heading][-1]
        elif tag == "small":
            self.cell[-1] += " "

    def handle_endtag(self, tag):
        self.cell = None if tag in ("td", "th") else self.cell

    def handle_data(self, data):
        if self.cell is not None:
            self.cell[-1] += data


@pytest.mark.integration
def test_the_same_results_give_the_same_bytes_but_for_the_date(report):
    _, _, first, second = report
    assert b"UTC" in (first / "report.html").read_bytes() and b"UTC" in (first / "report.md").read_bytes()
    assert written(first) == written(second)


@pytest.mark.integration
def test_every_table_and_figure_is_a_file_that_can_be_read(report):
    page, _, folder, _ = report
    assert [d.stem for d in page.figures] == [
        "verdicts", "curves", "differences", "viv", "spectrum_maps", "spectra", "rank_gap", "reconstructions", "samples"
    ]  # fmt: skip
    for drawn in page.figures:
        with Image.open(folder / "figures" / f"{drawn.stem}.png") as image:
            assert image.width > 600 and len(image.getcolors(10**7)) > 10
        assert ElementTree.parse(folder / "figures" / f"{drawn.stem}.svg").getroot().tag.endswith("svg")
    named = ["verdicts", "comparisons", "evaluations", "viv", "rank_gap", "cost", "published", "trials"]
    assert [t.name for t in page.tables] == named
    for table in page.tables:
        assert len(pd.read_csv(folder / "tables" / f"{table.name}.csv")) == len(table.frame) > 0
    names = {t.name for t in page.tables if not t.folded}
    printed = set(re.findall(r"\\input\{(\w+)\.tex\}", (folder / "tables" / "report.tex").read_text()))
    assert printed == names == {p.stem for p in (folder / "tables").glob("*.tex")} - {"report"}


@pytest.mark.integration
def test_the_page_asks_nothing_of_any_other_machine_and_runs_no_script(report):
    text = (report[2] / "report.html").read_text()
    tags = Reader(text).tags
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in tags}
    addresses = [v for _, attributes in tags for k, v in attributes.items() if k in ("src", "href", "srcset", "data")]
    assert len(addresses) > 10 and all(a.startswith(("#", "data:image/png;base64,")) for a in addresses)
    assert not re.search(r"url\(|@import|\son\w+=", re.sub(r"base64,[^\"]*", "", text))
    anchors = {a[1:] for a in addresses if a.startswith("#")}
    assert anchors <= {attributes.get("id") for _, attributes in tags}


@pytest.mark.integration
def test_figures_are_numbered_navigation_is_in_page_order_and_terms_are_explained_first(report):
    text, markdown = ((report[2] / f"report.{kind}").read_text() for kind in ("html", "md"))
    numbers = re.findall(r"<b>Figure (\d+)\.</b>", text)
    assert numbers == [str(n + 1) for n in range(len(numbers))] and len(numbers) >= len(report[0].figures) > 5
    assert re.findall(r"\*Figure (\d+)\.", markdown) == numbers[: len(report[0].figures)]
    targets = re.findall(r'href="#([^"]+)"', re.search(r"<nav>(.*?)</nav>", text, re.S)[1])
    places = [text.index(f'id="{target}"') for target in targets]
    assert places == sorted(places) and targets[-1] == "glossary"
    assert text.index('<dl class="terms">') < text.index("<table>") and 'href="#glossary-capacity"' in text


def test_names_of_metrics_are_short_and_their_settings_are_said_once():
    how = "indomain-n20-cfg{}-heun25-balanced-ema0.99"
    names = {f"fid/{how.format(g)}": 1.0 for g in ("1", "1.5")} | {f"kid/{how.format('1')}": 0.1}
    columns = [
        c for c in columns_of([result("dsd", metrics=names | {"psnr/perimage-n9-ema0.99": 20.0})]) if not c.is_latent
    ]
    labels = short_labels(columns)
    assert list(labels.values()) == ["in-domain FID (cfg1)", "in-domain FID (cfg1.5)", "KID", "PSNR, dB"]
    said = measured_how(columns, labels)
    assert (
        said.count("25 Heun steps") == 2
        and "in-domain FID (cfg1), KID: features of an in-domain classifier, 20 images, no" in said
    )
    assert "guidance 1.5" in said and "PSNR, dB: mean over images, 9 images, EMA weights with decay 0.99." in said
    assert in_words("indomain-n9-cfg2in0.1to0.9-dopri5rtol1e-05atol1e-06-random-trained").endswith(
        "guidance 2 in t [0.1, 0.9], dopri5 (rtol 1e-05, atol 1e-06), random labels, trained weights, not averaged"
    )


@pytest.mark.integration
def test_names_from_specs_and_errors_are_shown_letter_by_letter_in_every_format(report):
    page, _, folder, _ = report
    html, markdown = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    rows = Reader(html).rows
    assert rows["verdicts"][2][0] == f"naive, path={HOSTILE}"
    assert [row[3] for row in rows["trials"][5:7]] == [f"diverged: =lost {HOSTILE}", f"failed: {HOSTILE}"]
    assert "<script" not in markdown and r"\$x^\$ \| =1+1" in markdown and "\n# &lt;" not in markdown
    for line in [line for line in markdown.splitlines() if line.startswith("|")]:
        assert len(re.findall(r"(?<!\\)\|", line)) - 1 in {len(t.header) for t in page.tables}
    for path in (folder / "tables").glob("*.tex"):
        unescaped = re.sub(r"\\[$#_%&]|\$-\$|(?m:^%.*$)|\\input.*", "", path.read_text())
        assert not set("<>|$#_%") & set(unescaped)
    assert r"\$x\textasciicircum{}\$" in (folder / "tables" / "verdicts.tex").read_text()
    cells = pd.read_csv(folder / "tables" / "trials.csv", dtype=str, keep_default_na=False)
    assert cells["data.path"].unique().tolist() == [HOSTILE, "'=2+2"] and f"'=lost {HOSTILE}" in set(cells["error"])


@pytest.mark.integration
def test_the_numbers_of_csv_json_and_pages_are_the_same_numbers(report):
    _, content, folder, _ = report
    markdown = (folder / "report.md").read_text()
    table = pd.read_csv(folder / "tables" / "verdicts.csv", float_precision="round_trip")
    rows = Reader((folder / "report.html").read_text()).rows["verdicts"]
    for at, group in enumerate(json.loads(json.dumps(content, allow_nan=False))["variants"]):
        assert table["variant"][at] == group["variant"]
        for name, found in group["metrics"].items():
            csv = [table[f"{name} {part}"][at] for part in ("mean", "ci_low", "ci_high", "n")]
            told = [np.nan if found[p] is None else found[p] for p in ("mean", "ci_low", "ci_high", "n")]
            np.testing.assert_array_equal(csv, told)
        for name, label, digits in (("latent/std", "latent std", 3), (FID, "FID", 2)):
            found = group["metrics"][name]
            bounds = "" if found["n"] == 1 else f" [{found['ci_low']:.{digits}f}, {found['ci_high']:.{digits}f}]"
            cell = f"{found['mean']:.{digits}f}{bounds}"
            assert rows[at + 1][rows[0].index(label)] == cell
            assert f"| {markdown_text(cell)} |" in markdown
    assert rows[-1][0].startswith("real images") and "0.25" in rows[-1]
    cost = pd.read_csv(folder / "tables" / "cost.csv")
    assert set(cost["parameters"]) == {17} and set(cost["flops_per_image"]) == {5_177_344}
    trained = cost["trials"] * cost["steps"] * Training().batch_size * 5_177_344
    assert list(cost["training_flops"]) == list(trained)
    compared = pd.read_csv(folder / "tables" / "comparisons.csv", dtype=str)
    assert all(len(seeds.split()) == int(n) for seeds, n in zip(compared["seeds"], compared["n"], strict=True))


@pytest.mark.integration
def test_json_has_the_documented_shape(report):
    content = report[1]
    assert [(g["variant"], g["point"]) for g in content["variants"]] == [(v, p) for p in POINTS for v in KINDS]
    naive, dsd = content["variants"][1:3]
    assert [(s["seed"], s["verdict"], s["state"]) for s in naive["seeds"]] == [
        (0, "shrunk", "done"), (1, None, "diverged"), (2, None, "failed")
    ]  # fmt: skip
    assert naive["metrics"]["latent/std"] | {"sd": 0} == {
        "mean": pytest.approx(0.0101), "sd": 0, "ci_low": None, "ci_high": None, "n": 1, "seeds": (0,)
    }  # fmt: skip
    fid = [1 / 3, 1 / 4, 1 / 5]
    half = 4.302653 * np.std(fid, ddof=1) / np.sqrt(3)
    found = dsd["metrics"][FID]
    assert [found[k] for k in ("mean", "ci_low", "ci_high")] == pytest.approx(
        [np.mean(fid), np.mean(fid) - half, np.mean(fid) + half], rel=1e-6
    )
    assert content["comparisons"]["reference"] == "dsd" and content["effects"] == [] and len(content["cost"]) == 6


@pytest.mark.parametrize("count", [0, 3], ids=["no trials", "only pending ones"])
def test_a_report_without_any_result_is_written_and_says_what_is_missing(count, tmp_path):
    results = [result("dsd", s, "pending") for s in range(count)]
    page, content = write_report(results, SETTINGS, manifest(["dsd"]), tmp_path)
    assert page.figures == [] and "Nothing to draw yet" in (tmp_path / "report.html").read_text()
    assert len(content["variants"]) == min(count, 1)
    assert content["answer"] == ("There is no verdict for dsd (3 pending)." if count else "")
    assert len(content["notices"]) == min(count, 1)


def test_one_seed_of_a_design_gives_means_and_effects_but_no_interval(tmp_path):
    page, content = write_report(designed(FIVE, seeds=1), SETTINGS, manifest(FIVE), tmp_path)
    assert {e["ci_low"] for g in content["variants"] for e in g["metrics"].values()} == {None}
    effects = {(e["effect"], e["metric"]): e for e in content["effects"]}
    whole = effects["all three: naive to DSD", "latent/capacity_bits/token"]
    assert (whole["mean"], whole["ci_low"], whole["n"], whole["share"]) == (4.0, None, 1, None)
    assert (
        "in bits per token: stop-gradient alone +1.00, clean" in content["answer"]
        and "One seed" in content["comparisons"]["conclusions"]
    )
    assert len(pd.read_csv(tmp_path / "tables" / "effects.csv")) == len(content["effects"]) == 39
    assert [d.stem for d in page.figures] == ["verdicts", "curves"]


@pytest.mark.parametrize(
    ("write", "text", "expected"),
    [
        (latex_text, r"50% a_b & #1", r"50\% a\_b \& \#1"),
        (latex_text, r"~^{x}\c", r"\textasciitilde{}\textasciicircum{}\{x\}\textbackslash{}c"),
        (latex_text, "from -1 to a-1", "from $-$1 to a-1"),
        (latex_text, "\u03b1 \u00e9", "[U+03B1] \u00e9"),
        (markdown_text, "_a_ a_b `c` [d](e)\nf", r"\_a\_ a_b \`c\` \[d\](e) f"),
        (markdown_text, "# a", r"\# a"),
        (markdown_text, "- a", r"\- a"),
        (markdown_text, "12. a", r"12\. a"),
        (markdown_text, "-0.5 a", "-0.5 a"),
        (csv_cell, "@a", "'@a"),
        (csv_cell, "+1", "'+1"),
        (csv_cell, -1.5, -1.5),
        (lambda v: shown(v, 2), -0.001, "0.00"),
        (lambda v: shown(v, 2, signed=True), 0.5, "+0.50"),
    ],
)
def test_a_text_is_written_as_its_format_shows_it(write, text, expected):
    assert write(text) == expected


# -- Evaluations ---------------------------------------------------------------------------------------


def test_inception_and_indomain_figures_have_columns_floors_and_notes_of_their_own():
    tail = "n20-cfg1-heun25-balanced-ema0.99"
    names = {extractor: f"fid/{extractor}-{tail}" for extractor in ("indomain", "inception", "inception-ref0badc0de")}
    each = [
        {name: 5.0, f"fid_floor/{e}-balanced-n20": float(i), f"fid_floor/{e}-n395": 9.0}
        for i, (e, name) in enumerate(names.items())
    ]
    evaluations = [(Generation(images=20), metrics) for metrics in each]
    found = [result("dsd", metrics=dict(ChainMap(*each)), evaluations=evaluations)]
    columns = {c.name: c for c in columns_of(found) if not c.is_latent}
    assert set(columns) == set(names.values())
    labels = {e: columns[name].label.partition(" (")[0] for e, name in names.items()}
    assert labels == {
        "indomain": "in-domain FID",
        "inception": "Inception FID",
        "inception-ref0badc0de": "Inception FID",
    }
    assert "not Inception" in columns[names["indomain"]].note and "Inception-v3" in columns[names["inception"]].note
    assert floors_of(found, list(columns.values())) == {name: float(i) for i, name in enumerate(names.values())}


def test_a_floor_that_training_images_fill_up_is_shown_and_a_random_mix_has_its_own():
    names = {labels: f"kid/indomain-n900-cfg1-heun25-{labels}-ema0.99" for labels in ("random", "balanced")}
    each = {
        labels: {name: 5.0, f"kid_floor/indomain-{labels}-withtrain505-n900": floor, "kid_floor/indomain-n395": 9.0}
        for floor, (labels, name) in enumerate(names.items(), 1)
    }
    evaluations = [(Generation(images=900, labels=labels), metrics) for labels, metrics in each.items()]
    found = [result("dsd", metrics=dict(ChainMap(*each.values())), evaluations=evaluations)]
    assert floors_of(found, columns_of(found)) == {names["random"]: 1.0, names["balanced"]: 2.0}


def test_distances_that_cannot_be_trusted_are_told_before_the_numbers():
    how = "indomain-n9-cfg1-heun25-balanced-ema0.99"
    flagged = {f"fid/{how}": 3.0, f"fid_flag/few_images/{how}": 9.0}
    results = [result("dsd", seed, metrics=flagged if seed else {f"fid/{how}": 3.0}) for seed in range(3)]
    told = notices(groups_of(results, SETTINGS), SETTINGS)
    assert [t for t in told if "FID" in t] == [
        "FID of 2 trials (features of an in-domain classifier, 9 images, no guidance, 25 Heun steps, balanced labels, EMA "
        "weights with decay 0.99) is too high: 9 images are fewer than the feature dimensions. Evaluate more images, or "
        "read KID, which has no bias from the number of images."
    ]
    assert not any("flag" in c.name for c in columns_of(results))


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("is/indomain-n9-cfg1", "inception score"),
        ("precision/indomain-n9-cfg1", "precision"),
        ("recall/indomain-n9-cfg1", "recall"),
        ("rfid/inception-n9-ema0.99", "Inception rFID"),
        ("ssim/uniform7-n9-ema0.99", "SSIM"),
        ("probe/knn/train9-n9-ema0.99", "kNN accuracy"),
        ("probe/linear/train9-n9-ema0.99", "linear probe accuracy"),
    ],
)
def test_every_measurement_has_a_column(name, label):
    columns = {c.name: c.label for c in columns_of([result("dsd", metrics={name: 1.0})])}
    assert columns[name].partition(" (")[0] == label


def test_values_under_an_earlier_definition_have_columns_and_notes_of_their_own():
    names = ["psnr/n9-ema0.99", "psnr/perimage-n9-ema0.99", "ssim/n9-ema0.99", "ssim/uniform7-n9-ema0.99", "ssim/wang11-n9-ema0.99"]  # fmt: skip
    found = {c.name: "earlier definition" in c.note for c in columns_of([result("dsd", metrics=dict.fromkeys(names, 1.0))])}  # fmt: skip
    assert [found[n] for n in names] == [True, False, True, True, False]
