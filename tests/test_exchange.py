"""`dsd-lab export` and `import`: the same tables elsewhere, and nothing that an export does not say gets in.

Folders are tampered with as somebody would who also mends the index, so that hashes alone would not notice.
"""

import hashlib
import json
import os
import pickle
import platform
import re
import shutil
from pathlib import Path

import pytest
from sweeping import EVALUATION, VARIANTS, run, train_here, write_spec

from dsd_lab.cli.main import main
from dsd_lab.core.training.checkpoints import list_checkpoints, load_checkpoint
from dsd_lab.errors import BAD_INPUT, OK
from dsd_lab.home import exporting
from dsd_lab.home.home import Home
from dsd_lab.home.mark import MARK


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sweep with finished, diverged, failed and pending trials, exported without and with weights."""
    folder = tmp_path_factory.mktemp("exchange")
    home = Home(folder / "home")
    variants = {k: VARIANTS[k] for k in ("dsd", "control", "wild", "broken")}
    plan = train_here(home, write_spec(folder, variants, seeds=[0, 1], evaluate=[EVALUATION]))
    shutil.rmtree(home.trial(next(t.id for t in plan.trials if t.name == "dsd s1")).root)
    for name, more in (("light", []), ("heavy", ["--weights"])):
        assert run("export", "tiny", "--home", home.root, "--out", folder / name, *more)[0] == OK
    return folder, {t.name: t.id for t in plan.trials}


@pytest.fixture
def folder(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def ids(trained):
    return trained[1]


def take(source, home):
    return main(["import", str(source), "--home", str(home)])


def index_of(source):
    return json.loads((source / "export.json").read_text())


def mend(source):
    """Make the index fit the files again, as a forger would."""
    index = index_of(source)
    paths = [p for p in source.rglob("*") if p.is_file() and p.name != "export.json"]
    index["files"] = {
        p.relative_to(source).as_posix(): {
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
            "bytes": p.stat().st_size,
        }
        for p in paths
    }
    (source / "export.json").write_text(json.dumps(index))


def edit(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def refused(capsys, source, home, complaint):
    """An import is refused in one line, and nothing of it is in the home folder."""
    before = {p for p in home.rglob("*") if p.name not in (".mlflow.lock", MARK)}
    assert take(source, home) == BAD_INPUT
    said = capsys.readouterr().err
    assert complaint in said and len(said.splitlines()) == 1
    assert {p for p in home.rglob("*") if p.name not in (".mlflow.lock", MARK)} == before


# -- What travels ----------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("name", ["light", "heavy"])
def test_the_report_of_an_imported_sweep_has_the_same_tables_byte_for_byte(folder, name):
    assert take(folder / name, folder / "other") == OK
    tables = []
    for home in ("home", "other"):
        assert run("report", "tiny", "--home", folder / home, "--out", folder / f"report-{home}")[0] == OK
        tables.append({p.name: p.read_bytes() for p in (folder / f"report-{home}" / "tables").glob("*.csv")})
    assert tables[0] == tables[1] and {"verdicts.csv", "cost.csv", "trials.csv"} <= set(tables[0])


def test_an_export_holds_only_json_png_and_safetensors_and_its_index_every_one_of_them(folder, ids):
    for name, kinds in (("light", {".json", ".jsonl", ".png"}), ("heavy", {".json", ".jsonl", ".png", ".safetensors"})):
        source = folder / name
        files = {p.relative_to(source).as_posix(): p for p in source.rglob("*") if p.is_file()}
        assert {p.suffix for p in files.values()} - {".diff"} == kinds  # of a work tree that differs from its commit
        index = index_of(source)
        assert index["format"] == 1 and set(index["files"]) == set(files) - {"export.json"}
        for path, listed in index["files"].items():
            assert hashlib.sha256(files[path].read_bytes()).hexdigest() == listed["sha256"]
    assert str(folder) not in (folder / "light" / "sweeps" / "tiny" / "manifest.json").read_text().replace(
        str(folder / "damaged"), ""
    )


def test_with_weights_the_newest_checkpoint_comes_along_and_can_be_sampled(folder, ids, tmp_path):
    assert take(folder / "heavy", folder / "other") == OK
    old, new = (Home(folder / home).trial(ids["dsd s0"]).checkpoints for home in ("home", "other"))
    (there,) = list_checkpoints(new)
    assert there.name == list_checkpoints(old)[0].name
    assert load_checkpoint(there)[1] == load_checkpoint(list_checkpoints(old)[0])[1]
    arguments = ["sample", ids["dsd s0"], "--n", 2, "--steps", 2, "--out", tmp_path / "samples"]
    assert run(*arguments, "--home", folder / "other")[0] == OK


def test_states_survive_and_a_trial_that_never_started_stays_pending(folder, ids):
    assert take(folder / "light", folder / "other") == OK
    states = {name: Home(folder / "other").trial(i).state() for name, i in ids.items()}
    assert states == {
        **dict.fromkeys(("dsd s0", "control s0", "control s1"), "done"),
        **dict.fromkeys(("wild s0", "wild s1"), "diverged"),
        **dict.fromkeys(("broken s0", "broken s1"), "failed"),
        "dsd s1": "pending",
    }


def test_an_imported_sweep_can_be_exported_again_with_the_same_files(folder):
    assert take(folder / "light", folder / "other") == OK
    assert run("export", "tiny", "--home", folder / "other", "--out", folder / "again")[0] == OK
    assert index_of(folder / "again")["files"].keys() == index_of(folder / "light")["files"].keys()
    trials = [{k: v for k, v in index_of(folder / n)["files"].items() if "trials" in k} for n in ("again", "light")]
    assert trials[0] == trials[1]


def test_export_refuses_a_folder_in_use_and_a_trial_that_runs(folder, ids, capsys):
    arguments = ["export", "tiny", "--home", str(folder / "home"), "--out"]
    assert main([*arguments, str(folder / "light")]) == BAD_INPUT
    assert "name a new or empty folder" in capsys.readouterr().err
    with Home(folder / "home").trial(ids["dsd s0"]).lock():
        assert main([*arguments, str(folder / "new")]) == BAD_INPUT
    assert ids["dsd s0"] in capsys.readouterr().err and not (folder / "new").exists()


# -- What is there already ---------------------------------------------------------------------------------


def test_importing_twice_or_where_it_came_from_skips_what_is_the_same(folder, ids):
    here = len(ids) - 1
    code, answer = run("import", folder / "light", "--home", folder / "other")
    assert code == OK and len(answer["added"]) == here and answer["skipped"] == []
    for home in ("other", "home"):
        code, answer = run("import", folder / "light", "--home", folder / home)
        assert code == OK and answer["added"] == [] and len(answer["skipped"]) == here


def test_a_trial_that_is_there_and_different_is_never_overwritten(folder, ids, capsys):
    assert take(folder / "light", folder / "other") == OK
    capsys.readouterr()
    mine = folder / "other" / "trials" / ids["dsd s0"]
    edit(mine / "status.json", seconds=1.25)
    before = (mine / "status.json").read_bytes()
    shutil.rmtree(folder / "other" / "trials" / ids["control s0"])
    refused(capsys, folder / "light", folder / "other", "another run of this trial (status.json differs)")
    assert (mine / "status.json").read_bytes() == before


def test_another_sweep_of_the_same_name_is_never_overwritten(folder, capsys):
    assert take(folder / "light", folder / "other") == OK
    capsys.readouterr()
    edit(folder / "other" / "sweeps" / "tiny" / "manifest.json", why="Another question.")
    refused(capsys, folder / "light", folder / "other", "a different sweep of this name")


# -- What is refused ---------------------------------------------------------------------------------------


def test_a_link_that_appears_while_an_export_is_written_is_not_followed(trained, tmp_path, capsys, monkeypatch):
    """Also not below the folder: it is written where nobody else can put one."""
    own, out, copy_trial = tmp_path / "own", tmp_path / "out", exporting._copy_trial
    own.mkdir()

    def linked(folder, target, *more):
        out.symlink_to(own) if not out.is_symlink() else None
        assert target.parents[2].stat().st_mode & 0o777 == 0o700
        copy_trial(folder, target, *more)

    monkeypatch.setattr(exporting, "_copy_trial", linked)
    assert main(["export", "tiny", "--home", str(trained[0] / "home"), "--out", str(out)]) == BAD_INPUT
    assert "name a new or empty folder" in capsys.readouterr().err
    assert not list(own.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "own"]


def test_a_newer_format_is_refused_by_its_number(folder, capsys):
    edit(folder / "light" / "export.json", format=2, files="in a way that nobody knows yet")
    refused(capsys, folder / "light", folder / "other", "format 2 is newer than this program reads, which is 1")


@pytest.mark.parametrize("kind", ["trial.json", "spool.jsonl", "images", "manifest.json", "tensors.safetensors"])
def test_one_changed_byte_in_any_file_is_refused(folder, ids, kind, capsys):
    path = next(p for p in sorted((folder / "heavy").rglob("*")) if p.is_file() and kind in str(p))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    refused(capsys, folder / "heavy", folder / "other", "differs in size or SHA-256")


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/etc/passwd", "leaves the export"),
        ("trials/../../outside.json", "leaves the export"),
        ("trials\\..\\..\\outside.json", "leaves the export"),
        ("trials/{trial}/error.txt", "an export has no file"),
        ("trials/{trial}/checkpoints/step-000000012/tensors.pt", "an export has no file"),
        ("trials/{trial}/images/.hidden.png", "an export has no file"),
        ("trials/{trial}/status.json\n", "an export has no file"),
        ("mlflow.db", "an export has no file"),
        ("trials/{trial}/images/missing.png", "is listed in export.json but missing"),
    ],
)
def test_a_path_that_is_no_place_of_an_export_is_refused(folder, ids, path, complaint, capsys):
    index = index_of(folder / "light")
    listed = {"sha256": "0" * 64, "bytes": 1}
    index["files"][path.format(trial=ids["dsd s0"])] = listed
    (folder / "light" / "export.json").write_text(json.dumps(index))
    refused(capsys, folder / "light", folder / "other", complaint)
    assert not (folder / "outside.json").exists()


def test_links_pipes_and_files_that_are_not_listed_are_refused(folder, ids, capsys):
    image = next((folder / "light" / "trials" / ids["dsd s0"] / "images").iterdir())
    raw = image.read_bytes()
    image.unlink()
    (folder / "secret.png").write_bytes(raw)
    image.symlink_to(folder / "secret.png")  # the same bytes, so that only the link is wrong
    refused(capsys, folder / "light", folder / "other", "is a link")
    image.unlink()
    image.parent.rename(folder / "images")
    image.parent.symlink_to(folder / "images")
    refused(capsys, folder / "light", folder / "other", "is a link")
    image.parent.unlink()
    (folder / "images").rename(image.parent)
    os.mkfifo(image)
    refused(capsys, folder / "light", folder / "other", "is not a regular file")
    image.unlink()
    image.write_bytes(raw)
    (folder / "light" / "extra.json").write_text("{}")
    refused(capsys, folder / "light", folder / "other", "extra.json: is not listed in export.json")


class Canary:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        ("checkpoints/*/tensors.safetensors", "is not safetensors"),
        ("images/reconstruction-*.png", "is not a valid PNG"),
        ("status.json", "is not valid"),
        ("spool.jsonl", "spool.jsonl: "),
    ],
)
def test_a_pickle_in_any_place_is_refused_and_never_run(folder, ids, place, complaint, capsys):
    path = next((folder / "heavy" / "trials" / ids["dsd s0"]).glob(place))
    path.write_bytes(pickle.dumps(Canary(folder / "canary")))
    mend(folder / "heavy")
    refused(capsys, folder / "heavy", folder / "other", complaint)
    assert not (folder / "canary").exists()


@pytest.mark.parametrize(
    ("file", "entries", "complaint"),
    [
        ("status.json", {"step": "many"}, "step: "),
        ("status.json", {"code": "x' or tags.`a` = '"}, "code: "),
        ("status.json", {"seconds": float("nan")}, "NaN is not a number"),
        ("trial.json", {"seed": 7}, "its fields give the id"),
        ("trial.json", {"provenance": {}}, "provenance."),
        ("trial.json", {"fields": {"training": {"steps": 13}}}, "its fields give the id"),
    ],
)
def test_a_file_that_says_what_no_trial_says_is_refused(folder, ids, file, entries, complaint, capsys):
    edit(folder / "light" / "trials" / ids["dsd s0"] / file, **entries)
    mend(folder / "light")
    refused(capsys, folder / "light", folder / "other", complaint)


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"files": ["../../../../secret.png"]}, "files.0"),
        ({"metrics": {"latent/variance": "1"}}, "metrics.latent/variance"),
        ({"kind": "train"}, "a train line without seconds"),
        ({"step": -1}, "step"),
    ],
)
def test_a_spool_line_that_no_trial_writes_is_refused_by_its_number(folder, ids, entries, complaint, capsys):
    spool = folder / "light" / "trials" / ids["dsd s0"] / "spool.jsonl"
    lines = spool.read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if json.loads(line)["kind"] == "images")
    lines[at] = json.dumps(json.loads(lines[at]) | entries) + "\n"
    spool.write_text("".join(lines))
    mend(folder / "light")
    refused(capsys, folder / "light", folder / "other", f"line {at + 1}: {complaint}")


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"key": "../tiny"}, "key: "),
        ({"name": "other"}, "do not agree"),
        ({"trials": []}, "the sweep has no trial"),
        ({"spec": {"name": "tiny"}}, "manifest.json: "),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder, entries, complaint, capsys):
    edit(folder / "light" / "sweeps" / "tiny" / "manifest.json", **entries)
    mend(folder / "light")
    refused(capsys, folder / "light", folder / "other", complaint)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"format": "1"}', b"[" * 100_000])
def test_an_index_that_is_none_is_refused(folder, content, capsys):
    (folder / "light" / "export.json").write_bytes(content)
    refused(capsys, folder / "light", folder / "other", "export.json: is not")


def test_a_folder_that_is_no_export_is_refused(tmp_path, capsys):
    refused(capsys, tmp_path / "none", tmp_path / "home", "no such folder")
    refused(capsys, tmp_path, tmp_path / "home", "has no export.json")


def test_an_anonymous_export_names_no_place_no_process_and_no_machine_and_can_be_imported(trained, tmp_path):
    source, ids = trained
    home = Home(shutil.copytree(source / "home", tmp_path / "copied home"))
    status = home.trial(ids["broken s0"]).root / "status.json"
    edit(
        status, error=f"{home.root}/trials/x: {platform.node()}: /srv/data of mine/a.png and /opt/lab/b.py are damaged"
    )
    out = tmp_path / "review"
    assert run("export", "tiny", "--home", home.root, "--out", out, "--weights", "--anonymous")[0] == OK
    texts = {path: path.read_text() for path in out.rglob("*.json*")}
    assert len(texts) > 10
    for path, text in texts.items():
        for named in (str(tmp_path), str(source), str(home.root), platform.node(), "/opt/lab", '"pid"', "/srv"):
            assert named not in text, (path, named)
        values = re.findall(r'"((?:/|~)[^"]*)"', text)
        assert not values, (path, values)
    assert json.loads((out / "trials" / ids["dsd s0"] / "trial.json").read_text())["provenance"]["machine"]["host"] == (
        "anonymous"
    )
    assert run("import", out, "--home", tmp_path / "reviewer")[0] == OK
    assert Home(tmp_path / "reviewer").trial(ids["dsd s0"]).state() == "done"


def test_an_export_without_pictures_has_everything_else_and_is_reported(trained, tmp_path):
    source, _ = trained
    listed = {}
    for name, more in (("all", ()), ("few", ("--no-pictures",))):
        assert run("export", "tiny", "--home", source / "home", "--out", tmp_path / name, *more)[0] == OK
        listed[name] = set(json.loads((tmp_path / name / "export.json").read_text())["files"])
    gone = listed["all"] - listed["few"]
    assert gone and all(file.endswith(".png") for file in gone)
    assert listed["few"] < listed["all"] and not any(file.endswith(".png") for file in listed["few"])
    assert run("import", tmp_path / "few", "--home", tmp_path / "reviewer")[0] == OK
    assert run("report", "tiny", "--home", tmp_path / "reviewer")[0] == OK


def test_no_file_of_an_anonymous_export_names_the_user_the_machine_or_a_place(trained, tmp_path, monkeypatch):
    """Every file is searched: records, spools, differences of the code, pictures and weights."""
    source, ids = trained
    home = Home(shutil.copytree(source / "home", tmp_path / "copied home"))
    done = home.trial(ids["dsd s0"])
    (done.root / "code.diff").write_text(f"+# on {platform.node()} of neo-of-mine: {home.root}/notes\n")
    with done.spool.open("a") as spool:
        spool.write(json.dumps({"kind": "note", "text": f"{home.root}/a on {platform.node()} by neo-of-mine"}) + "\n")
    monkeypatch.setattr("getpass.getuser", lambda: "neo-of-mine")
    out = tmp_path / "review"
    assert run("export", "tiny", "--home", home.root, "--out", out, "--weights", "--anonymous")[0] == OK
    searched = [path for path in out.rglob("*") if path.is_file()]
    assert {path.suffix for path in searched} >= {".json", ".jsonl", ".diff", ".png", ".safetensors"}
    for path in searched:
        for named in (str(tmp_path), str(source), f"{Path.home()}/", platform.node(), "neo-of-mine"):
            if path.suffix in (".png", ".safetensors") and len(named) < 8:
                continue  # two letters stand in any megabyte of numbers
            word = rf"(?<![\w.-]){re.escape(named)}(?![\w-])"
            assert not re.search(word.encode(), path.read_bytes()), (path, named)
