"""What predicts samples and collapse: VIV beside FID, signs before a slow collapse, ranks after their differential, guidance."""

import math
from dataclasses import replace

import numpy as np
import pytest
from sweeping import described
from test_report import HEALTHY, result

from dsd_lab.home.history import History
from dsd_lab.report.figures.early_signs import early_signs
from dsd_lab.report.figures.normalisers import joint_trials, normalisers, published_ratios
from dsd_lab.report.figures.style import looks_of, notes_of
from dsd_lab.report.figures.viv import viv
from dsd_lab.report.groups import groups_of
from dsd_lab.report.statistics.early_signs import SIGNS, courses, sign_table
from dsd_lab.report.statistics.guidance import guidance_table, guided
from dsd_lab.report.statistics.rank_lag import SIGNALS, correlation, lag_table
from dsd_lab.report.statistics.viv import explained, sampled, viv_of, viv_table
from dsd_lab.specs.report import ReportSettings
from dsd_lab.specs.trial import Generation, Trial

SETTINGS = ReportSettings(probes=1)
FID = "fid/indomain-n9"
VELOCITY = {"output": "velocity", "loss_space": "velocity"}


def rows_of(steps, **series):
    """History of values a step; `a__b` is the name a/b, lists of lists are spectra."""
    rows = []
    for name, values in series.items():
        for step, value in zip(steps, values, strict=True):
            each = enumerate(value) if isinstance(value, list | tuple | np.ndarray) else [(-1, value)]
            rows += [(step, name.replace("__", "/"), i, float(v)) for i, v in each]
    at, names, index, values = zip(*rows, strict=True)
    return History(np.array(at), np.array(names, dtype=object), np.array(index), np.array(values))


# -- VIV -------------------------------------------------------------------------------------------------


def trial(variant, seed, std, fid, **more):
    """Eight directions of one std: VIV is 8 (pi/2) std."""
    made = result(variant, seed, std=std, metrics={FID: fid}, **more)
    series = {
        "latent__variance": [std**2],
        "latent__effective_rank__token": [HEALTHY["token"]],
        "latent__effective_rank__image": [HEALTHY["image"]],
        "latent__capacity_bits__token": [4 * math.log2(1 + std**2)],
        "latent__probe_images": [256.0],
        "spectrum__token": [[std**2] * 8],
    }
    return replace(made, history=rows_of([30], **series))


def ablation():
    """Healthy FID grows with VIV; what shrank has the least VIV and the worst FID."""
    healthy = [trial(name, seed, std, 2 * std + 0.01 * seed) for name, std in (("control", 1.0), ("a", 1.1), ("b", 1.3)) for seed in (0, 1, 2)]  # fmt: skip
    return healthy + [trial(name, seed, std, fid) for name, std, fid in (("dead", 0.02, 40.0), ("dying", 0.05, 20.0)) for seed in (0, 1, 2)]  # fmt: skip


def test_viv_comes_from_the_recorded_spectrum_and_misleads_only_where_latents_died():
    assert viv_of(ablation()[0], 1) == pytest.approx(8 * math.pi / 2)
    groups = groups_of(ablation(), SETTINGS)
    (((data, fid), trials),) = sampled(groups, SETTINGS).items()
    assert (data, fid) == ("digits", FID) and sum(t.healthy for t in trials) == 9 and len(trials) == 15
    healthy, every = explained([t for t in trials if t.healthy], ["viv"]), explained(trials, ["viv"])
    assert healthy.pearson > 0.99 and every.pearson < -0.9
    x = np.log10([t.viv for t in trials])
    y = np.log10([t.fid for t in trials])
    assert every.pearson == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert every.r2 == pytest.approx(every.pearson**2) and every.left_out < every.r2
    assert explained(trials[:4], ["viv"]).pearson is None  # too few
    figure = viv(groups, looks_of(groups, "control"), SETTINGS)
    assert [a.get_xlabel() for a in figure.axes] == ["VIV", "capacity, bits per token", "FID by VIV and capacity"]
    table = viv_table(groups, SETTINGS)
    assert [row[0].text for row in table.rows] == ["VIV", "capacity", "VIV and capacity"]
    assert table.rows[0][1].text.startswith("+") and table.rows[0][3].text.startswith("-")


def test_a_trial_of_two_sweeps_counts_once_and_two_kinds_of_fid_share_no_axis():
    other = replace(trial("a", 7, 1.0, 3.0), metrics={"fid/turns-n9": 3.0})
    groups = groups_of([*ablation(), other], SETTINGS)
    found = sampled([*groups, *groups], SETTINGS)
    assert {fid: len(trials) for (_, fid), trials in found.items()} == {FID: 15, "fid/turns-n9": 1}


def test_variants_beyond_the_palette_are_coloured_by_verdict_and_few_variants_predict_nothing():
    """Nine variants and eight colours: two would look alike."""
    names = [f"v{i}" for i in range(9)]
    trials = [trial(name, seed, 1 + 0.1 * i, 2 + i + 0.1 * seed) for i, name in enumerate(names) for seed in (0, 1)]
    groups = groups_of([*trials, trial("dead", 0, 0.02, 40.0), trial("control", 0, 1.0, 3.0)], SETTINGS)
    figure = viv(groups, looks_of(groups, "control"), SETTINGS)
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {"healthy", "shrunk"} and "Colours are those of the verdicts" in notes_of(figure)
    few = groups_of(ablation(), SETTINGS)
    figure = viv(few, looks_of(few, "control"), SETTINGS)
    assert {text.get_text() for text in figure.legends[0].get_texts()} >= {"control", "a", "dead"} and notes_of(
        figure
    ) == ""
    (trials,) = sampled(few, SETTINGS).values()
    two = [t for t in trials if t.variant in ("a", "dead")]
    assert explained(two, ["viv"]).r2 is not None and explained(two, ["viv"]).left_out is None
    lone = [t for t in trials if t.variant == "a"] + [
        next(t for t in trials if t.variant == v) for v in ("dead", "dying")
    ]
    assert len(lone) == 5 and explained(lone, ["viv", "capacity"]).left_out is None  # without `a` two trials are left


# -- Slow collapse ---------------------------------------------------------------------------------------

PROBED = list(range(0, 100, 10))


def course(variant, seed, ranks, gradient, gap):
    """A trial whose ranks, measured derivative and rank gap are given probe by probe."""
    objective = {"diffusion_weight": 0.0} if variant == "control" else {"target": "stop_gradient", "output": "clean", "loss_space": "clean"}  # fmt: skip
    made = result(variant, seed, objective=objective)
    fields = Trial.model_validate({"objective": objective, "probe": {"t_bins": 1}}).model_dump()
    series = {
        "latent__variance": [1.0] * 10,
        "latent__effective_rank__token": ranks,
        "latent__effective_rank__image": [20.0] * 10,
        "latent__capacity_bits__token": [4.0] * 10,
        "latent__probe_images": [256.0] * 10,
        "theory__scale_gradient__token": gradient,
        "rank_gap__t0": gap,
    }
    return replace(made, description=described(fields), history=rows_of(PROBED, **series))


FALLING = [6, 6, 5, 5, 4, 4, 2.9, 2.8, 2.7, 2.6]


def slow():
    control = course("control", 0, [6.0] * 10, [0.0] * 10, [0.0] * 10)
    sign = [-1, -1, -1, 1, 1, 1, 1, 1, 1, 1]
    falls = course("falls", 0, FALLING, sign, [1] * 10)
    holds = course("holds", 0, [6, 5.8, 5.6, 5.4, 5.2, 5.0, 4.8, 4.6, 4.4, 4.2], [1] * 10, [-1] * 10)
    return groups_of([control, falls, holds], SETTINGS)


def test_a_slow_collapse_is_dated_and_the_sign_that_came_first_is_counted_by_its_lead():
    groups = slow()
    falls, holds = (courses(groups, SETTINGS)[name][0] for name in ("falls", "holds"))
    assert falls.crossed_at == 60 and falls.margins[6] == pytest.approx(2.9 / 3)
    assert falls.first["scale gradient above 0, measured"] == 30 and falls.first["rank gap below 0"] is None
    assert falls.known == {"scale gradient above 0, measured", "rank gap below 0"}
    assert holds.crossed_at is None and holds.slope < 0
    later = holds.steps[-1] + 1000 * math.log10(holds.margins[-1]) / -holds.slope
    assert holds.projected == pytest.approx(later) and later > 90
    table = sign_table(groups, SETTINGS, dict.fromkeys(("control", "falls", "holds"), "#000000"))
    by_name = {row[0].text: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert by_name["falls"]["crossed"].text == "1 of 1" and by_name["holds"]["crossed"].text == "0 of 1"
    found = by_name["falls"]["scale gradient above 0, measured"]
    assert (found.text, found.detail) == ("1 of 1", "30 steps before")
    assert by_name["holds"]["rank gap below 0"].detail == "(1 of 1 others, 1 at the end)"  # a false alarm so far
    assert "steps before" not in by_name["falls"]["rank gap below 0"].detail
    figure = early_signs(groups, looks_of(groups, "control"), SETTINGS)
    assert len(figure.axes) == 1 + 2 < 1 + len(SIGNS)


def test_a_sign_that_came_with_the_crossing_is_no_early_sign_and_one_that_went_out_was_a_false_alarm():
    control = course("control", 0, [6.0] * 10, [0.0] * 10, [0.0] * 10)
    early, late = [-1] * 2 + [1] * 8, [-1] * 6 + [1] * 4
    others = [course("falls", seed, FALLING, sign, [1] * 10) for seed, sign in enumerate((early, late))]
    controls = [replace(control, id=f"control{seed}", seed=seed) for seed in (0, 1)]
    went_out = course("holds", 0, [6.0] * 10, [-1, -1, 1, 1, -1, -1, -1, -1, -1, -1], [1] * 10)
    groups = groups_of([*controls, *others, went_out], SETTINGS)
    rows = {row[0].text: row for row in sign_table(groups, SETTINGS, dict.fromkeys(("falls", "holds"), "#000000")).rows}
    place = 4 + list(SIGNS).index("scale gradient above 0, measured")
    assert (rows["falls"][place].text, rows["falls"][place].detail) == ("1 of 2", "40 steps before")  # of one trial
    assert rows["holds"][place].detail == "(1 of 1 others, 0 at the end)"
    frame = sign_table(groups, SETTINGS, dict.fromkeys(("falls", "holds"), "#000000")).frame.set_index(
        ["variant", "seed"]
    )
    assert bool(frame.loc[("holds", 0), "ever: scale gradient above 0, measured"])


def test_the_closed_form_is_a_sign_at_every_probe_and_not_at_some_of_them():
    """100 probes, of which the table of theory compares 40."""
    steps = list(range(0, 1000, 10))
    fields = Trial.model_validate({"objective": {"target": "live"} | VELOCITY}).model_dump()
    std = [[2.0, 1.0]] * 100
    history = rows_of(steps, spectrum__scale_gradient__token=std, spectrum__scale_std__token=std)
    found, values = SIGNS["scale gradient above 0, closed form"](replace(result("a"), description=described(fields), history=history))  # fmt: skip
    assert found.tolist() == steps and values == pytest.approx(np.pi / 2 * 1.5)


# -- Rank after its differential -------------------------------------------------------------------------


def ranked(seed, rank, signal, online, held, size, variant="dsd", **objective):
    """A trial of given ranks, signals, and log std by direction, probe by probe."""
    steps, count = list(range(0, 10 * len(rank), 10)), len(rank)
    fields = Trial.model_validate({"objective": {"target": "ema"} | objective, "probe": {"t_bins": 1}}).model_dump()
    series = {
        "latent__effective_rank__token": rank,
        "theory__rank_differential__token": signal,
        "theory__rank_differential__online": online,
        "spectrum__token": list(np.exp(2 * size)),
        "spectrum__rank_differential__target__token": [np.ones(held.shape[1])] * count,
        "spectrum__rank_differential__prediction__token": list(np.exp(-held)),
    }
    return replace(result(variant, seed), description=described(fields), history=rows_of(steps, **series))


def follows(seed, lag, sign=1, level=0.0, **objective):
    """The rank moves by a signal, `lag` probes after the next one; directions grow by what the predictor holds back."""
    random = np.random.default_rng(seed)
    signal, held = random.normal(size=60), random.normal(size=(60, 4))
    change = np.zeros(60)
    change[lag + 1 :] = sign * signal[: 59 - lag]
    size = np.cumsum(np.vstack([np.zeros((2, 4)), 0.1 * sign * held[:-2]]), axis=0)
    return ranked(seed, level + np.cumsum(change), signal, random.normal(size=60), held, size, **objective)


def means(trials):
    return lag_table(groups_of(trials, SETTINGS)).frame.set_index(["signal", "lag"])["mean"]


DIFFERENTIAL, ONLINE, DIRECTIONS = "rank differential, training times", "target minus online rank", "by direction: what the predictor holds back"  # fmt: skip


@pytest.mark.parametrize(("lag", "sign"), [(1, 1), (2, 1), (1, -1)])
def test_a_lag_and_a_sign_are_found_within_trials_and_not_between_them(lag, sign):
    found = means([follows(seed, lag, sign, level=100.0 * seed) for seed in range(8)])
    other = {1: 2, 2: 1}[lag]
    assert sign * found[DIFFERENTIAL, lag] > (0.95 if lag == 1 else 0.6)
    assert found[DIFFERENTIAL, other] == pytest.approx(0 if lag == 2 else 0.68 * sign, abs=0.1)
    assert sign * found[DIRECTIONS, 1] > 0.95 and abs(found[ONLINE, lag]) < 0.15
    assert ("rank gap, mean over t", 1) not in found.index  # not recorded


def test_ranks_that_only_jitter_have_no_correlation_with_what_follows():
    """Every signal has the rank of its own probe in it: a change from that probe on would correlate at -0.7 or +0.7."""
    trials, naive = [], []
    for seed in range(40):
        random = np.random.default_rng(seed)
        rank, size = 6 + random.normal(size=60), random.normal(size=(60, 4))
        trials.append(ranked(seed, rank, rank - 3, 6 - rank, size, size))
        naive.append(correlation((rank[1:-1], np.diff(rank)[1:])))
    assert np.mean(naive) < -0.6
    found = means(trials)
    assert len(found) == 3 * 4 and found.abs().max() < 0.06


def test_only_trials_that_the_loss_trains_count_and_each_once():
    detached = {"noised": "detached"}
    trials = [follows(0, 1), follows(1, 1), follows(2, 1, variant="off", **detached)]
    trials.append(follows(3, 1, variant="scaled to 0", encoder_gradient=0.0))
    groups = groups_of(trials, SETTINGS)
    table = lag_table([*groups, *groups])
    assert set(table.frame["trials"]) == {2} and "n 2" in table.rows[0][1].detail
    assert set(lag_table(groups, reached=False).frame["trials"]) == {4}
    through_target = follows(4, 1, variant="target", target="live", **detached)
    assert set(lag_table(groups_of([*trials, through_target], SETTINGS)).frame["trials"]) == {3}


def test_short_trials_and_those_without_spread_have_no_correlation():
    short = replace(follows(0, 1), history=follows(0, 1).history.__class__.empty())
    assert lag_table(groups_of([short], SETTINGS)) is None
    assert correlation((np.ones(9), np.arange(9.0))) is None and correlation((np.arange(3.0), np.arange(3.0))) is None
    assert correlation((np.arange(9.0), -np.arange(9.0))) == pytest.approx(-1)
    assert set(SIGNALS) >= {"target minus online rank"}


# -- Across normalisers ----------------------------------------------------------------------------------


def joint(variant, seed, normaliser, objective, std, fid, decoded="normalised", sweep="one"):
    fields = Trial.model_validate({"latent": {"normaliser": normaliser, "decoded": decoded}, "objective": objective}).model_dump()  # fmt: skip
    made = result(variant, seed, point={"latent.normaliser": normaliser}, std=std, metrics={FID: fid} if fid else {})
    return replace(made, id=f"{made.id} {normaliser} {sweep}", sweep=sweep, description=described(fields))


def cells(sweep="one", scale=1.0):
    live, detached = {"target": "live"} | VELOCITY, {"target": "stop_gradient", "noised": "detached"} | VELOCITY
    found = []
    for seed in (0, 1):
        for normaliser, std, fid in (("none", 0.05, 60.0), ("layernorm", 0.9, 3.0)):
            found += [
                joint("control", seed, normaliser, {"diffusion_weight": 0.0}, 1.0, None, sweep=sweep),
                joint("live", seed, normaliser, live, std, scale * fid, sweep=sweep),
                joint("detached", seed, normaliser, detached, 1.0, 2.0 + seed, sweep=sweep),
            ]
    return found


def test_joint_training_stands_beside_its_detached_partner_of_the_same_seed_and_normaliser():
    groups = groups_of(cells(), SETTINGS)
    found = joint_trials(groups, SETTINGS)
    assert [(j.normaliser, j.fid, j.verdict) for j in found] == [("none", 30.0, "shrunk"), ("none", 20.0, "shrunk"), ("layernorm", 1.5, "healthy"), ("layernorm", 1.0, "healthy")]  # fmt: skip
    assert found[0].std == pytest.approx(0.05) and found[0].rank == 1
    figure = normalisers(groups, looks_of(groups, "control"), SETTINGS)
    assert [t.get_text() for t in figure.axes[2].get_xticklabels()] == ["none", "layernorm"]
    assert normalisers([g for g in groups if g.point["latent.normaliser"] == "none"], {}, SETTINGS) is None
    assert published_ratios() == {"REPA-E": pytest.approx(444.1 / 16.3), "SpeeDiff": pytest.approx(33.95 / 14.21)}


def test_sweeps_that_share_variants_seeds_and_points_keep_their_own_partners_and_a_shared_trial_counts_once():
    """The second profile's joint FIDs are ten times as high; each is divided by its own sweep's partner."""
    groups = [g for results in (cells(), cells("two", 10.0), cells()) for g in groups_of(results, SETTINGS)]
    found = joint_trials(groups, SETTINGS)
    assert [j.fid for j in found] == [30.0, 20.0, 1.5, 1.0, 300.0, 200.0, 15.0, 10.0]
    other = [replace(r, metrics={FID: 100.0}) if r.variant == "detached" else r for r in cells("two")]
    pooled = joint_trials([*groups_of(cells(), SETTINGS), *groups_of(other, SETTINGS)], SETTINGS)
    assert [j.fid for j in pooled] == [30.0, 20.0, 1.5, 1.0, 0.6, 0.6, 0.03, 0.03]


# -- Guidance --------------------------------------------------------------------------------------------


def test_a_seed_has_the_scale_that_the_other_seeds_rank_best():
    """Seeds 0 and 1 are best at 2, seed 2 at 1; for seed 0 the others' mean is best at 1."""
    fids = {0: {1.0: 5.0, 2.0: 1.0}, 1: {1.0: 3.0, 2.0: 2.0}, 2: {1.0: 1.0, 2.0: 9.0}}
    results = []
    for seed, by_scale in fids.items():
        evaluations = [(Generation.model_validate({"guidance": scale}), {f"fid/x-cfg{scale:g}": fid, f"recall/x-cfg{scale:g}": 1 / scale}) for scale, fid in by_scale.items()]  # fmt: skip
        results.append(result("dsd", seed, evaluations=evaluations))
    groups = groups_of(results, SETTINGS)
    (found,) = guided(groups[0])
    assert found.chosen == {0: 1.0, 1: 1.0, 2: 2.0}
    table = guidance_table(groups, {"dsd": "#000000"})
    shown = table.frame.set_index(["guidance", "metric"])["mean"]
    assert shown["chosen by the other seeds", "fid"] == pytest.approx((5 + 3 + 9) / 3)
    assert shown["none", "fid"] == pytest.approx(3) and shown["chosen by the other seeds", "recall"] == pytest.approx(
        2.5 / 3
    )
    ends = table.frame[table.frame["metric"] == "recall"]
    assert ends["ci_low"].min() > 0 and ends["ci_high"].max() == 1  # a share
    alone = guidance_table(groups_of(results[:1], SETTINGS), {"dsd": "#000000"})
    assert "too low" in alone.note and guidance_table(groups_of([result("dsd")], SETTINGS), {}) is None


def test_a_scale_that_a_seed_lacks_is_left_out_and_named():
    """At 3 only seed 0 was evaluated, and at 4 seed 1 has no finite FID; both are better than the scales that are shown."""
    fids = {0: {1.0: 5.0, 2.0: 4.0, 3.0: 1.0, 4.0: 1.0}, 1: {1.0: 5.0, 2.0: 4.0, 4.0: math.nan}}
    results = [result("dsd", seed, evaluations=[(Generation.model_validate({"guidance": scale}), {f"fid/x-cfg{scale:g}": fid}) for scale, fid in by_scale.items()]) for seed, by_scale in fids.items()]  # fmt: skip
    groups = groups_of(results, SETTINGS)
    (found,) = guided(groups[0])
    assert sorted(found.values) == [1.0, 2.0] and found.incomplete == {3.0: [1], 4.0: [1]}
    assert "left out: dsd at 3 (seed 1); dsd at 4 (seed 1)." in guidance_table(groups, {"dsd": "#000000"}).note
