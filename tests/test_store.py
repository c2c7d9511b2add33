"""The store against real MLflow: its layout, and that replaying a spool duplicates nothing whatever fails meanwhile.

Trials are trained in this process. Faults are the store's own: a port on which nobody listens, a database
that refuses rows, a server that is ended. Rows are counted in the database, past MLflow and past our code.
"""

import json
import math
import multiprocessing
import shutil
import socket
import sqlite3
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow.data.dataset_source_registry import get_dataset_source_from_json
from safetensors.torch import load_file
from sweeping import DEADLINE, EVALUATION, VARIANTS, events, free_port, mlflow_server, train_here, write_idx, write_spec

from dsd_lab.core.data import load_data
from dsd_lab.core.training.checkpoints import list_checkpoints, load_checkpoint
from dsd_lab.evaluation.extractor import load_extractor
from dsd_lab.home.history import history_table, read_history, write_history
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.runs.run_trial import DataShelf, run_trial
from dsd_lab.runs.spool_writer import read_spool
from dsd_lab.specs.identity import evaluation_id
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.trial import Data
from dsd_lab.store.artifacts import flat
from dsd_lab.store.faults import StoreUnavailable
from dsd_lab.store.mlflow_store import Store
from dsd_lab.store.replay import is_stored, source_of, stored_metrics


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A home with a finished, a diverged and a failed trial, and a store without runs; copied by every test."""
    folder = tmp_path_factory.mktemp("trained")
    spec = write_spec(folder, {k: VARIANTS[k] for k in ("dsd", "control", "wild", "broken")})
    home = Home(folder / "home")
    train_here(home, spec)
    load_extractor(load_data(Data()), home.cache, torch.device("cpu"))  # evaluations begin with it
    Store(home)
    return spec


@pytest.fixture
def home(trained, tmp_path):
    shutil.copytree(trained.parent, tmp_path / "copy")
    return Home(tmp_path / "copy" / "home")


@pytest.fixture
def spec(home):
    return home.root.parent / "spec.yaml"


@pytest.fixture
def plan(spec):
    return load_sweep(spec)


@pytest.fixture
def manifest(plan):
    return manifest_of(plan)


def rows(home, query, *values):
    with sqlite3.connect(home.root / "mlflow.db") as database:
        return database.execute(query, values).fetchall()


def change(home, statement):
    with sqlite3.connect(home.root / "mlflow.db") as database:
        database.execute(statement)


def metric_rows(home):
    return sorted(rows(home, "select run_uuid, key, step, timestamp, value from metrics"))


def expected(home, plan):
    """(trial, metric, step) of all that the spools and evaluations say."""
    found = [
        (t.id, name, line.step)
        for t in plan.trials
        for line in read_spool(home.trial(t.id).spool)
        for name in stored_metrics(line)
    ]
    for trial in plan.trials:
        step = home.trial(trial.id).status().step
        names = {name for content in home.trial(trial.id).evaluations().values() for name in content.metrics}
        found += [(trial.id, name, step) for name in names]
    return sorted(found)


def stored(home, kind="trial"):
    """(trial, metric, step) of all rows of trials' runs, repeated ones too."""
    query = """select t.value, m.key, m.step from metrics m
               join tags t on t.run_uuid = m.run_uuid and t.key = 'dsd.trial'
               join tags k on k.run_uuid = m.run_uuid and k.key = 'dsd.kind' and k.value = ?"""
    return sorted(rows(home, query, kind))


def run_of(store, trial_id, kind="trial"):
    """The one run of a trial."""
    experiments = [e.experiment_id for e in store.client.search_experiments()]
    query = f"tags.`dsd.trial` = '{trial_id}' and tags.`dsd.kind` = '{kind}'"
    (run,) = store.client.search_runs(experiments, query)
    return run


def artifacts(run):
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


# -- Layout ------------------------------------------------------------------------------------------


def test_a_spec_is_an_experiment_a_sweep_a_parent_run_and_a_trial_a_child_run(home, plan, manifest):
    store = Store(home)
    store.sync(manifest)
    experiment = store.client.get_experiment_by_name("tiny")
    assert experiment.tags["mlflow.note.content"] == "A test."
    runs = store.client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if r.data.tags["dsd.kind"] == "sweep"]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert parent.info.run_name == "tiny" and len(children) == len(runs) - 1
    assert {r.info.run_name: (r.info.status, r.data.tags["dsd.state"]) for r in children} == {
        "dsd s0": ("FINISHED", "done"),
        "control s0": ("FINISHED", "done"),
        "wild s0": ("FINISHED", "diverged"),
        "broken s0": ("FAILED", "failed"),
    }
    assert parent.info.status == "FAILED"
    ended = [int(1000 * home.trial(t.id).status().updated) for t in plan.trials if t.variant != "broken"]
    assert parent.info.end_time >= max(ended)
    # It began when the sweep was run, however much later the store hears of it.
    assert parent.info.start_time == int(1000 * manifest.run_at) <= parent.info.end_time
    Store(home).sync(manifest)
    assert store.client.get_run(parent.info.run_id).info.end_time == parent.info.end_time
    assert (
        json.loads((Path(parent.info.artifact_uri.removeprefix("file://")) / "spec.json").read_text()) == manifest.spec
    )


def test_a_trial_run_has_the_parameters_that_count_and_tags_that_say_where_it_comes_from(home, plan, manifest):
    store = Store(home)
    store.sync(manifest)
    run = run_of(store, plan.trials[0].id)
    counted = {k: str(v) for k, v in flat(manifest.trials[0].canonical).items()}
    assert run.data.params == counted | {"variant": "dsd", "size": "nano8", "seed": "0"}
    assert run.data.params["objective.diffusion_weight"] == "1.0" and run.data.params["optimiser.lr"] == "0.001"
    tags, description = run.data.tags, home.trial(plan.trials[0].id).description()
    for name, value in {
        "variant": "dsd",
        "size": "nano8",
        "seed": "0",
        "trial": plan.trials[0].id,
        "device": "cpu",
    }.items():
        assert tags[f"dsd.{name}"] == value
    assert tags["dsd.code"] == description.provenance.code
    assert tags["dsd.git_dirty"] in ("true", "false")
    assert tags.get("mlflow.source.git.commit") == description.provenance.git_commit
    assert tags["dsd.version.torch"] == description.provenance.versions["torch"]
    assert description.data.fingerprint.startswith(tags["dsd.data"])


def test_parameters_that_differ_only_since_a_variant_was_added_are_added_to_the_runs_that_were_there(home, spec):
    one, two = (load_sweep(spec, sets=["seeds=[0]"]).only([f"variant={v}"]) for v in ("control", "dsd,control"))
    store = Store(home)
    store.sync(manifest_of(one))
    assert "time.distribution" not in run_of(store, one.trials[0].id).data.params  # of no effect in a control
    Store(home).sync(manifest_of(two))
    assert run_of(store, one.trials[0].id).data.params["time.distribution"] == "-"


def test_every_metric_of_a_spool_is_stored_at_its_step_with_its_value(home, plan, manifest):
    store = Store(home)
    new = store.sync(manifest)
    assert new == sum(len(events(home, t.id)) for t in plan.trials)
    assert stored(home) == expected(home, plan)
    run = run_of(store, plan.trials[0].id)
    recorded = {
        (n, line.step): v
        for line in read_spool(home.trial(plan.trials[0].id).spool)
        for n, v in line.measured().items()
    }
    for name in ("train/loss", "latent/variance"):
        for metric in store.client.get_metric_history(run.info.run_id, name):
            assert metric.value == recorded[name, metric.step]


def test_images_history_weights_and_description_are_artifacts(home, plan, manifest):
    store = Store(home)
    store.sync(manifest)
    dsd, control, wild, broken = (run_of(store, t.id) for t in plan.trials)
    names = artifacts(dsd)
    assert {
        "history.parquet",
        "trial.json",
        "final/weights.safetensors",
        "final/reconstruction.png",
        "final/samples.png",
    } <= names
    for key in ("reconstruction", "samples"):
        steps = sorted(
            n.replace("+", "%").split("%step%")[1].split("%")[0]
            for n in names
            if n.startswith(f"images/{key}") and n.endswith(".png")
        )
        assert steps == ["12", "6"]
    assert "final/samples.png" not in artifacts(control)  # it has no denoiser
    assert {"history.parquet", "trial.json"} <= artifacts(wild)
    assert artifacts(broken) == set()


def test_the_weights_in_the_store_are_the_averaged_ones_of_the_last_checkpoint(home, plan, manifest):
    store = Store(home)
    store.sync(manifest)
    folder = home.trial(plan.trials[0].id)
    tensors, _ = load_checkpoint(list_checkpoints(folder.checkpoints)[0])
    run = run_of(store, folder.id)
    weights = load_file(Path(run.info.artifact_uri.removeprefix("file://")) / "final" / "weights.safetensors")
    assert weights and set(weights) == {k.removeprefix("average.") for k in tensors if k.startswith("average.")}
    assert all(value.equal(tensors[f"average.{name}"]) for name, value in weights.items())


def test_what_is_read_is_what_was_trained_and_a_trial_that_never_started_is_pending(home, plan, manifest, tmp_path):
    later = load_sweep(plan.path, sets=["seeds=[0, 1]"])
    Store(home).sync(manifest)
    found = {s.entry.name: s for s in Store(home).read(manifest_of(later), tmp_path)}
    assert {name: s.tags["dsd.state"] for name, s in found.items() if name.endswith("s0")} == {
        "dsd s0": "done",
        "control s0": "done",
        "wild s0": "diverged",
        "broken s0": "failed",
    }
    assert all(
        s.tags["dsd.state"] == "pending" and s.folder is None for name, s in found.items() if name.endswith("s1")
    )
    assert "not an idx file" in found["broken s0"].tags["dsd.error"]
    history = read_history(found["dsd s0"].folder / "history.parquet")
    pd.testing.assert_frame_equal(history, history_table(home.trial(plan.trials[0].id).spool))


def test_a_home_folder_with_spaces_and_signs_in_its_path_is_read_from_where_it_lies(trained, tmp_path):
    place = tmp_path / "a home & 100% odd ü"
    shutil.copytree(trained.parent, place)
    home, plan = Home(place / "home"), load_sweep(place / "spec.yaml")
    store = Store(home)
    store.sync(manifest_of(plan))
    found = store.read(manifest_of(plan), tmp_path / "scratch")[0]
    assert found.folder.is_relative_to(home.root)
    assert (found.folder / "final" / "weights.safetensors").exists()


def test_the_data_set_is_an_input_of_every_run_whose_data_was_loaded_with_its_digest(home, plan, manifest):
    for syncing in (Store(home), Store(home)):
        syncing.sync(manifest)
    for trial in plan.trials:
        found = run_of(syncing, trial.id).inputs.dataset_inputs
        if trial.variant == "broken":
            assert found == []
            continue
        (given,) = found
        data = home.trial(trial.id).description().data
        assert (given.dataset.name, given.dataset.digest) == (data.name, data.fingerprint[:16])
        assert json.loads(given.dataset.profile)["num_rows"] == data.train
        assert {tag.key: tag.value for tag in given.tags} == {"mlflow.data.context": "training"}


@pytest.mark.parametrize(
    ("fields", "kind", "source"),
    [
        ({"source": "digits"}, "code", {"tags": {"mlflow.source.name": "sklearn.datasets.load_digits"}}),
        ({"source": "datasets", "hub": "owner/set"}, "hugging_face", {"path": "owner/set"}),
        ({"source": "folder", "path": "/images"}, "local", {"uri": "/images"}),
    ],
)
def test_the_source_of_a_data_set_is_the_one_that_was_read(fields, kind, source):
    assert source_of(Data(**fields)) == (kind, source)
    theirs = get_dataset_source_from_json(json.dumps(source), kind)  # MLflow reads it as a source of its own
    assert theirs.to_dict().items() >= source.items()


def test_samples_of_the_machine_are_system_metrics_of_the_sweeps_run_once_each(home, manifest):
    folder = home.sweep_folder(manifest.key)

    def sample(*numbers):
        with (folder / "machine.jsonl").open("a") as file:
            for n in numbers:
                values = {"system/cpu_utilization_percentage": n} | ({"system/gpu_0_power_usage_watts": n} if n else {})
                file.write(json.dumps({"time": 1e9 + n, "metrics": values}) + "\n")

    query = "select key, step, value from metrics where key like 'system/%'"
    store = Store(home)
    sample(0, 1)
    store.sync(manifest)
    sample(2)
    store.sync(manifest)
    Store(home).sync(manifest)
    sample(3)
    Store(home).sync(manifest)
    cpu = [("system/cpu_utilization_percentage", n, n) for n in range(4)]
    assert sorted(rows(home, query)) == sorted(cpu + [("system/gpu_0_power_usage_watts", n, n) for n in (1, 2, 3)])


# -- Replay ------------------------------------------------------------------------------------------


def test_replaying_again_adds_nothing(home, plan, manifest):
    store = Store(home)
    store.sync(manifest)
    once, files = metric_rows(home), {t.id: artifacts(run_of(store, t.id)) for t in plan.trials}
    assert store.sync(manifest) == 0
    assert Store(home).sync(manifest) == 0
    assert metric_rows(home) == once
    assert {t.id: artifacts(run_of(store, t.id)) for t in plan.trials} == files


def test_a_store_that_lost_count_of_its_lines_is_asked_for_its_steps_and_nothing_is_stored_twice(home, plan, manifest):
    Store(home).sync(manifest)
    once = metric_rows(home)
    change(home, "delete from tags where key in ('dsd.lines', 'dsd.settled')")
    some = "select rowid from metrics where step = 6 and key like 'latent/%'"
    change(home, f"delete from metrics where rowid in ({some})")
    # A resumed trial writes its tail anew, at another time of day.
    for trial in plan.trials[:2]:
        lines = [json.loads(line) for line in home.trial(trial.id).spool.read_text().splitlines()]
        home.trial(trial.id).spool.write_text(
            "".join(json.dumps(line | {"time": line["time"] + 60}) + "\n" for line in lines)
        )
    assert metric_rows(home) != once
    Store(home).sync(manifest)
    assert stored(home) == expected(home, plan)


def test_a_trial_that_records_again_what_the_store_has_is_stored_once(home, plan, manifest):
    """A killed trial goes on from its checkpoint: its spool is cut and grows again while another process stores it."""
    Store(home).sync(manifest)
    spool = home.trial(plan.trials[0].id).spool
    lines = [json.loads(line) for line in spool.read_text().splitlines()]
    anew = [json.dumps(line | {"time": line["time"] + 60}) + "\n" for line in lines]
    store = Store(home)
    for count in (len(lines) // 2, len(lines) - 1, len(lines)):
        spool.write_text("".join(anew[:count]))
        store.sync(manifest)
    assert stored(home) == expected(home, plan)


def test_a_trial_that_is_interrupted_and_resumed_is_killed_then_finished_and_has_every_step_once(spec, tmp_path):
    home, plan = Home(tmp_path / "home"), load_sweep(spec).only(["variant=dsd"])
    (trial,) = plan.trials
    store, states = Store(home), []
    for stop in (5, None):
        progress = run_trial(home, trial, [], DataShelf())
        for n, now in enumerate(progress):
            store.sync(manifest_of(plan))
            states.append(run_of(store, trial.id).info.status)
            if n == stop:
                assert now.step % 4 != 0  # what comes after the last checkpoint is done again
                progress.close()
                break
        store.sync(manifest_of(plan))
        states.append(run_of(store, trial.id).info.status)
    assert list(dict.fromkeys(states)) == ["RUNNING", "KILLED", "FINISHED"]
    assert states[-1] == "FINISHED" and states[states.index("KILLED") + 1] == "RUNNING"
    assert stored(home) == expected(home, plan)


def test_a_trial_that_is_removed_and_trained_again_to_files_of_the_same_size_is_finished_again(home, spec, tmp_path):
    """State, attempt, size of the spool and evaluations are what they were: the run must not pass for stored."""
    plan = load_sweep(spec).only(["variant=dsd"])
    (trial,), manifest, root = plan.trials, manifest_of(plan), home.trial(plan.trials[0].id).root
    Store(home).sync(manifest)
    shutil.copytree(root, tmp_path / "first")
    shutil.rmtree(root)
    store, progress = Store(home), run_trial(home, trial, [], DataShelf())
    next(progress)
    store.sync(manifest)
    assert run_of(store, trial.id).info.status == "RUNNING"
    progress.close()
    shutil.rmtree(root)
    shutil.copytree(tmp_path / "first", root)
    for again in (store, Store(home)):
        again.sync(manifest)
        run = run_of(again, trial.id)
        assert (run.info.status, run.data.tags["dsd.state"]) == ("FINISHED", "done")
        assert int(run.data.tags["dsd.lines"]) == len(list(read_spool(home.trial(trial.id).spool)))
    assert stored(home) == expected(home, plan)


def test_a_trial_that_is_removed_and_trained_again_elsewhere_has_its_new_values_in_the_store(tmp_path):
    """Another machine rounds differently: the same trial, code, steps and evaluations, other numbers."""
    home = Home(tmp_path / "home")
    plan = train_here(home, write_spec(tmp_path, {"dsd": VARIANTS["dsd"]}, evaluate=[EVALUATION]))
    manifest, folder = manifest_of(plan), home.trial(plan.trials[0].id)
    Store(home).sync(manifest)
    whole = folder.spool.read_text()
    first, last = whole[: whole.index("\n") + 1], "train/diffusion"
    entries = [json.loads(line) for line in whole.splitlines()]
    for entry in entries:
        entry["metrics"] = {k: v * (1 + 1e-6) for k, v in entry.get("metrics", {}).items()}
    (evaluation,) = (folder.root / "evaluations").glob("*.json")
    content = json.loads(evaluation.read_text())
    content["metrics"] = {k: v + 1 for k, v in content["metrics"].items()}
    folder.write_status(state="running")
    folder.spool.write_text(first)
    with folder.lock():
        Store(home).sync(manifest)
    folder.spool.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    evaluation.write_text(json.dumps(content))
    done = {"state": "done", "step": plan.trials[0].fields.training.steps}
    folder.write_status(**done, spool_bytes=folder.spool.stat().st_size)
    store = Store(home)
    store.sync(manifest)
    run = run_of(store, plan.trials[0].id)
    ended = [entry["metrics"][last] for entry in entries if last in entry["metrics"]][-1]
    assert run.info.status == "FINISHED" and run.data.metrics[last] == ended
    assert {k: run.data.metrics[k] for k in content["metrics"]} == content["metrics"]
    held = rows(home, "select count(*) from metrics")
    Store(home).sync(manifest)
    assert rows(home, "select count(*) from metrics") == held


@pytest.mark.parametrize("value", [0.1, -0.0, math.nan, math.inf, -math.inf])
def test_the_store_has_a_value_that_it_gave_back_and_no_other(home, value):
    client = Store(home).client
    run = client.create_run(client.create_experiment("values")).info.run_id
    client.log_metric(run, "x", value)
    found = client.get_run(run).data.metrics["x"]
    assert is_stored(value, found) and not is_stored(value, None)
    assert not any(
        is_stored(other, found) for other in (1.0, math.nan, math.inf, -math.inf) if repr(other) != repr(value)
    )


def test_a_failed_trial_that_succeeds_when_it_is_tried_again_no_longer_says_what_went_wrong(home, spec, manifest):
    (trial,) = load_sweep(spec).only(["variant=broken"]).trials
    store = Store(home)
    store.sync(manifest)
    assert "not an idx file" in run_of(store, trial.id).data.tags["dsd.error"]
    write_idx(spec.parent / "damaged")
    for _ in run_trial(home, trial, [], DataShelf()):
        pass
    store.sync(manifest)
    run = run_of(store, trial.id)
    assert (run.info.status, run.data.tags["dsd.state"]) == ("FINISHED", "done")
    assert "dsd.error" not in run.data.tags and run.data.tags["dsd.device"] == "cpu"
    assert {"trial.json", "history.parquet", "final/weights.safetensors"} <= artifacts(run)


def test_evaluations_are_added_to_a_finished_run_and_floors_that_they_share_are_stored_once(home, spec, manifest):
    other = EVALUATION | {"guidance": 2.0}
    plan = load_sweep(spec, sets=[f"evaluate=[{EVALUATION}, {other}]"])
    store = Store(home)
    store.sync(manifest)
    trial = plan.trials[0]
    for _ in run_trial(home, trial, plan.spec.evaluate, DataShelf()):
        pass
    for _ in range(2):
        store.sync(manifest_of(plan))
        Store(home).sync(manifest_of(plan))
    assert stored(home) == expected(home, plan)
    keys = [evaluation_id(e) for e in plan.spec.evaluate]
    wanted = {f"final/evaluation-{key}.png" for key in keys} | {f"evaluations/{key}.json" for key in keys}
    assert wanted <= artifacts(run_of(store, trial.id))


def test_a_trial_trained_anew_by_other_code_is_a_run_of_its_own_and_the_one_that_is_read(
    home, plan, manifest, tmp_path
):
    folder = home.trial(plan.trials[0].id)
    folder.write_status(code="older", started=1e9)
    Store(home).sync(manifest)
    old = stored(home)
    folder.write_status(code="newer", started=2e9)
    store = Store(home)
    store.sync(manifest)
    found = store.read(manifest, tmp_path)[0]
    assert found.tags["dsd.code"] == "newer"
    assert stored(home) == sorted(old + [row for row in old if row[0] == folder.id])


# -- Other sweeps ------------------------------------------------------------------------------------


def test_a_trial_that_another_sweep_trained_is_a_short_run_that_points_to_it_and_repeats_its_final_metrics(
    home, plan, manifest
):
    store = Store(home)
    store.sync(manifest)
    before = stored(home)
    for syncing in (store, store, Store(home)):
        syncing.sync(manifest.changed(name="other", key="other"))
    first, pointer = (run_of(store, plan.trials[0].id, kind) for kind in ("trial", "pointer"))
    parent = store.client.get_run(pointer.data.tags["mlflow.parentRunId"])
    assert parent.info.run_name == "other"
    assert pointer.info.experiment_id == store.client.get_experiment_by_name("other").experiment_id
    assert pointer.data.tags["dsd.points_to"] == first.info.run_id
    assert pointer.data.metrics == first.data.metrics
    assert pointer.info.status == "FINISHED"
    assert (pointer.info.start_time, pointer.info.end_time) == (first.info.start_time, first.info.end_time)
    for name in ("dsd.variant", "dsd.seed", "dsd.device", "dsd.state"):
        assert pointer.data.tags[name] == first.data.tags[name]
    assert stored(home) == before
    assert {(t, k) for t, k, _ in stored(home, "pointer")} == {(t, k) for t, k, _ in before if t != plan.trials[3].id}
    assert len(stored(home, "pointer")) == len({(t, k) for t, k, _ in stored(home, "pointer")})


def test_a_store_that_lacks_nothing_is_asked_once_for_all_trials(home, manifest, monkeypatch):
    other = manifest.changed(name="other", key="other")
    for one in (manifest, other):
        Store(home).sync(one)
    for one in (manifest, other):
        store, asked = Store(home), []
        for name in ("get_run", "search_runs", "log_batch", "log_artifacts", "log_inputs", "create_run"):
            real = getattr(store.client, name)

            def counted(*given, real=real, name=name, asked=asked, **more):
                asked.append(name)
                return real(*given, **more)

            monkeypatch.setattr(store.client, name, counted)
        assert store.sync(one) == 0
        # The sweep; its run, for its parameters and samples of the machine; its trials; its pointers.
        assert asked == ["search_runs", "get_run", "search_runs", "search_runs"]


# -- A store that fails ------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_a_store_that_is_down_says_so_and_a_later_pass_uploads_everything_once(home, plan, manifest):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(StoreUnavailable, match=f"the store http://127.0.0.1:{port} does not answer"):
        Store(home, f"http://127.0.0.1:{port}")
    Store(home).sync(manifest)
    assert stored(home) == expected(home, plan)


@pytest.mark.parametrize(
    ("table", "when"),
    [
        ("metrics", "(select count(*) from metrics) > 40"),
        ("tags", "new.key = 'dsd.lines' and new.value > 5"),
        ("tags", "new.key = 'dsd.settled'"),
        ("tags", "new.key = 'dsd.evaluations'"),
        ("runs", "(select count(*) from runs) > 1"),
    ],
)
def test_a_store_that_fails_half_way_goes_on_from_there_without_duplicates(table, when, home, spec, tmp_path):
    plan = load_sweep(spec, sets=[f"evaluate=[{EVALUATION}]"]).only(["variant=dsd,wild"])
    for _ in run_trial(home, plan.trials[0], plan.spec.evaluate, DataShelf()):
        pass
    manifest, store = manifest_of(plan), Store(home)
    fault = "select json('no JSON')"  # fails as a full disk does, not as a constraint, which MLflow tries again
    change(home, f"create trigger fault before insert on {table} when {when} begin {fault}; end")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="malformed JSON"):
            store.sync(manifest)
    change(home, "drop trigger fault")
    store.sync(manifest)
    assert stored(home) == expected(home, plan)
    assert store.sync(manifest) == 0
    run = run_of(store, plan.trials[0].id)
    key = evaluation_id(plan.spec.evaluate[0])
    assert {f"final/evaluation-{key}.png", f"evaluations/{key}.json", "history.parquet"} <= artifacts(run)
    assert len([name for name in artifacts(run) if name.startswith("images/samples") and name.endswith(".png")]) == 2
    assert run.data.tags["dsd.state"] == "done"


def _open(root, errors):
    try:
        Store(Home(root))
    except BaseException as error:
        errors.put(repr(error))
        raise


def test_four_processes_can_open_a_fresh_store_at_once(tmp_path):
    processes = multiprocessing.get_context("fork")
    errors = processes.Queue()
    started = [processes.Process(target=_open, args=(tmp_path / "home", errors)) for _ in range(4)]
    for process in started:
        process.start()
    for process in started:
        process.join(DEADLINE)
    assert [process.exitcode for process in started] == [0] * 4, errors.get()


@pytest.mark.slow
def test_a_server_that_ends_and_comes_back_holds_everything_once_and_is_read_through_its_api(
    home, plan, manifest, tmp_path
):
    port = free_port()
    served = tmp_path / "served"
    served.mkdir()
    shutil.copy(home.root / "mlflow.db", served / "mlflow.db")

    with mlflow_server(served, port) as uri:
        store = Store(home, uri)
        store.sync(manifest_of(plan.only(["variant=dsd"])))
    with pytest.raises(StoreUnavailable):
        store.sync(manifest)
    with mlflow_server(served, port):
        store.sync(manifest)
        Store(home, uri).sync(manifest)
        found = store.read(manifest, tmp_path / "scratch")
    assert stored(Home(served)) == expected(home, plan)
    history = read_history(found[0].folder / "history.parquet")
    pd.testing.assert_frame_equal(history, history_table(home.trial(plan.trials[0].id).spool))
    assert (found[0].folder / "final" / "weights.safetensors").exists()


# -- History -----------------------------------------------------------------------------------------


def test_a_history_survives_its_file_and_holds_every_metric_spectrum_and_time(home, plan, tmp_path):
    spool = home.trial(plan.trials[0].id).spool
    write_history(spool, tmp_path / "history.parquet")
    table = read_history(tmp_path / "history.parquet")
    pd.testing.assert_frame_equal(table, history_table(spool))
    scalars = table[table["index"].isna()].set_index(["name", "step"])["value"].to_dict()
    spectra = table[table["index"].notna()].set_index(["name", "step", "index"])["value"].to_dict()
    seen = 0
    for line in read_spool(spool):
        for name, value in line.metrics.items():
            assert scalars[name, line.step] == value
        for name, values in line.spectra.items():
            assert [spectra[f"spectrum/{name}", line.step, i] for i in range(len(values))] == values
            seen += len(values)
        if line.kind in ("train", "probe"):
            assert scalars[f"seconds/{line.kind}", line.step] == line.seconds
    assert seen == len(spectra) > 0


def test_the_history_of_a_trial_that_recorded_nothing_is_an_empty_table_of_the_same_columns(tmp_path):
    write_history(tmp_path / "none.jsonl", tmp_path / "history.parquet")
    table = read_history(tmp_path / "history.parquet")
    assert table.empty and list(table.columns) == ["step", "name", "index", "value"]
