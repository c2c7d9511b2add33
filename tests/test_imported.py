"""An import is somebody else's word: it is checked as a trial is, marked, and changes nothing that is here."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from sweeping import run
from test_hostile_files import png

from dsd_lab.cli.main import main
from dsd_lab.errors import BAD_INPUT, NO_RESOURCES, OK
from dsd_lab.home import importing
from dsd_lab.home.garbage import garbage
from dsd_lab.home.home import Home
from dsd_lab.home.importing import LOCK, STAGING
from dsd_lab.home.lookup import find_manifest, manifest_of
from dsd_lab.home.plugins import keep_plugins, kept_path
from dsd_lab.specs import registry
from dsd_lab.specs.identity import canonical_ids
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.plugins import load_plugins
from dsd_lab.store.mlflow_store import Store
from dsd_lab.training_code import training_code

pytestmark = pytest.mark.integration

KEPT = Path(__file__).parent / "fixtures" / "home-schema1" / "home"


@pytest.fixture
def folder(tmp_path):
    """An export, and the home that it came from."""
    shutil.copytree(KEPT, tmp_path / "home")
    assert run("export", "old", "--home", tmp_path / "home", "--out", tmp_path / "export")[0] == OK
    return tmp_path


def forge(source, name, change):
    """Change a JSON file of an export, and mend the index as a forger would."""
    path = source / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    mend(source)


def mend(source):
    index = json.loads((source / "export.json").read_text())
    for path in (p for p in source.rglob("*") if p.is_file() and p.name != "export.json"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        index["files"][path.relative_to(source).as_posix()] = {"sha256": digest, "bytes": path.stat().st_size}
    (source / "export.json").write_text(json.dumps(index))


def refusal(source, home, capsys):
    capsys.readouterr()
    code = main(["import", str(source), "--home", str(home)])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == BAD_INPUT and not list(Path(home).glob("sweeps/*/manifest.json"))
    return line


@pytest.mark.parametrize("there", [False, True])
def test_a_refused_import_leaves_no_mark_and_no_folder(there, folder, capsys):
    place = folder / "new" / "study"
    if there:
        place.mkdir(parents=True)
        (place / "notes.txt").write_text("mine")
    forge(folder / "export", MANIFEST, lambda m: m.update(run_at=1e300))
    refusal(folder / "export", place, capsys)
    assert [p.name for p in place.iterdir()] == ["notes.txt"] if there else not (folder / "new").exists()


def done_of(source):
    return next(
        p.parent for p in sorted(source.glob("trials/*/status.json")) if json.loads(p.read_text())["state"] == "done"
    )


MANIFEST = "sweeps/old/manifest.json"


def relabel(manifest):
    manifest["trials"][0]["canonical"], manifest["trials"][1]["canonical"] = (
        manifest["trials"][1]["canonical"],
        manifest["trials"][0]["canonical"],
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (relabel, "contradicts what sweeps/old/manifest.json says"),
        (lambda m: m["trials"][0].update(name="naive s0"), "differs from the name of its variant, point and seed"),
        (lambda m: m["trials"][0].update(variant="other", name="other s0"), "the spec has no variant 'other'"),
        (lambda m: m["trials"].append(m["trials"][0]), "occurs twice"),
        (lambda m: m["trials"][0].update(steps=13), "differs from its fields"),
        (lambda m: m.update(run_at=1e300), "run_at: 1e+300 is not a date between 2000 and 2100"),
        (lambda m: m.update(run_at=9e9), "is not a date"),
        (lambda m: m.update(evaluations={"../../x": {}}), "evaluations"),
        (lambda m: m.update(why="\ud800"), "is not valid"),
    ],
    ids=range(9),
)
def test_a_manifest_is_checked_as_strictly_as_a_trial(change, complaint, folder, capsys):
    forge(folder / "export", MANIFEST, change)
    assert complaint in refusal(folder / "export", folder / "other", capsys)


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"started": 1e300}, "started: 1e+300 is not a date"),
        ({"step": 4}, "step: 4 of 12 steps, done"),
        ({"step": 2**70}, "step: "),
        ({"seconds": 1e300}, "seconds: "),
        ({"steps": 11, "step": 11}, "11 steps, but"),
    ],
    ids=str,
)
def test_times_and_steps_of_a_status_are_within_reason(entries, complaint, folder, capsys):
    trial = done_of(folder / "export")
    forge(folder / "export", f"trials/{trial.name}/status.json", lambda s: s.update(entries))
    assert complaint in refusal(folder / "export", folder / "other", capsys)


def test_a_picture_that_would_hold_a_report_for_minutes_does_not_come_in(folder, capsys):
    next((folder / "export").glob("trials/*/images/samples-*.png")).write_bytes(png(6000, 6000))
    mend(folder / "export")
    assert "is not a valid PNG of a trial: 6000 x 6000 pixels" in refusal(folder / "export", folder / "other", capsys)


@pytest.mark.parametrize(("name", "code", "complaint"), [("spool.jsonl", BAD_INPUT, "is larger than 268,435,456 bytes"), ("checkpoints/step-000000012/tensors.safetensors", NO_RESOURCES, "the copy needs 8.8 TB of disk")])  # fmt: skip
def test_a_file_of_terabytes_that_takes_no_room_is_refused_before_it_is_copied(name, code, complaint, folder, capsys):
    trial = next(p for p in sorted((folder / "export" / "trials").iterdir()) if (p / "spool.jsonl").exists())
    (trial / name).parent.mkdir(parents=True, exist_ok=True)
    (trial / name).touch()
    os.truncate(trial / name, 2**43)
    index = json.loads((folder / "export" / "export.json").read_text())
    index["files"][f"trials/{trial.name}/{name}"] = {"sha256": "0" * 64, "bytes": 2**43}
    (folder / "export" / "export.json").write_text(json.dumps(index))
    capsys.readouterr()
    assert main(["import", str(folder / "export"), "--home", str(folder / "new")]) == code
    assert complaint in capsys.readouterr().err and not (folder / "new").exists()


def test_a_plug_in_that_comes_with_an_import_replaces_no_source_of_ones_own(folder):
    """Twelve digits of a hash are kept: whoever looks long enough finds a second source that has them."""
    home, own = Home(folder / "new"), b"OWN = 1\n"
    digest = hashlib.sha256(own).hexdigest()[:12]
    kept = kept_path(home, "mine", digest)
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"found = 'later'\n")
    (folder / "mine.py").write_bytes(own)
    load_plugins([str(folder / "mine.py")])
    try:
        keep_plugins(home)
    finally:
        registry.plugins.pop("mine")
    assert kept.read_bytes() == own
    source = folder / "export" / "plugins" / digest / "mine.py"
    source.parent.mkdir(parents=True)
    source.write_bytes(own)
    mend(folder / "export")
    kept.write_bytes(b"before = 1\n")
    assert run("import", folder / "export", "--home", home.root)[0] == OK and kept.read_bytes() == b"before = 1\n"


def test_json_of_many_megabytes_does_not_come_in(folder, capsys):
    trial = done_of(folder / "export")
    path = folder / "export" / "trials" / trial.name / "status.json"
    path.write_bytes(b"[" + b" " * 17 * 2**20 + b"]")
    mend(folder / "export")
    assert "status.json: is larger than 16,777,216 bytes" in refusal(folder / "export", folder / "other", capsys)


def test_an_import_is_never_the_default_of_a_report_whatever_its_date(folder):
    mine = Home(folder / "mine")
    own = Home(KEPT).manifests()["old"]
    mine.write_manifest(own.changed(key="own", name="own", trials=[], run_at=1.1e9))
    forge(folder / "export", MANIFEST, lambda m: m.update(run_at=4.1e9))
    assert main(["import", str(folder / "export"), "--home", str(mine.root)]) == OK
    assert find_manifest(mine, None, None).key == "own"
    assert find_manifest(mine, "old", None).imported.at > 1.1e9


def test_a_manifest_that_is_imported_keeps_no_trial_and_no_mark_of_its_own(folder):
    forge(folder / "export", MANIFEST, lambda m: m.update(kept=["0" * 12], imported=None, format=1))
    assert main(["import", str(folder / "export"), "--home", str(folder / "other")]) == OK
    manifest = Home(folder / "other").manifests()["old"]
    assert not manifest.kept and manifest.imported.at


def test_a_trial_that_is_here_is_not_relabelled_by_another_version(folder, capsys):
    """Ids of another schema version cannot be computed, so only what is here says what a trial is."""
    trial = done_of(folder / "export").name
    mine = Home(folder / "mine")
    shutil.copytree(folder / "home" / "trials" / trial, mine.trial(trial).root)

    def other(manifest):
        (entry,) = (e for e in manifest["trials"] if e["id"] == trial)
        entry["canonical"]["objective"]["target"] = "live"

    forge(folder / "export", MANIFEST, other)
    shutil.rmtree(folder / "export" / "trials" / trial)
    index = json.loads((folder / "export" / "export.json").read_text())
    index["files"] = {k: v for k, v in index["files"].items() if trial not in k}
    (folder / "export" / "export.json").write_text(json.dumps(index | {"schema_version": 99}))
    mine.prepare()
    before = {p: p.read_bytes() for p in mine.root.rglob("*") if p.is_file()}
    assert "was trained with other fields than the import gives for" in refusal(folder / "export", mine.root, capsys)
    assert {p: p.read_bytes() for p in mine.root.rglob("*") if p.is_file()} == before


def test_imported_results_say_so_in_status_in_the_report_and_in_the_store(folder, capsys):
    other = folder / "other"
    assert main(["import", str(folder / "export"), "--home", str(other)]) == OK
    assert "imported" in capsys.readouterr().out
    _, answer = run("status", "--home", other)
    (sweep,) = answer["sweeps"]
    assert sweep["imported"] is True and all(t["imported"] for t in sweep["trials"] if t["state"] != "pending")
    assert main(["status", "--home", str(other)]) == OK
    assert "old (imported)" in capsys.readouterr().out
    code, report = run("report", "old", "--home", other)
    assert code == OK and any("imported (old), not trained in this home folder" in n for n in report["notices"])
    runs = Store(Home(other)).client.search_runs(["1"], "tags.`dsd.kind` = 'trial'")
    assert runs and {r.data.tags["dsd.imported"] for r in runs} == {"old"}
    _, mine = run("status", "--home", folder / "home")
    assert not any(t["imported"] for t in mine["sweeps"][0]["trials"])


def test_an_import_changes_no_run_that_the_store_has(folder):
    """A trial of the same id and code, which another home stored: the import gets a run of its own."""
    uri = f"sqlite:///{folder / 'shared.db'}"
    first = Store(Home(folder / "home"), uri)
    first.sync(Home(folder / "home").manifests()["old"])

    def state():
        return {
            r.info.run_id: (
                r.info.status,
                r.info.end_time,
                dict(r.data.tags),
                dict(r.data.params),
                dict(r.data.metrics),
            )
            for r in first.client.search_runs([e.experiment_id for e in first.client.search_experiments()])
        }

    before = state()
    forge(folder / "export", MANIFEST, lambda m: m.update(why="Forged."))
    trial = done_of(folder / "export").name
    forge(folder / "export", f"trials/{trial}/status.json", lambda s: s.update(seconds=7777.0))
    assert main(["import", str(folder / "export"), "--home", str(folder / "other")]) == OK
    Store(Home(folder / "other"), uri).sync(Home(folder / "other").manifests()["old"])
    after = state()
    assert {k: after[k] for k in before} == before and len(after) > len(before)


def test_ids_follow_from_the_canonical_fields_of_a_manifest():
    spec = Path(__file__).parents[1] / "experiments" / "collapse_ablation.yaml"
    manifest = manifest_of(load_sweep(spec))
    assert all(canonical_ids(e.canonical, [e.seed]) == [e.id] for e in manifest.trials)


def test_what_a_killed_import_left_is_garbage_and_what_a_living_one_works_on_is_not(folder, monkeypatch):
    """Its own copy is flushed before it is moved: a power cut leaves no half of a trial that cannot be trained here."""
    home, source = Home(folder / "new"), folder / "export"
    flushed = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (flushed.append(os.readlink(f"/proc/self/fd/{handle}")), real(handle))
    )

    def killed(*_):
        (staging,) = home.root.glob(f"{STAGING}*")
        assert not [item for item in garbage(home, training_code()) if item.kind == "import"]
        copied = {str(path) for path in staging.rglob("*") if path.is_file() and path.name != LOCK}
        assert copied <= set(flushed)
        shutil.copytree(staging, folder / "left")
        raise KeyboardInterrupt

    monkeypatch.setattr(importing, "_move_into_home", killed)
    home.prepare()
    with pytest.raises(KeyboardInterrupt):
        importing.import_sweep(home, source)
    (folder / "left").rename(home.root / f"{STAGING}abcdefgh")
    (item,) = garbage(home, training_code())
    assert item.kind == "import" and item.free() and not list(home.root.glob(f"{STAGING}*"))
    monkeypatch.undo()
    assert main(["import", str(source), "--home", str(home.root)]) == OK
