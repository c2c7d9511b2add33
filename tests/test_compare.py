"""`dsd-lab compare`: B minus A of what both sweeps have, seed by seed, with what can be concluded and no more."""

import shutil
import statistics

import pytest
from scipy import stats
from sweeping import VARIANTS, run, train_here, write_spec

from dsd_lab.cli.compare import _some
from dsd_lab.cli.main import main
from dsd_lab.errors import BAD_INPUT, OK
from dsd_lab.home.home import Home
from dsd_lab.report.statistics.intervals import hedges_correction, sign_flip_p
from dsd_lab.runs.spool_writer import read_spool

pytestmark = pytest.mark.integration

PROFILES = {
    "short": {"seeds": [0, 1, 2]},
    "long": {"seeds": [1, 2, 3], "base": {"training": {"steps": 18}}},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two profiles of one sweep, which share two seeds, and a sweep of six seeds against another."""
    folder = tmp_path_factory.mktemp("compare")
    home = Home(folder / "home")
    variants = {k: VARIANTS[k] for k in ("dsd", "naive")}
    for profile in PROFILES:
        spec = write_spec(folder / "spec", variants, profiles=PROFILES, profile=profile)
        train_here(home, spec)
    train_here(home, write_spec(folder / "a", {"dsd": {}, "naive": VARIANTS["naive"]}, seeds=list(range(6)), name="a"))
    other = {"dsd": {"optimiser": {"lr": 1e-2}}, "control": VARIANTS["control"]}
    train_here(home, write_spec(folder / "b", other, seeds=list(range(6)), name="b"))
    train_here(home, write_spec(folder / "c", {"control": VARIANTS["control"]}, seeds=[9], name="c"))
    return home


def test_an_error_names_some_of_many_variants():
    assert _some("abcd") == "a; b; c; d" and _some(f"{n}, width=8" for n in range(30)).endswith(
        "3, width=8 and 26 more"
    )


def compare(home, a, b):
    code, answer = run("compare", a, b, "--home", home.root)
    assert code == OK
    return answer, {(row["variant"], row["metric"]): row for row in answer["rows"]}


def capacity(home, key, variant, seed):
    """The median of the last three probes, from the spool."""
    (trial,) = (t for t in home.manifests()[key].trials if (t.variant, t.seed) == (variant, seed))
    lines = [line for line in read_spool(home.trial(trial.id).spool) if line.kind == "probe"]
    return statistics.median([line.metrics["latent/capacity_bits/token"] for line in lines[-3:]])


def test_two_profiles_are_compared_over_the_seeds_that_both_have(home):
    answer, rows = compare(home, "tiny--short", "tiny--long")
    differences = [capacity(home, "tiny--long", "dsd", s) - capacity(home, "tiny--short", "dsd", s) for s in (1, 2)]
    row = rows["dsd", "latent/capacity_bits/token"]
    assert row["n"] == 2 and row["mean"] == pytest.approx(statistics.mean(differences))
    half = stats.t.ppf(0.975, 1) * statistics.stdev(differences) / 2**0.5
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((row["mean"] - half, row["mean"] + half))
    assert row["p"] is None and row["p_holm"] is None and "no p-values are given" in answer["conclusions"]
    assert answer["differing"] == {"training.steps": [[12], [18]]} and answer["same_data"]
    shares = {v["variant"]: (v["seeds"], v["seeds_only_a"], v["seeds_only_b"]) for v in answer["variants"]}
    assert shares == dict.fromkeys(("dsd", "naive"), ([1, 2], [0], [3]))


def test_the_other_order_turns_every_difference_around(home):
    _, forth = compare(home, "tiny--short", "tiny--long")
    _, back = compare(home, "tiny--long", "tiny--short")
    assert forth.keys() == back.keys() and len(forth) > 4
    assert all(back[key]["mean"] == pytest.approx(-row["mean"]) for key, row in forth.items())


def test_from_six_seeds_on_there_is_an_effect_size_and_a_p(home):
    answer, rows = compare(home, "a", "b")
    differences = [capacity(home, "b", "dsd", s) - capacity(home, "a", "dsd", s) for s in range(6)]
    row = rows["dsd", "latent/capacity_bits/token"]
    effect = statistics.mean(differences) / statistics.stdev(differences) * hedges_correction(5)
    assert row["d_z"] == pytest.approx(effect) and row["p"] == sign_flip_p(differences)
    assert row["p_holm"] == row["p"]  # one comparison a quantity
    assert answer["differing"] == {"optimiser.lr": [[0.001], [0.01]]}
    assert (answer["only_a"], answer["only_b"]) == (["naive"], ["control"])


def test_pairs_that_are_one_and_the_same_trial_are_counted_as_such(home):
    answer, rows = compare(home, "a", "tiny--short")
    assert {v["variant"]: v["same_trials"] for v in answer["variants"]} == {"dsd": 3, "naive": 3}
    assert rows["dsd", "latent/capacity_bits/token"]["mean"] == 0


def test_the_table_names_both_sweeps_what_differs_and_every_variant(home, capsys):
    assert main(["compare", "a", "b", "--home", str(home.root)]) == OK
    shown = capsys.readouterr().out
    assert shown.startswith("b minus a, paired by seed")
    assert "optimiser.lr: 0.001 in a, 0.01 in b" in shown and "only in a: naive" in shown
    row = next(line for line in shown.splitlines() if line.startswith("dsd "))
    assert row.split()[1] == "6"


@pytest.mark.parametrize(
    ("a", "b", "complaint"),
    [
        ("a", "a", "are the same sweep, a"),
        ("tiny--short", "c", "share no variant: dsd; naive against control"),
        ("b", "c", "have no seed that is finished in both"),
        ("a", "bb", "no sweep 'bb'"),
    ],
)
def test_what_cannot_be_compared_is_exit_code_2(home, capsys, a, b, complaint):
    assert main(["compare", a, b, "--home", str(home.root)]) == BAD_INPUT
    said = capsys.readouterr().err
    assert complaint in said and len(said.splitlines()) == 1


def test_trials_that_were_imported_are_named_on_either_side(home, tmp_path, capsys):
    shutil.copytree(home.root, tmp_path / "home")
    copy = Home(tmp_path / "home")
    assert compare(copy, "a", "b")[0]["notices"] == []
    folder = copy.trial(copy.manifests()["b"].ids[0])
    folder.mark_imported("b", {}, folder.root)
    assert main(["compare", "a", "b", "--home", str(copy.root)]) == OK
    assert "1 trial imported (b), not trained in this home folder" in capsys.readouterr().out
