"""Names in manifests and spools become paths: none leads out of the home folder, whoever wrote it."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dsd_lab.cli.main import main
from dsd_lab.errors import BAD_INPUT, OK, BadInput
from dsd_lab.home.home import Home

KEPT = Path(__file__).parent / "fixtures" / "home-schema1" / "home"


@pytest.fixture
def home(tmp_path):
    """A home with one sweep, `old`, beside a folder that looks like a trial and is somebody's work."""
    shutil.copytree(KEPT, tmp_path / "home")
    home = Home(tmp_path / "home")
    (done,) = (p for p in home.root.glob("trials/*") if home.trial(p.name).state() == "done")
    shutil.copytree(done, tmp_path / "victim")
    return home


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit_manifest(home, **entries):
    path = home.sweep_folder("old") / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return path


def refused(capsys, home, verb, place):
    """A verb ends with one line on a file of the home, and neither the home nor what lies beside it has changed."""
    beside = home.root.parent
    before = files_of(beside)
    code = main([*verb, "--home", str(home.root)])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == BAD_INPUT and line.startswith(f"dsd-lab: {place}"), line
    assert files_of(beside) == before
    return line


VERBS = (
    ["rm", "old", "--yes"],
    ["rm", "old"],
    ["gc", "--yes"],
    ["gc"],
    ["report", "old"],
    ["export", "old", "--out", "exported"],
    ["status"],
)
VICTIM = "the victim's own path"
"""Stands for an absolute path; that of a test's own folder, since what is tested here is that it is not deleted."""
IDS = ("../../victim", VICTIM, "..", ".", "", "abcdefabcde/", "ABCDEFABCDEF", "a" * 12 + "\n", None, 7, ["a"])


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_trial_of_a_manifest_that_lies_elsewhere_is_refused(verb, home, capsys, monkeypatch):
    monkeypatch.chdir(home.root.parent)
    trials = [entry.model_dump() for entry in home.manifests()["old"].trials]
    path = edit_manifest(home, trials=[trials[0] | {"id": "../../victim"}, *trials[1:]])
    said = refused(capsys, home, verb, path)
    assert "'../../victim' is not a trial id; move it away and re-run the sweep" in said


@pytest.mark.parametrize("name", IDS, ids=repr)
def test_nothing_but_twelve_digits_is_the_id_of_a_trial(name, home, capsys):
    trials = [entry.model_dump() for entry in home.manifests()["old"].trials]
    name = str(home.root.parent / "victim") if name == VICTIM else name
    path = edit_manifest(home, trials=[*trials, trials[0] | {"id": name}])
    assert "is not a trial id" in refused(capsys, home, ["rm", "old", "--yes"], path)


@pytest.mark.parametrize("name", ["../../victim", VICTIM, "..", ".", "", "a/b", "a/"])
def test_a_home_has_no_trial_outside_its_folder_of_trials(name, home):
    with pytest.raises(BadInput, match="is not a trial id"):
        home.trial(str(home.root.parent / "victim") if name == VICTIM else name)


@pytest.mark.parametrize(
    "entries",
    [{"key": "../../victim"}, {"key": None}, {"name": "../../victim"}, {"trials": {}}, {"trials": ["a"]}],
    ids=str,
)
def test_a_manifest_that_names_another_folder_than_its_own_is_refused(entries, home, capsys):
    path = edit_manifest(home, **entries)
    for verb in (["rm", "old", "--yes"], ["gc", "--yes"], ["report"]):
        refused(capsys, home, verb, path)


def test_a_picture_of_a_spool_that_lies_elsewhere_is_never_opened_and_no_store_has_it(home, capsys, tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "victim" / "secret-1.png")
    (done,) = (home.trial(p.name) for p in home.root.glob("trials/*") if home.trial(p.name).state() == "done")
    lines = [json.loads(line) for line in done.spool.read_text().splitlines()]
    (at,) = (i for i, line in enumerate(lines) if line["kind"] == "images")
    before = files_of(tmp_path / "victim")
    for name in ("/etc/passwd", "a/b-1.png", "b.gif", 7, "../../../../victim/secret-1.png"):
        lines[at]["files"] = [name]
        done.spool.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert main(["logs", done.id, "--home", str(home.root)]) == BAD_INPUT
    assert main(["report", "old", "--home", str(home.root)]) == BAD_INPUT
    said = {line for line in capsys.readouterr().err.splitlines() if line.startswith("dsd-lab: ")}
    assert said == {f"dsd-lab: {done.spool}:{at + 1}: is damaged; remove the trial's folder to retrain the trial"}
    assert files_of(tmp_path / "victim") == before and not list(home.root.glob("mlartifacts/**/*secret*"))


def test_the_home_that_the_others_are_made_of_is_in_order(home):
    assert main(["status", "--home", str(home.root)]) == OK
