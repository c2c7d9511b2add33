"""Stores of others: what a foreign run says is passed over with a notice, and nothing of it replaces one's own results."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow.entities import Metric, RunTag
from sweeping import run

from dsd_lab.cli.main import main
from dsd_lab.errors import OK
from dsd_lab.files.bounded import read_json_object
from dsd_lab.home.history import write_history
from dsd_lab.home.home import Home
from dsd_lab.store.faults import StoreUnavailable
from dsd_lab.store.mlflow_store import Store
from dsd_lab.store.own_runs import invalid_tag
from dsd_lab.store.reading import damage

pytestmark = pytest.mark.integration

KEPT = Path(__file__).parent / "fixtures" / "home-schema1" / "home"


@pytest.fixture
def home(tmp_path):
    shutil.copytree(KEPT, tmp_path / "home")
    return Home(tmp_path / "home")


@pytest.fixture
def store(home):
    """The home's store, brought up to its files."""
    made = Store(home)
    made.sync(home.manifests()["old"])
    return made


def done_of(home):
    return next(p.name for p in sorted(home.root.glob("trials/*")) if home.trial(p.name).state() == "done")


def run_of(store, trial):
    experiment = store.client.get_experiment_by_name("old").experiment_id
    (found,) = store.client.search_runs([experiment], f"tags.`dsd.kind` = 'trial' and tags.`dsd.trial` = '{trial}'")
    return found


def foreign(store, experiment="old", start=None, **tags):
    """A run that somebody else has put into the store."""
    client = store.client
    found = client.get_experiment_by_name(experiment)
    place = found.experiment_id if found else client.create_experiment(experiment)
    made = client.create_run(
        place, start_time=start, tags={"dsd.kind": "trial"} | {f"dsd.{k}": v for k, v in tags.items()}
    )
    client.log_batch(made.info.run_id, metrics=[Metric("latent/std", 666.0, 1, 12)])
    client.set_terminated(made.info.run_id)
    return made


def read(home, tmp_path, name="scratch"):
    """The trials as a process that has just started reads them, by id, and what it passed over."""
    opened, manifest = Store(home), home.manifests()["old"]
    opened.sync(manifest)
    (tmp_path / name).mkdir()
    return {t.entry.id: t for t in opened.read(manifest, tmp_path / name)}, list(opened.notices)


GOOD = {"trial": "0" * 12, "sweep": "old", "code": "abc", "state": "done", "step": "12", "seconds": "1.5"}


EVIL = (
    {"trial": None}, {"code": None}, {"sweep": None}, {"trial": "../../etc"}, {"sweep": "../../etc"},
    {"code": "x' or '"}, {"step": "many"}, {"step": "-1"}, {"lines": "\u00b2"}, {"seconds": "inf"}, {"state": "\x1b[31m"},
)  # fmt: skip


def test_foreign_runs_with_missing_or_evil_tags_are_passed_over_with_one_notice(home, store, tmp_path):
    before = {i: (t.tags, t.metrics) for i, t in read(home, tmp_path)[0].items()}
    for tags in EVIL:
        made = foreign(store, **{k: v for k, v in (GOOD | tags).items() if v is not None})
        assert invalid_tag(made)
    after, notices = read(home, tmp_path, "again")
    assert {i: (t.tags, t.metrics) for i, t in after.items()} == before
    (line,) = notices
    assert line.startswith(f"{len(EVIL)} foreign runs of the store are skipped, first ") and line.isprintable()
    assert store.client.get_run(made.info.run_id).data.metrics == {"latent/std": 666.0}


@pytest.mark.parametrize("start", [None, 1], ids=["later", "earlier"])
def test_a_run_with_ones_own_trial_id_never_replaces_ones_own_result(start, home, store, tmp_path):
    trial = done_of(home)
    own = run_of(store, trial)
    status = home.trial(trial).status()
    settled = {k.removeprefix("dsd."): v for k, v in own.data.tags.items() if k.startswith("dsd.") and k != "dsd.kind"}
    foreign(store, "elsewhere", start, **settled)
    found, notices = read(home, tmp_path)
    assert found[trial].metrics == own.data.metrics and found[trial].tags["dsd.code"] == status.code
    assert found[trial].metrics.get("latent/std") != 666.0
    assert any(f"1 other runs of trial {trial} in the store are skipped" in line for line in notices)


def test_evil_tags_do_not_become_paths_where_orphans_are_closed(home, store):
    client = store.client
    place = client.get_experiment_by_name("old").experiment_id
    for key, value in (("dsd.sweep", "../../etc"), ("dsd.trial", "../../etc")):
        client.create_run(place, tags={"dsd.kind": "trial", "dsd.sweep": "old", "dsd.trial": "0" * 12} | {key: value})
    assert store.close_orphans(dry_run=True) == []
    assert main(["gc", "--home", str(home.root)]) == OK


def test_a_torn_artifact_is_replaced_by_the_files_of_the_home_with_a_notice(home, store, capsys):
    trial = done_of(home)
    place = Path(run_of(store, trial).info.artifact_uri.removeprefix("file://"))
    whole = (place / "history.parquet").read_bytes()
    for name, raw in (("trial.json", b"{"), ("history.parquet", b"")):
        kept = (place / name).read_bytes()
        (place / name).write_bytes(raw)
        assert damage(place)
        (place / name).write_bytes(kept)
    assert damage(place) is None
    (place / "history.parquet").write_bytes(whole[:-10])
    assert main(["report", "old", "--home", str(home.root)]) == OK
    assert f"trial {trial}: its files in the store are damaged" in capsys.readouterr().err


def test_a_history_whose_names_are_no_text_is_damaged(home, tmp_path):
    trial = home.trial(done_of(home))
    shutil.copyfile(trial.root / "trial.json", tmp_path / "trial.json")
    write_history(trial.spool, tmp_path / "history.parquet")
    history = pq.read_table(tmp_path / "history.parquet")
    name = history["name"][0].as_py().encode()
    pq.write_table(history, tmp_path / "history.parquet", compression="none")
    assert damage(tmp_path) is None
    raw = (tmp_path / "history.parquet").read_bytes()
    assert name in raw
    (tmp_path / "history.parquet").write_bytes(raw.replace(name, b"\xff" + name[1:]))
    assert "UTF8" in damage(tmp_path)


def test_artifacts_in_a_place_of_others_are_not_read(home, store, tmp_path):
    """The neighbour's experiment, with an artifact location that is somebody's folder, and a trial that is not here."""
    trial = done_of(home)
    victim = tmp_path / "victim"
    shutil.copytree(Path(run_of(store, trial).info.artifact_uri.removeprefix("file://")), victim / "1" / "artifacts")
    client = store.client
    place = client.create_experiment("neighbour", artifact_location=(victim).as_uri())
    made = client.create_run(
        place, tags={"dsd.kind": "trial"} | {f"dsd.{k}": v for k, v in (GOOD | {"trial": trial}).items()}
    )
    client.set_terminated(made.info.run_id)
    shutil.rmtree(home.trial(trial).root)
    (home.root / "mlflow-runs.json").unlink()
    for own in client.search_runs(
        [client.get_experiment_by_name("old").experiment_id], f"tags.`dsd.trial` = '{trial}'"
    ):
        client.delete_run(own.info.run_id)
    found, notices = read(home, tmp_path)
    assert found[trial].tags == {"dsd.state": "pending"} and found[trial].folder is None
    assert any("lie outside the folders of the store" in line for line in notices)


def test_a_result_of_another_home_says_so(home, store, tmp_path):
    """A shared store: a trial that was never here is shown, and never as one's own."""
    other = Home(tmp_path / "other")
    other.write_manifest(home.manifests()["old"])
    uri = f"sqlite:///{home.root / 'mlflow.db'}"
    code, answer = run("report", "old", "--home", other.root, "--tracking-uri", uri)
    assert code == OK and any("imported (another home of the store), not trained" in n for n in answer["notices"])
    code, answer = run("report", "old", "--home", home.root)
    assert code == OK and not any("imported" in n for n in answer["notices"])


def test_a_run_that_claims_to_be_of_this_home_is_imported_where_its_trial_was_never_here(home, store, tmp_path):
    trial, other = done_of(home), Home(tmp_path / "other")
    other.write_manifest(home.manifests()["old"])
    for made in store.client.search_runs([store.client.get_experiment_by_name("old").experiment_id]):
        store.client.delete_run(made.info.run_id)
    foreign(store, **GOOD | {"trial": trial, "home": other.id})
    (found,) = [t for t in Store(other, store.uri).read(other.manifests()["old"], tmp_path) if t.entry.id == trial]
    assert found.metrics == {"latent/std": 666.0} and found.tags["dsd.imported"] == "another home of the store"


def test_an_import_changes_no_run_that_the_same_home_has_made(home, store, tmp_path):
    """What was trained here, was deleted here, and comes back from somebody else."""
    assert main(["export", "old", "--home", str(home.root), "--out", str(tmp_path / "export")]) == OK

    def stored():
        found = store.client.search_runs([store.client.get_experiment_by_name("old").experiment_id])
        return {r.info.run_id: (dict(r.info), dict(r.data.tags), r.data.metrics, r.data.params) for r in found}

    before = stored()
    for name in ("trials", "sweeps"):
        shutil.rmtree(home.root / name)
    assert main(["import", str(tmp_path / "export"), "--home", str(home.root)]) == OK
    for _ in range(2):
        Store(home).sync(home.manifests()["old"])
        after = stored()
        assert {k: after[k] for k in before} == before and len(after) == 2 * len(before)
    assert all(after[k][1]["dsd.imported"] == "old" for k in after if k not in before)


def test_a_store_that_was_deleted_is_made_again_in_spite_of_the_record(home, store, tmp_path):
    trial = done_of(home)
    assert run_of(store, trial).info.run_id in json.dumps(read_json_object(home.root / "mlflow-runs.json"))
    for path in home.root.glob("mlflow.db*"):
        path.unlink()
    assert "history.parquet" in {p.name for p in read(home, tmp_path)[0][trial].folder.iterdir()}


def test_a_store_that_refuses_a_value_is_not_said_to_be_silent(home, store):
    with pytest.raises(StoreUnavailable, match="refuses a value"), store._translate_errors():
        store.client.log_batch(run_of(store, done_of(home)).info.run_id, tags=[RunTag("x" * 300, "y")])
