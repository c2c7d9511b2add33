"""`gc` and `rm` delete what is provably ours, and nothing else: marks of homes, records of trials, names of caches, links."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from neighbours import stranger
from sweeping import run, train_here, write_spec

from dsd_lab.cli.main import main
from dsd_lab.core.observing.pictures import save_grid
from dsd_lab.core.training.events import Finished
from dsd_lab.errors import BAD_INPUT, INTERRUPTED, NO_RESOURCES, OK
from dsd_lab.files.bounded import BadFile
from dsd_lab.files.locks import locked
from dsd_lab.home.garbage import garbage
from dsd_lab.home.home import Home
from dsd_lab.home.mark import MARK, home_id, mark_home
from dsd_lab.home.names import is_trial_id
from dsd_lab.home.spool import is_whole_picture, read_spool
from dsd_lab.runs.spool_writer import Spool
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.plugin_source import source_digest

pytestmark = pytest.mark.integration

KEPT = Path(__file__).parent / "fixtures" / "home-schema1" / "home"
"""A home that was made before homes were marked: one sweep, `old`, of four trials."""


@pytest.fixture
def home(tmp_path):
    shutil.copytree(KEPT, tmp_path / "home")
    return Home(tmp_path / "home")


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write(path, text="mine"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def forget(home):
    """No sweep names the trials any more: all are offered."""
    shutil.rmtree(home.sweep_folder("old"))


def gone(home, *verb):
    """Files that a verb with `--yes` deletes, and its answer."""
    before = tree(home.root)
    code, answer = run(*(verb or ("gc",)), "--yes", "--home", home.root)
    assert code == OK
    return before.keys() - tree(home.root).keys(), answer


# -- The mark ------------------------------------------------------------------------------------------


def test_a_home_is_marked_when_it_is_made_and_keeps_its_id(tmp_path):
    first, second = Home(tmp_path / "first"), Home(tmp_path / "second")
    for made in (first, second):
        made.prepare()
    known = home_id(first.root)
    assert len(known) == 32 and known != home_id(second.root)
    assert json.loads((first.root / MARK).read_text())["format"] == 1
    first.prepare()
    assert home_id(first.root) == known
    shutil.move(first.root, tmp_path / "moved")
    assert home_id(tmp_path / "moved") == known


def test_an_unmarked_home_is_known_by_its_records_and_marked_when_it_is_written_to(home):
    assert home_id(home.root) is None
    assert run("gc", "--home", home.root)[0] == OK and home_id(home.root) is None
    home.prepare()
    assert home_id(home.root) is not None


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"home": 7}', '{"home": "../../etc"}'])
def test_a_damaged_mark_is_none_and_is_written_anew(damaged, tmp_path):
    (tmp_path / MARK).write_text(damaged)
    assert home_id(tmp_path) is None
    assert mark_home(tmp_path) == home_id(tmp_path) == mark_home(tmp_path)


def test_a_mark_is_not_written_through_a_link(tmp_path, capsys):
    letter = write(tmp_path / "letter.txt")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / MARK).symlink_to(letter)
    assert main(["fetch-weights", "inception", "--home", str(tmp_path / "home")]) == 4
    assert MARK in capsys.readouterr().err and letter.read_text() == "mine"


def test_doctor_marks_no_folder(tmp_path):
    write(tmp_path / "notes.txt")
    run("doctor", "--home", tmp_path)
    assert list(tree(tmp_path)) == ["notes.txt"]


# -- A folder that is no home --------------------------------------------------------------------------


def test_gc_refuses_a_folder_that_is_no_home_and_touches_nothing(tmp_path, capsys):
    folder = tmp_path / "study"
    for name in (
        "trials/patient-001/scan.dcm",
        "trials/abcdefabcdef/scan.dcm",
        "trials/.removing-me/scan.dcm",
        "cache/extractors/teeth.safetensors",
        "cache/extractors/0123456789abcdef-v1.safetensors",
        "cache/statistics/mice.safetensors",
        "cache/data/backpack.pack",
        "cache/bench/tmp_of_mine/a",
        "ray/session_notes/a",
        "ray/tune/song.mp3",
    ):
        write(folder / name)
    before = tree(folder)
    assert main(["gc", "--yes", "--home", str(folder)]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not a dsd-lab home" in line and MARK in line and tree(folder) == before
    assert run("gc", "--yes", "--home", tmp_path / "none")[0] == OK


@pytest.mark.parametrize(
    "name",
    [
        "trials/patient-001/scan.dcm",
        "trials/abcdefabcdef/scan.dcm",
        "trials/.removing-me/scan.dcm",
        "trials/.removing-abcdefabcdef/scan.dcm",
        "cache/extractors/teeth.safetensors",
        "cache/statistics/mice.safetensors",
        "cache/data/backpack.pack",
        "cache/data/.my.pack.list",
        "cache/bench/tmp_of_mine/a",
        "ray/session_notes/a",
    ],
)
def test_in_a_marked_home_too_only_what_is_known_goes(name, home):
    home.prepare()
    theirs = write(home.root / name)
    assert gone(home)[0] == set() and theirs.read_text() == "mine"


# -- Trials --------------------------------------------------------------------------------------------


def test_trials_go_by_their_records(home):
    forget(home)
    ids = sorted((p.name for p in home.root.glob("trials/*")), key=lambda i: home.trial(i).description() is not None)
    assert all(map(is_trial_id, ids)) and len(ids) == 4
    assert home.trial(ids[0]).description() is None and home.trial(ids[0]).state() == "failed"  # a status alone
    (home.trial(ids[1]).root / "status.json").unlink()  # its description is left
    other = home.trial(ids[2]).root / "trial.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"id": "0" * 12}))  # says that it is another trial's
    found, _ = gone(home)
    assert {name.split("/")[1] for name in found} == {ids[0], ids[1], ids[3]}
    assert (home.trial(ids[2]).root / "spool.jsonl").exists()


@pytest.mark.parametrize("verb", [("gc",), ("rm", "old")])
def test_a_trial_in_whose_folder_somebody_keeps_files_stays_and_is_named(verb, home, capsys):
    if verb == ("gc",):
        forget(home)
    (held, *others) = sorted(p.name for p in home.root.glob("trials/*"))
    write(home.trial(held).root / "notes.txt")
    found, _ = gone(home, *verb)
    assert not any(held in name for name in found) and all(not home.trial(i).root.exists() for i in others)
    if verb == ("gc",):
        assert main(["gc", "--home", str(home.root)]) == OK
        assert f"trials/{held}: notes.txt" in capsys.readouterr().out


def test_a_deletion_that_was_broken_off_is_ended(home, monkeypatch):
    forget(home)
    trial = sorted(p.name for p in home.root.glob("trials/*"))[0]

    def killed(folder, name):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dsd_lab.home.ownership.remove_in", killed)
        assert main(["gc", "--yes", "--home", str(home.root)]) == INTERRUPTED
    (left,) = home.root.glob("trials/.removing-*")
    gone(home)
    assert not left.exists() and not home.trial(trial).root.exists()


# -- Copies --------------------------------------------------------------------------------------------


def keep_source(home, text):
    """A plug-in's source as a sweep keeps it, and its digest."""
    draft = write(home.root / "plugins" / "draft.py", text)
    digest = source_digest(draft)
    draft.unlink()
    return write(home.root / "plugins" / digest / "my_parts.py", text), digest


def test_sources_of_plugins_go_where_no_named_trial_was_trained_with_them(home):
    used, digest = keep_source(home, "USED = 1")
    unused, _ = keep_source(home, "UNUSED = 1")
    changed, _ = keep_source(home, "CHANGED = 1")
    changed.write_text("CHANGED = 2")  # by somebody: no longer what was kept
    joined, _ = keep_source(home, "JOINED = 1")
    notes = write(joined.with_name("notes.txt"))
    description = next(home.root.glob("trials/*/trial.json"))
    content = json.loads(description.read_text())
    content["provenance"]["plugins"] = {"my_parts": digest}
    description.write_text(json.dumps(content))
    with locked(home.sweep_folder("old") / "lock"):  # a sweep keeps sources before its trials name them
        assert gone(home)[0] == set()
    assert gone(home)[0] == {unused.relative_to(home.root).as_posix()}
    assert not unused.parent.exists() and all(path.exists() for path in (used, changed, joined, notes))
    forget(home)
    gone(home)  # the trials
    assert not used.exists() and changed.exists() and joined.exists()


def test_a_trial_that_was_trained_again_goes_with_the_trial(home, tmp_path):
    home.prepare()
    trials = sorted(p.name for p in home.root.glob("trials/*") if home.trial(p.name).description() is not None)
    again = {}
    for number, trial in enumerate(trials, 1):
        own = Home(home.root / "reproductions" / f"{trial}-{number}")
        own.prepare()
        home.cache.mkdir(exist_ok=True)
        (own.root / "cache").symlink_to(home.cache.resolve())
        shutil.copytree(home.trial(trial).root, own.trial(trial).root)
        again[trial] = own
    kept = write(home.cache / "statistics" / "mine.safetensors")
    assert gone(home)[0] == set()
    forget(home)
    noted, held, *others = trials
    notes = write(again[noted].root / "notes.txt")
    with locked(again[held].trial(held).root / "lock"):
        gone(home)
    assert notes.exists() and again[noted].trial(noted).root.exists() and again[held].trial(held).root.exists()
    assert others and not any(again[trial].root.exists() for trial in others) and kept.exists()
    gone(home)
    assert not again[held].root.exists() and kept.exists()


# -- Links ---------------------------------------------------------------------------------------------


def test_links_are_unlinked_and_never_followed(home, tmp_path):
    photos = write(tmp_path / "disk" / "photos" / "a.jpg").parent
    forget(home)
    trial = home.trial(sorted(p.name for p in home.root.glob("trials/*"))[0])
    shutil.rmtree(trial.images)
    trial.images.symlink_to(photos)
    (home.root / "trials" / "abcdefabcdef").symlink_to(photos)
    (home.root / "trials" / ".removing-abcdefabcdef").symlink_to(photos)
    (home.root / "ray").mkdir()
    (home.root / "ray" / "session_2026-01-31_12-00-00_123456_789").symlink_to(photos)
    gone(home)
    assert not trial.root.exists() and tree(photos) == {"a.jpg": b"mine"}


@pytest.mark.parametrize("name", ["trials", "cache", "cache/data", "ray", "plugins", "reproductions"])
def test_nothing_is_deleted_through_a_folder_that_is_a_link_and_it_is_named(name, home, tmp_path):
    home.prepare()
    forget(home)
    disk = tmp_path / "disk"
    shutil.copytree(home.root / "trials", disk / "trials")
    write(disk / "data" / "0123456789abcdef01234567.pack")
    write(disk / "ray" / "tune" / "song.mp3")
    write(disk / "shapes.json", json.dumps({json.dumps(["other code", {}]): {}}))
    place = home.root / name
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(exist_ok=True)
    place.symlink_to({"cache": disk}.get(name, disk / place.name))
    before = tree(disk)
    _, answer = gone(home)
    assert tree(disk) == before and answer["linked"] == [name] and place.is_symlink()


def test_a_link_that_takes_the_place_of_a_folder_after_it_was_checked_is_not_followed(home, tmp_path):
    """Between what `gc` finds and what it deletes, `trials`, a checkpoint's folder and a cache become links."""
    home.prepare()
    forget(home)
    write(home.root / "cache" / "data" / "0123456789abcdef01234567.pack")
    found = garbage(home, "code")
    assert {item.kind for item in found} >= {"trial", "cache"}
    disk = tmp_path / "disk"
    shutil.copytree(home.root / "trials", disk / "trials")
    shutil.copytree(home.root / "cache", disk / "cache")
    before = tree(disk)
    for name in ("trials", "cache"):
        (home.root / name).rename(home.root / f"{name}-before")
        (home.root / name).symlink_to(disk / name)
    assert not any(item.free() for item in found if item.kind in ("trial", "cache"))
    assert tree(disk) == before


def test_a_trial_into_whose_folder_something_was_put_after_it_was_found_stays(home):
    forget(home)
    home.prepare()
    (first, *_) = [item for item in garbage(home, "code") if item.kind == "trial"]
    notes = write(first.path / "notes.txt")
    assert not first.free() and notes.read_text() == "mine"


@pytest.mark.parametrize("made", [lambda lock, letter: lock.symlink_to(letter), lambda lock, letter: os.mkfifo(lock)])
def test_a_link_or_a_pipe_in_the_place_of_a_lock_is_neither_opened_nor_waited_for(made, home, tmp_path, capsys):
    forget(home)
    home.prepare()
    letter, trial = write(tmp_path / "letter.txt"), next((home.root / "trials").iterdir())
    (trial / "lock").unlink(missing_ok=True)
    made(trial / "lock", letter)
    assert not home.trial(trial.name).is_locked()
    assert gone(home)[1]["held"] == [trial.name] and trial.is_dir() and letter.read_text() == "mine"
    with pytest.raises(BadFile, match="is not a regular file"), locked(trial / "lock"):
        pass


@pytest.mark.parametrize("name", ["sweeps", "sweeps/old"])
def test_rm_refuses_a_sweep_that_is_reached_through_a_link(name, home, tmp_path, capsys):
    place = home.root / name
    shutil.move(place, tmp_path / "disk")
    place.symlink_to(tmp_path / "disk")
    before = tree(home.root), tree(tmp_path / "disk")
    assert main(["rm", "old", "--yes", "--home", str(home.root)]) == BAD_INPUT
    assert "through a link" in capsys.readouterr().err and (tree(home.root), tree(tmp_path / "disk")) == before


def test_rm_leaves_what_is_not_ours_in_the_folder_of_a_sweep(home):
    notes = write(home.sweep_folder("old") / "notes.txt")
    assert run("rm", "old", "--yes", "--home", home.root)[0] == OK
    assert home.manifests() == {} and list(notes.parent.iterdir()) == [notes]


# -- A home that came with a clone or an archive ---------------------------------------------------------


@pytest.fixture
def planned(tmp_path):
    """A spec, and the id of its only trial, which everybody who has the spec can compute."""
    spec = write_spec(tmp_path)
    return spec, load_sweep(spec).trials[0].id


@pytest.mark.parametrize(
    "name",
    [
        "spool.jsonl",
        "hang.txt",
        "images",
        "images/samples-000000012.png",
        "checkpoints",
        "evaluations",
        "lock",
        ".",
        "sweep",
    ],
)
@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_nothing_is_written_through_a_link_in_the_folder_of_a_trial_or_of_a_sweep(
    verb, name, planned, tmp_path, capsys
):
    spec, trial = planned
    home = Home(tmp_path / "home")
    theirs = write(tmp_path / "work" / "manifest.json").parent
    write(theirs / "step-000000004" / "a")
    place = home.sweep_folder("tiny") if name == "sweep" else home.trial(trial).root / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(theirs / "manifest.json" if place.suffix or name == "lock" else theirs)
    before = tree(theirs)
    chosen = ["--variant", "dsd"] if verb == "train" else []
    assert main([verb, str(spec), *chosen, "--home", str(home.root), "--no-tracking"]) == BAD_INPUT
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"dsd-lab: {place}") and "is a link" in said
    assert tree(theirs) == before and place.is_symlink()


def test_a_spool_with_a_second_name_is_replaced_and_not_shortened(tmp_path):
    """A link can appear after the check, and a file can have two names: neither is written through."""
    for make in (os.link, os.symlink):
        letter = write(tmp_path / make.__name__ / "letter.txt")
        spool = letter.with_name("spool.jsonl")
        make(letter, spool)
        writer = Spool(spool, spool.with_name("images"), None)
        writer.append(Finished(12, 96))
        writer.close()
        assert letter.read_text() == "mine" and [entry.kind for entry in read_spool(spool)] == ["finished"]
        picture = letter.with_name("samples-000000012.png")
        make(letter, picture)
        save_grid(picture.parent, "samples", 12, torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
        assert letter.read_text() == "mine" and is_whole_picture(picture)


def test_a_database_that_is_a_link_is_not_filled_with_tables(tmp_path, capsys):
    home = Home(tmp_path / "home")
    home.prepare()
    theirs = write(tmp_path / "address-book.db", "")
    (home.root / "mlflow.db").symlink_to(theirs)
    for verb in ("ui", "report"):
        shutil.copytree(KEPT / "sweeps", home.root / "sweeps", dirs_exist_ok=True)
        assert main([verb, "--home", str(home.root)]) == BAD_INPUT
        assert "mlflow.db: is a link" in capsys.readouterr().err and not theirs.stat().st_size


def test_what_a_link_leads_to_goes_into_no_export_and_no_store(home, tmp_path, capsys):
    secret = write(tmp_path / "id_rsa", "canary-5f3a9")
    trial = next(p for p in sorted((home.root / "trials").iterdir()) if home.trial(p.name).state() == "done")
    (trial / "code.diff").unlink(missing_ok=True)
    (trial / "code.diff").symlink_to(secret)
    for verb in (["export", "old", "--out", str(tmp_path / "export")], ["report", "old"]):
        assert main([*verb, "--home", str(home.root)]) == BAD_INPUT
        assert "code.diff: is a link" in capsys.readouterr().err.splitlines()[-1]
    assert [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_symlink() and b"canary" in p.read_bytes()] == [
        secret
    ]


def test_a_pipe_in_the_place_of_a_mark_or_of_a_picture_is_not_waited_for(home, tmp_path, capsys):
    os.mkfifo(home.root / MARK)
    assert main(["fetch-weights", "inception", "--home", str(home.root)]) == 4
    assert f"{MARK}: cannot be written: is not a regular file" in capsys.readouterr().err
    (picture, *_) = sorted(home.root.glob("trials/*/images/*.png"))
    picture.unlink()
    os.mkfifo(picture)
    assert main(["export", "old", "--out", str(tmp_path / "export"), "--home", str(home.root)]) == BAD_INPUT
    assert f"{picture}: is not a regular file" in capsys.readouterr().err and not (tmp_path / "export").exists()


def test_in_the_home_of_another_user_verbs_say_so_in_a_line_and_change_nothing():
    started, environment = stranger()
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o755)
    try:
        spec = write_spec(place / "spec")
        train_here(Home(place / "home"), spec)
        before = tree(place)
        for verb, code in (
            (["status"], OK),
            (["gc", "--yes"], NO_RESOURCES),
            (["rm", "tiny", "--yes"], NO_RESOURCES),
            (["report", "tiny"], NO_RESOURCES),
            (["train", str(spec), "--variant", "dsd", "--no-tracking"], NO_RESOURCES),
        ):
            done = subprocess.run(
                [*started, "-P", "-m", "dsd_lab", *verb, "--home", str(place / "home")],
                env=environment, cwd="/", capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == code, (verb, done.stdout, done.stderr)
            complaints = [line for line in done.stderr.splitlines() if line.startswith("dsd-lab: ")]
            assert "Traceback" not in done.stderr and len(complaints) == (code != OK), (verb, done.stderr)
            assert all("Permission denied" in line for line in complaints) and tree(place) == before
    finally:
        shutil.rmtree(place)
