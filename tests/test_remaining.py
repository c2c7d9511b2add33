"""The time left of a sweep, judged on real ones: files under `tests/recorded` hold when each of their trials started,
logged, ended and was evaluated, two at a time, in seconds."""

import json
from pathlib import Path

import numpy as np
import pytest

from dsd_lab.core.diffusion.samplers import SAMPLERS
from dsd_lab.evaluation.metric_names import sampling_name
from dsd_lab.planning import eta
from dsd_lab.planning.estimates import Shape
from dsd_lab.planning.eta import _EVALUATION_OVERHEAD, _STEP_OVERHEAD, TrialProgress
from dsd_lab.planning.flops import count_shape
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.per_seed import once_for_seeds
from dsd_lab.specs.registry import plugins
from dsd_lab.specs.trial import Generation

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parent / "experiments"


shape_of = once_for_seeds(lambda fields: Shape(**count_shape(fields, 1, 10)))


def Remaining(trials, evaluations):
    return eta.Remaining(trials, evaluations, shape_of)


def step_work(fields):
    return eta.step_work(fields, shape_of(fields))


def evaluation_work(fields, evaluation, holdout):
    return eta.evaluation_work(fields, shape_of(fields), evaluation, holdout)


def recorded(name):
    return json.loads((HERE / "recorded" / name).read_text())


def end_of(recording):
    return max(max(r["trained"], (r["evaluated"] or [0, 0])[1]) for r in recording)


RECORDED = recorded("quick_sweep.json")
END = end_of(RECORDED)


def loaded(name):
    """A plan whose evaluations ask for samples alone, as controls were left out when the files were recorded."""
    plan = load_sweep(EXPERIMENTS / f"{name}.yaml")
    plan.spec.evaluate[:] = [e.model_copy(update={"metrics": ["fid"]}) for e in plan.spec.evaluate]
    return plan


@pytest.fixture(scope="module")
def plan():
    return loaded("collapse_ablation")


def seen_at(plan, now, recording=RECORDED):
    """All trials as the home folder showed them at a time."""
    by_name = {(r["variant"], r["seed"], *r.get("point", {}).values()): r for r in recording}
    seen = []
    for trial in plan.trials:
        r = by_name[trial.variant, trial.seed, *trial.point.values()]
        if now < r["started"]:
            seen.append(TrialProgress(trial, "pending", 0, 0.0))
        elif now < r["trained"]:
            begun = r["trained"] - r["seconds"]
            times, steps = zip([begun, 0], *r["logged"], strict=True)
            step = int(np.interp(now, times, steps)) // 20 * 20  # a status is written at a record, every 20 steps
            took = max(0.0, float(np.interp(step, steps, times)) - begun)
            seen.append(TrialProgress(trial, "running", step, took, (), True))
        else:
            evaluated = r["evaluated"] is not None and r["evaluated"][1] <= now
            waiting = r["evaluated"] is not None and not evaluated
            took = (r["evaluated"][0],) if evaluated else ()
            seen.append(TrialProgress(trial, "done", r["logged"][-1][1], r["seconds"], took, waiting))
    return seen


@pytest.mark.parametrize(("spec", "name"), [("collapse_ablation", "quick_sweep"), ("size_scaling", "size_grid")])
def test_the_time_left_of_a_real_sweep_is_right_within_a_fifth_after_its_first_tenth(spec, name):
    plan, recording = loaded(spec), recorded(f"{name}.json")
    remaining, end = Remaining(plan.trials, plan.spec.evaluate), end_of(recording)
    wrong = {}
    for now in range(1, int(end)):
        told = remaining.seconds(seen_at(plan, now, recording), 395)
        left = end - now
        # The last trial ran alone and faster for it, which nobody can know: near the end, 3 % of the whole.
        if now >= 0.1 * end and abs(told - left) > max(0.2 * left, 0.03 * end):
            wrong[now] = (told, left)
    assert not wrong


def test_a_stretched_recording_gives_stretched_times(plan):
    """The estimate knows nothing of this machine."""

    def stretched(r, by):
        evaluated = None if r["evaluated"] is None else [by * x for x in r["evaluated"]]
        times = {k: by * r[k] for k in ("started", "trained", "seconds")}
        return r | times | {"logged": [[by * a, s] for a, s in r["logged"]], "evaluated": evaluated}

    slow = [stretched(r, 10) for r in RECORDED]
    for share in (0.1, 0.5, 0.9):
        fast_left = Remaining(plan.trials, plan.spec.evaluate).seconds(seen_at(plan, share * END), 395)
        slow_left = Remaining(plan.trials, plan.spec.evaluate).seconds(seen_at(plan, share * 10 * END, slow), 395)
        assert slow_left == pytest.approx(10 * fast_left, rel=0.02)


def test_nothing_is_told_before_a_step_is_timed_and_zero_when_all_is_done(plan):
    remaining = Remaining(plan.trials, plan.spec.evaluate)
    assert remaining.seconds([TrialProgress(t, "pending", 0, 0.0) for t in plan.trials]) is None
    assert remaining.seconds(seen_at(plan, END + 1)) == 0.0
    ended = [TrialProgress(t, "failed" if t.seed else "diverged", 3, 1.0) for t in plan.trials]
    assert remaining.seconds(ended) == 0.0


def test_a_shape_that_nobody_has_timed_costs_what_work_of_its_own_width_costs():
    plan = load_sweep(HERE.parent / "experiments" / "size_scaling.yaml")
    timed = {16: 0.010, 64: 0.020}  # seconds a step: a narrow network does not cost a sixteenth of a wide one

    def evaluating(trial):
        return 1e-9 * evaluation_work(trial.fields, plan.spec.evaluate[0], 395)

    def seen(trial):
        width, steps = trial.fields.network.width, trial.fields.training.steps
        if trial.variant == "naive" and width in timed:
            return TrialProgress(trial, "done", steps, timed[width] * steps, (evaluating(trial),))
        return TrialProgress(trial, "pending", 0, 0.0)

    (last,) = (t for t in plan.trials if t.variant == "dsd" and t.fields.network.width == 64 and t.seed == 0)
    others = [t for t in plan.trials if t.variant == "naive"]
    (like,) = (t for t in others if t.fields.network.width == 64 and t.seed == 0)
    trials = [*others, last]
    told = Remaining(trials, plan.spec.evaluate).seconds([seen(t) for t in trials if t.fields.network.width != 32], 395)
    steps = last.fields.training.steps
    a_step = timed[64] * step_work(last.fields) / step_work(like.fields)
    assert told == pytest.approx(steps * a_step + evaluating(last))


def test_trials_wait_for_a_free_place_in_their_order(plan):
    (control, dsd) = ([t for t in plan.trials if t.variant == v] for v in ("control", "dsd"))
    remaining = Remaining(plan.trials, [])
    steps = control[0].fields.training.steps
    seen = [TrialProgress(control[0], "running", steps // 2, 10.0, (), True), TrialProgress(control[1], "running", steps // 2, 10.0, (), True)]  # fmt: skip
    assert remaining.seconds(seen) == pytest.approx(10)
    assert remaining.seconds([*seen, TrialProgress(control[2], "pending", 0, 0.0)]) == pytest.approx(30)
    # An untimed shape costs by its work; two places, so that the longer of the two decides.
    more = step_work(dsd[0].fields) / step_work(control[0].fields)
    assert remaining.seconds([*seen, TrialProgress(dsd[0], "pending", 0, 0.0)]) == pytest.approx(10 + 20 * more)


def test_finished_trials_that_lack_an_evaluation_take_time_and_controls_draw_no_samples(plan):
    everything = [e.model_copy(update={"metrics": None}) for e in plan.spec.evaluate]
    of_control, of_dsd = (evaluation_work(next(t for t in plan.trials if t.variant == v).fields, everything[0], 395) for v in ("control", "dsd"))  # fmt: skip
    assert 0 < of_control < of_dsd / 2
    evaluations = plan.spec.evaluate
    (control, dsd) = (next(t for t in plan.trials if t.variant == v) for v in ("control", "dsd"))
    steps = dsd.fields.training.steps
    for trial, expected in ((control, 0.0), (dsd, None)):
        left = Remaining(plan.trials, evaluations).seconds([TrialProgress(trial, "done", steps, 40.0, (), True)], 395)
        if expected is None:
            a_pass = 40.0 / (steps * step_work(dsd.fields))
            expected = evaluation_work(dsd.fields, evaluations[0], 395) * a_pass
            assert expected > 1
        assert left == pytest.approx(expected)
    timed = [TrialProgress(dsd, "done", steps, 40.0, (7.0,)), TrialProgress(next(t for t in plan.trials if t.variant == "naive"), "done", steps, 40.0, (), True)]  # fmt: skip
    assert Remaining(plan.trials, evaluations).seconds(timed, 395) == 7.0


def test_a_staged_trial_is_counted_stage_by_stage_and_evaluated():
    plan = load_sweep(HERE.parent / "experiments" / "one_network_three_ways.yaml")
    trials = {t.variant: t for t in plan.trials if t.seed == 0}
    passes = {name: step_work(t.fields) - _STEP_OVERHEAD for name, t in trials.items()}
    assert 0.4 < passes["staged"] / passes["modular"] < 0.6  # half trains the autoencoder, half the denoiser alone
    done = TrialProgress(trials["staged"], "done", 1200, 10.0, (), True)
    remaining = Remaining([trials["staged"]], plan.spec.evaluate)
    assert remaining.seconds([done]) > 0
    assert remaining.seconds([TrialProgress(trials["staged"], "done", 1200, 10.0, (3.0,))]) == 0


def test_the_definition_of_a_sampler_says_how_often_it_calls_the_network(plan):
    fields, evaluation = next(t.fields for t in plan.trials if t.variant == "dsd"), plan.spec.evaluate[0]

    def calls(**settings):
        work = evaluation_work(fields, evaluation.model_copy(update=settings), 395) - _EVALUATION_OVERHEAD
        return work / (395 * shape_of(fields).role_flops["denoise"])

    assert [calls(sampler=s, steps=10) for s in ("euler", "heun", "sde")] == [10, 20, 10]
    assert calls(sampler="dopri5", steps=1) == calls(sampler="dopri5", steps=1000) == 150
    assert calls(sampler="heun", steps=10, guidance=2.0) == 40
    SAMPLERS.add("thrice", calls=3)(lambda velocity, z, solver: z)
    SAMPLERS.add("own_steps", calls=2, adaptive=True)(lambda velocity, z, solver: z)
    try:
        assert calls(sampler="thrice", steps=10) == 30 and calls(sampler="own_steps", steps=1) == 50
        names = {sampling_name(Generation(sampler="own_steps", rtol=rtol)) for rtol in (1e-3, 1e-5)}
        assert len(names) == 2, "what an adaptive sampler's samples depend on is in the metric's name"
    finally:
        SAMPLERS.forget(plugins.pop(Path(__file__).stem))
