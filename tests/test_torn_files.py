"""Evaluations, records of sweeps and caches of a home, removed, empty or torn: named in one line or made anew, and no other trial is kept from its end."""

import shutil
import time

import pytest
from sweeping import EVALUATION, LONG, VARIANTS, events, finish, train_here, write_spec

from dsd_lab.cli.main import main
from dsd_lab.errors import BAD_INPUT, OK, LabError
from dsd_lab.home.exporting import export_sweep
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.runs.data_shelf import DataShelf
from dsd_lab.runs.run_trial import run_trial
from dsd_lab.specs.loading import load_sweep
from dsd_lab.store.mlflow_store import Store
from dsd_lab.store.system_metrics import Sampler

PLACES = ["trials/*/evaluations", "sweeps/*", "cache"]
DAMAGES = ["removed", "empty", "torn"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A home of every kind of file: two finished trials, one interrupted, one imported; a store and a report."""
    folder = tmp_path_factory.mktemp("whole")
    home, other = Home(folder / "home"), Home(folder / "other")
    spec = write_spec(folder, {"dsd": VARIANTS["dsd"], "control": VARIANTS["control"]}, evaluate=[EVALUATION])
    plan = train_here(home, spec)
    train_here(other, write_spec(folder / "elsewhere", seeds=[7], name="other"))
    export_sweep(other, other.manifests()["other"], folder / "exported", weights=False)
    assert main(["import", str(folder / "exported"), "--home", str(home.root)]) == OK
    begun = load_sweep(write_spec(folder / "begun", {"long": LONG}, name="begun"))
    home.write_manifest(manifest_of(begun))
    running = run_trial(home, begun.trials[0], [], DataShelf())
    while next(running).step < 40:
        pass
    home.trial(begun.trials[0].id).write_progress(step=40, seconds=1.0, updated=time.time())
    running.close()
    Sampler(home.sweep_folder("tiny")).sample_when_due()
    Store(home).sync(manifest_of(plan))
    assert main(["report", "tiny", "--home", str(home.root)]) == OK
    return home, spec, plan


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", PLACES)
def test_a_damaged_file_is_named_in_a_line_or_made_anew_and_stops_no_other_trial(
    place, damage, whole, tmp_path, capsys
):
    complete, spec, plan = whole
    ids = [t.id for t in plan.trials]
    expected = {i: events(complete, i) for i in ids}
    files = [p for folder in complete.root.glob(place) for p in folder.glob("**/*" if place == "cache" else "*")]
    files = sorted(p.relative_to(complete.root) for p in files if p.is_file() and not p.name.endswith("lock"))
    assert files
    for name in files:
        home = Home(tmp_path / name)  # another place for each: MLflow keeps connections to the database of the last one
        shutil.copytree(complete.root, home.root, ignore=shutil.ignore_patterns("ray"))
        path = home.root / name
        raw = path.read_bytes()
        path.unlink() if damage == "removed" else path.write_bytes(raw[: len(raw) // 2] if damage == "torn" else b"")
        for verb in (
            ["status"],
            ["status", "tiny"],
            *(["logs", i] for i in ids),
            ["gc"],
            ["rm", "tiny"],
            ["plan", spec],
        ):
            capsys.readouterr()
            code, error = main([*map(str, verb), "--home", str(home.root)]), capsys.readouterr().err
            assert code in (OK, BAD_INPUT), (name, verb, error)
            assert code == OK or (len(error.splitlines()) == 1 and _names(error, path, damage)), (name, verb, error)
        for trial in plan.trials:
            states = finish(home, trial, plan.spec.evaluate)
            if trial.id not in name.parts:
                assert states[-1] == "done", (name, trial.id, home.trial(trial.id).status())
            elif states[-1] == "done":
                assert home.trial(trial.id).evaluations() and events(home, trial.id) == expected[trial.id], name
            else:
                assert "\n" not in home.trial(trial.id).status().error, name
        refusal = _refusal(home, plan)
        assert refusal is None or ("\n" not in refusal and _names(refusal, path, damage)), (name, refusal)


def _refusal(home, plan):
    """The line with which a store refuses a sweep; None where it takes it."""
    try:
        Store(home).sync(manifest_of(plan))
    except LabError as error:
        return str(error)
    return None


def _names(line, path, damage):
    """Whether a line names the damaged file, its folder, or, where there is none, what is missing."""
    return path.name in line or path.parent.name in line or (damage == "removed" and "no such" in line.lower())
