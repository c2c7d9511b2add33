"""The forecast of collapse: what it sees, what it learns, how honestly it is judged, and what it stops."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sweeping import described, events, run, train_here, write_spec

from dsd_lab.cli import forecast
from dsd_lab.cli.forecast import load_forecast
from dsd_lab.cli.main import main
from dsd_lab.errors import BAD_INPUT, OK
from dsd_lab.home.history import History
from dsd_lab.home.home import Home
from dsd_lab.home.trial_folder import STOPPED
from dsd_lab.report.results import Result
from dsd_lab.report.statistics import forecast_theory
from dsd_lab.report.statistics.forecast_judged import Example, examples_of, fit, judge_forecast, seen_at
from dsd_lab.report.statistics.forecast_theory import THEORY
from dsd_lab.report.statistics.verdicts import Judged
from dsd_lab.runs.early_stopping import FEATURES, LOOKS, Forecast, as_json, early_history, features, from_json
from dsd_lab.runs.ray_engine import run_trials
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.trial import Trial

NAIVE = {"target": "live", "output": "velocity", "loss_space": "velocity"}


def fields(steps=100, **objective):
    return Trial.model_validate({"training": {"steps": steps}, "objective": objective, "probe": {"t_bins": 2}})


def history(**series):
    """Values at steps 0, 2, 4, ...; names with `__` for `/`."""
    rows = [(2 * i, name.replace("__", "/"), v) for name, values in series.items() for i, v in enumerate(values)]
    steps, names, values = zip(*rows, strict=True)
    return History(np.array(steps), np.array(names, dtype=object), np.full(len(rows), -1), np.array(values))


SEEN = {
    "latent__variance": [4.0, 1.0, 0.04, 4e8],  # steps 0, 2, 4 and 6, of which 40 % of 10 steps see 0 to 4
    "latent__effective_rank__token": [8.0, 9.0, 0.8, 80.0],
    "latent__capacity_bits__token": [3.0, 1.0, 0.03, 300.0],
}


def test_features_are_changes_up_to_the_look_and_of_nothing_later():
    assert features(history(**SEEN), 10) == pytest.approx([1.0, -1.0, -2.0])
    assert features(history(**SEEN), 10, LOOKS[1]) == pytest.approx([4.0, 1.0, 2.0])  # 70 % see step 6 too
    assert len(FEATURES) == 3


@pytest.mark.parametrize("name", SEEN)
def test_a_trial_that_recorded_too_little_in_the_window_has_no_features(name):
    assert features(history(**{k: v for k, v in SEEN.items() if k != name}), 10) is None
    assert features(history(**SEEN | {name: [*SEEN[name][:2], math.nan, 1.0]}), 10) is None
    assert features(history(**SEEN), 4) is None  # 40 % of 4 steps have the first probe alone


def test_latents_that_vanish_have_features():
    assert features(history(**{name: [1.0, 0.0] for name in SEEN}), 10) == pytest.approx([4.5, -9.0, -9.0])


def result(trial, objective=None, **series):
    record = described(fields(**(objective or {})).model_dump())
    seen = history(**{**SEEN, **series})
    return Result(trial, "v", {}, 0, "nano8", "done", 100, 100, 1.0, None, {}, seen, description=record)


def test_examples_are_trials_with_a_verdict_and_a_diffusion_loss_each_once():
    results = [result("a"), result("a"), result("b"), result("c", {"diffusion_weight": 0.0}), result("d"), result("e", latent__variance=[math.nan])]  # fmt: skip
    verdicts = ["shrunk", "shrunk", "healthy", "healthy", None, "healthy"]
    found, lacking = examples_of("one", results, [Judged(v, None, True) for v in verdicts], seen_at(LOOKS[0]))
    assert [(e.trial, e.collapsed) for e in found] == [("a", True), ("b", False)] and lacking == 1


def examples(spec, count=20, shift=0.0, noise=0.5, seed=0, flip=False):
    """The first feature tells the end; `flip`: the other way round."""
    random = np.random.default_rng([seed, *spec.encode()])
    found = []
    for i in range(count):
        collapsed = i % 2 == 0
        x = random.normal(size=len(FEATURES))
        x[0] = (1 if collapsed != flip else -1) + noise * x[0] + shift
        found.append(Example(spec, f"{spec}-{i}", x.tolist(), collapsed))
    return found


def test_a_forecast_is_scikit_learns_and_survives_json():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = examples("one")
    table, ended = np.array([e.features for e in known]), [e.collapsed for e in known]
    expected = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(table, ended).predict_proba(table)
    (forecast,) = from_json(json.loads(json.dumps(as_json([fit(known)]))))
    assert [forecast.chance(e.features) for e in known] == pytest.approx(expected[:, 1].tolist())
    with pytest.raises(ValueError, match="another version"):
        from_json(as_json([forecast]) | {"format": 1})


def test_what_tells_the_end_in_every_spec_is_found_and_beats_the_base_rate():
    judged = judge_forecast([e for name in ("one", "two", "three", "four", "five") for e in examples(name)])
    assert judged.auc > 0.9 and judged.brier < 0.15 < judged.brier_base and judged.said == []
    assert sum(row.trials for row in judged.calibration) == judged.trials == 100
    assert all(row.low <= row.mean_chance <= row.high for row in judged.calibration)


def test_noise_is_not_told_apart_and_a_spec_that_is_the_other_way_round_is_forecast_wrongly():
    noise = [Example(e.spec, e.trial, [0.0, *e.features[1:]], e.collapsed) for n in ("a", "b", "c") for e in examples(n, 60)]  # fmt: skip
    assert 0.35 < judge_forecast(noise).auc < 0.65
    flipped = judge_forecast([*examples("one"), *examples("two", flip=True)])
    assert flipped.auc < 0.2 and flipped.brier > flipped.brier_base
    assert any("not reliable" in line for line in flipped.said)


def test_a_trial_of_two_specs_is_never_on_both_sides():
    """The second spec holds the first's trials only; nothing is left to learn from."""
    first = examples("one")
    second = [Example("two", e.trial, e.features, e.collapsed) for e in first]
    judged = judge_forecast([*first, *second])
    assert judged.specs == [] and judged.auc is None and len(judged.said) == 2


def test_a_trial_of_several_specs_counts_once_by_the_mean_of_its_chances():
    """`two` shares four trials with `one`; the same examples under other names of trials would count eight times more."""
    first, third = examples("one"), examples("three")
    shared = [replace(e, spec="two") for e in first[:4]]
    judged = judge_forecast([*first, *examples("two"), *shared, *third])
    assert judged.trials == 60 and sum(row.trials for row in judged.calibration) == 60
    twice = judge_forecast([e for name in ("one", "two", "three") for e in (*examples(name), *examples(name))])
    once = judge_forecast([e for name in ("one", "two", "three") for e in examples(name)])
    assert twice == once


def test_several_looks_are_judged_by_the_highest_chance_as_the_stopper_stops():
    """The second look gives every trial a chance near 1, so that the stopper stops healthy ones too; the first alone is good."""
    names = ("one", "two", "three", "four", "five")
    good = [e for name in names for e in examples(name, noise=0.1)]
    random = np.random.default_rng(1)
    blind = [replace(e, features=random.normal(size=len(FEATURES)).tolist()) for e in good]
    sure = judge_forecast(good)
    both = judge_forecast(good, blind)
    assert sure.auc == 1.0 and both.trials == sure.trials == 100 and both.brier > sure.brier + 0.1
    late = [e for e in good if e.trial.endswith("-3")]  # healthy trials that the second look alone sees
    only = judge_forecast([e for e in good if e not in late], good)
    assert only.trials == 100 and only.auc == 1.0
    assert judge_forecast(good, []).brier == sure.brier


def test_forecasts_are_compared_on_the_trials_that_all_of_them_have():
    names = ("one", "two", "three")
    every = [e for name in names for e in examples(name)]
    some = [e for e in every if not e.trial.endswith("-7")]
    given = dict.fromkeys(forecast_theory.LEARNT | THEORY, every) | {"closed form, from the spec alone": some}
    judged = forecast_theory.judgements(given)
    assert {spec.trials for spec, _ in judged.values()} == {57} and {e.trial for e in some} == {e.trial for e in forecast_theory.compared(given)["closed form, at the first probe"]}  # fmt: skip
    assert judged.keys() == {forecast_theory.STOPPER, *forecast_theory.LEARNT, *THEORY}


def test_what_cannot_be_concluded_names_its_forecasts_unless_it_holds_for_all():
    judged = {"a": (judge_forecast(examples("one")),) * 2, "b": (judge_forecast([]),) * 2}
    assert forecast_theory.remarks({"a": judged["a"]}) == judged["a"][0].said
    assert [line.partition(":")[0] for line in forecast_theory.remarks(judged)] == ["a", "b"]


@pytest.mark.parametrize(
    ("late", "said"),
    [
        (lambda e: e.features, "is worth"),
        (lambda e: [-5 * x if e.spec == "one" else x for x in e.features], "is not worth"),
    ],
)
def test_whether_it_is_worth_stopping_by_is_decided_on_all_looks(tmp_path, monkeypatch, late, said):
    """Later looks that are sure and wrong about one spec make the stopper stop its healthy trials, however good the first look is."""
    taught = [
        replace(e, data=name) for name in ("one", "two", "three", "four", "five") for e in examples(name, noise=0.1)
    ]
    monkeypatch.setattr(Home, "manifests", lambda home: {"one": None})
    own = [SimpleNamespace(id=e.trial, imported=None) for e in taught]
    monkeypatch.setattr(forecast, "_sweeps", lambda homes: [("one", own, None)])
    first, *later = forecast_theory.LEARNT
    noisy = [replace(e, features=late(e)) for e in taught]
    every = {first: taught} | dict.fromkeys(later, noisy) | dict.fromkeys(THEORY, taught)
    monkeypatch.setattr(forecast_theory, "all_examples", lambda sweeps: (every, dict.fromkeys(every, 0)))
    answer = run("forecast", "--home", tmp_path)[1]
    assert any(f"The forecast {said} stopping trials by" in line for line in answer["said"])
    assert answer["leave_one_spec_out"] == next(r["spec_out"] for r in answer["forecasts"] if r["name"] == forecast_theory.STOPPER)  # fmt: skip
    assert json.loads((tmp_path / "forecast.json").read_text())["judged"] == answer["leave_one_spec_out"]


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ([], "It cannot be evaluated: there are trials of 0 specs"),
        (examples("one"), "It cannot be evaluated: there are trials of 1 spec,"),
        ([*examples("one"), *examples("two")], "Only 2 specs were left out"),
        ([e for e in (*examples("one"), *examples("two")) if e.collapsed], "cannot be forecast"),
    ],
)
def test_few_specs_are_said_to_be_few_or_to_judge_nothing(known, said):
    assert said in " ".join(judge_forecast(known).said)


def test_a_data_set_is_left_out_as_a_spec_is():
    """What tells the end on one set is the other way round on the second, though every spec has trials of both."""
    both = [replace(e, data="even") for s in ("one", "two") for e in examples(s)]
    both += [replace(e, data="odd", trial=f"{e.trial}-odd") for s in ("one", "two") for e in examples(s, flip=True)]
    judged = judge_forecast(both, by_data=True)
    assert judged.specs == ["even", "odd"] and judged.auc < 0.2
    assert "trials of 1 data set, " in judge_forecast(examples("one"), by_data=True).said[0]


@pytest.mark.parametrize(
    ("objective", "sign"),
    [
        (NAIVE, 1),
        (NAIVE | {"target": "stop_gradient"}, 1),  # below a std of 1
        ({"target": "live", "output": "clean", "loss_space": "clean"}, 1),
        ({"target": "ema", "output": "clean", "loss_space": "clean"}, -1),
        ({"target": "stop_gradient", "noised": "detached"}, 0),
    ],
)
def test_the_closed_forms_forecast_from_the_spec_alone_and_from_probes_direction_by_direction(objective, sign):
    trial = result("a", objective)
    assert np.sign(THEORY["closed form, from the spec alone"](trial)) == [sign]
    rows = [(step, name, i, v) for step, slopes in ((0, (1.0, -2.0, 9.0)), (14, (-1.0, -1.0, 9.0)), (40, (1.0, 1.0, 9.0))) for name, values in (("spectrum/scale_gradient/token", slopes), ("spectrum/scale_std/token", (0.5, 0.4, 1e-9)), ("spectrum/token", (0.25, 0.16, 1e-18))) for i, v in enumerate(values)]  # fmt: skip
    steps, names, index, values = (np.array(part) for part in zip(*rows, strict=True))
    trial = replace(trial, history=History(steps, names.astype(object), index, values))
    assert THEORY["closed form, at the first probe"](trial) == [sign]
    reached = sign != 0
    for when, expected in (("the first probe", 0.0), ("15% of the steps", -1.0), ("40% of the steps", 1.0)):
        assert THEORY[f"measured derivative, at {when}"](trial) == [expected if reached else 0.0]


def test_all_that_ended_alike_gives_no_forecast():
    assert fit([e for e in examples("one") if e.collapsed]) is None


# -- The verb and the stopper ----------------------------------------------------------------------------

LONG = {
    "training": {"steps": 400, "batch_size": 8},
    "probe": {"every": 10, "images": 16, "t_bins": 2, "gradient_images": 0, "scale_images": 16},
    "observation": {"log_every": 5, "checkpoint_every": 100, "images_every": 400, "images": 4},
}
EARLY, LATER = 0.05, 0.15
SURE = Forecast(EARLY, [0.0] * 3, [1.0] * 3, [0.0] * 3, 5.0)
"""Says 0.993 of everything."""
UNSURE = Forecast(EARLY, [0.0] * 3, [1.0] * 3, [0.0] * 3, 0.0)


def test_early_history_of_a_spool_is_the_trials_own(tmp_path):
    home = Home(tmp_path / "home")
    (trial,) = train_here(home, write_spec(tmp_path, base=LONG | {"training": {"steps": 40}})).trials
    found = early_history(home.trial(trial.id).spool, 20)
    steps, values = found.series("train/diffusion")
    lines = [e for e in events(home, trial.id) if e["kind"] == "train" and e["step"] <= 20]
    assert steps.tolist() == [5, 10, 15, 20] and values.tolist() == [e["metrics"]["train/diffusion"] for e in lines]
    assert features(early_history(tmp_path / "nothing", 20), 40) is None


@pytest.mark.slow
def test_the_verb_judges_over_the_specs_of_its_homes_and_writes_what_the_sweep_reads(tmp_path):
    """Naive training shrinks the latents at one learning rate; at the other they stay where they began."""
    variants = {name: {"objective": NAIVE, "optimiser": {"lr": lr}} for name, lr in (("still", 1e-7), ("naive", 1e-2))}
    base = LONG | {"training": {"steps": 40, "batch_size": 8}, "observation": {"log_every": 1}, "probe": {"every": 10}}
    homes = []
    for name in ("one", "two"):
        home = Home(tmp_path / name)
        data = {"data": {"revision": name}}  # the same images; other trials
        bounds = {"control": None, "shrunk_std": 0.4, "rank_bound": 0.01}
        train_here(home, write_spec(tmp_path / f"spec-{name}", variants, name=name, seeds=[0, 1], base=base | data, report=bounds))  # fmt: skip
        homes.append(home.root)
    code, answer = run("forecast", homes[1], "--home", homes[0])
    assert code == OK and (answer["trials"], answer["collapsed"]) == (8, 4)
    judged = answer["leave_one_spec_out"]
    assert judged["specs"] == ["one", "two"] and judged["auc"] == 1.0 and judged["brier"] < judged["brier_base"]
    assert any("Only 2 specs were left out" in line for line in answer["said"])
    assert [f.look for f in load_forecast(Home(homes[0]))] == answer["looks"] == list(LOOKS)
    assert list(answer["weights"]) == list(FEATURES)
    assert answer["leave_one_data_set_out"]["auc"] is None  # both homes' images are the digits
    by_name = {row["name"]: row for row in answer["forecasts"]}
    assert by_name.keys() >= THEORY.keys() and by_name["closed form, from the spec alone"]["spec_out"]["auc"] == 0.5
    assert any("is not known" in line for line in answer["said"])
    alone = run("forecast", "--home", homes[1])[1]
    assert alone["leave_one_spec_out"]["auc"] is None and "cannot be evaluated" in alone["said"][0]


@pytest.mark.slow
def test_a_stopped_trial_says_so_is_not_done_and_goes_on_in_a_sweep_that_stops_nothing(tmp_path):
    home = Home(tmp_path / "home")
    control = {"objective": {"diffusion_weight": 0.0}, "training": {"steps": 20}}
    spec = write_spec(tmp_path, {"control": control, "naive": {"objective": NAIVE}}, base=LONG)
    assert main(["sweep", str(spec), "--stop-collapsed", "0.9", "--home", str(home.root)]) == BAD_INPUT
    home.prepare()
    (home.root / "forecast.json").write_text(json.dumps(as_json([UNSURE, replace(SURE, look=LATER)])))
    code, answer = run("sweep", spec, "--stop-collapsed", "0.9", "--home", home.root)
    states = {t["name"]: t["state"] for t in answer["trials"]}
    ids = {t["name"]: t["id"] for t in answer["trials"]}
    assert code == OK and states == {"control s0": "done", "naive s0": STOPPED}
    status = home.trial(ids["naive s0"]).status()
    assert 60 <= status.step < 160 and "first 60 steps give a chance of collapse of 0.993" in status.error
    again = run("sweep", spec, "--stop-collapsed", "0.9", "--no-tracking", "--home", home.root)[1]
    assert {t["name"]: t["state"] for t in again["trials"]} == states
    code, report = run("report", "--home", home.root)
    assert code == OK and any("1 trial stopped early" in n for n in report["notices"])
    assert {v["variant"]: v["healthy"]["of"] for v in report["variants"]} == {"control": 1, "naive": 0}
    train_here(home, spec)
    folder = home.trial(ids["naive s0"])
    assert folder.state() == "done" and folder.status().error is None


@pytest.mark.slow
def test_a_chance_below_the_asked_one_stops_nothing(tmp_path):
    home = Home(tmp_path / "home")
    home.prepare()
    trials = load_sweep(write_spec(tmp_path, {"naive": {"objective": NAIVE}}, base=LONG)).trials
    run_trials(home, trials, [], stop_collapsed=([SURE], 0.999))
    assert home.trial(trials[0].id).state() == "done"


def test_a_forecast_says_which_of_its_trials_were_imported(tmp_path, monkeypatch):
    taught = [e for name in ("one", "two", "three") for e in examples(name)]
    monkeypatch.setattr(Home, "manifests", lambda home: {"one": None})
    imported = [SimpleNamespace(id=i, imported={}) for i in (taught[0].trial, "0" * 12)]
    own = [SimpleNamespace(id=e.trial, imported=None) for e in taught[1:]]
    monkeypatch.setattr(forecast, "_sweeps", lambda homes: [("one", [*imported, *own], None)])
    every = dict.fromkeys(forecast_theory.LEARNT | forecast_theory.THEORY, taught)
    monkeypatch.setattr(forecast_theory, "all_examples", lambda sweeps: (every, dict.fromkeys(every, 0)))
    assert "1 of the trials are imported" in " ".join(run("forecast", "--home", tmp_path)[1]["said"])
