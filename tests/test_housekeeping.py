"""`dsd-lab gc` and `dsd-lab rm`: what goes is what nothing needs, and only when it was asked for."""

import json
import shutil
from pathlib import Path

import pytest
from sweeping import VARIANTS, run, train_here, write_spec

from dsd_lab.cli.main import main
from dsd_lab.core.training.checkpoints import list_checkpoints, newest_checkpoint
from dsd_lab.errors import BAD_INPUT, OK, BadInput
from dsd_lab.files.index import index_path
from dsd_lab.files.locks import locked
from dsd_lab.home.garbage import foreign_trials, garbage
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.home.names import extractor_path
from dsd_lab.specs.loading import load_sweep

COUNTED = ("--set", "objective.balance=gradient_norm")
"""Makes a trial whose FLOPs no formula has."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two sweeps that share the trial of seed 0."""
    folder = tmp_path_factory.mktemp("housekeeping")
    home = Home(folder / "home")
    plans = {}
    for name, seeds in (("first", [0, 1]), ("second", [0, 2])):
        spec = write_spec(folder / name, {"dsd": VARIANTS["dsd"]}, seeds=seeds, name=name)
        plans[name] = train_here(home, spec)
    return home.root, {t.seed: t.id for plan in plans.values() for t in plan.trials}


@pytest.fixture
def home(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "home")
    return Home(tmp_path / "home")


@pytest.fixture
def ids(trained):
    return trained[1]


def files(home):
    return {str(p.relative_to(home.root)) for p in home.root.rglob("*") if p.is_file()}


def gc(home, *more):
    code, answer = run("gc", "--home", home.root, *more)
    assert code == OK
    paths = {str(Path(item["path"]).relative_to(home.root)): item for item in answer["items"]}
    return paths, answer


def forget(home, key):
    shutil.rmtree(home.sweep_folder(key))


def test_only_superseded_checkpoints_of_finished_trials_can_go_from_a_home_that_is_in_order(home, ids):
    before = files(home)
    found, answer = gc(home)
    older = {
        str(p.relative_to(home.root)) for i in ids.values() for p in list_checkpoints(home.trial(i).checkpoints)[1:]
    }
    assert older and set(found) == older and not answer["freed"]
    assert answer["bytes"] == sum((home.root / f).stat().st_size for f in before if any(f.startswith(o) for o in older))
    assert files(home) == before


def test_what_a_trial_leaves_in_its_folder_is_known(home):
    assert foreign_trials(home) == {}


def test_with_yes_exactly_what_was_shown_goes_and_nothing_is_left_to_go(home, ids):
    shown, _ = gc(home)
    before = files(home)
    freed, answer = gc(home, "--yes")
    assert answer["freed"] and set(freed) == set(shown)
    assert before - files(home) == {f for f in before if any(f.startswith(f"{s}/") for s in shown)}
    assert gc(home)[0] == {}
    assert all(newest_checkpoint(home.trial(i).checkpoints) is not None for i in ids.values())


def test_a_trial_that_no_sweep_names_goes_whole_unless_somebody_holds_it(home, ids):
    forget(home, "second")
    with home.trial(ids[2]).lock() as held:
        assert held
        found, answer = gc(home, "--yes")
    assert f"trials/{ids[2]}" not in found and answer["held"] == [ids[2]]
    assert home.trial(ids[2]).description() is not None
    assert set(gc(home, "--yes")[0]) == {f"trials/{ids[2]}"}
    assert sorted(p.name for p in home.root.glob("trials/*")) == sorted([ids[0], ids[1]])


def test_a_trial_that_a_sweep_names_meanwhile_stays(home, ids):
    manifest = home.manifests()["second"]
    forget(home, "second")
    (found,) = (item for item in garbage(home, "code") if item.kind == "trial")
    home.write_manifest(manifest)
    assert not found.free() and home.trial(ids[2]).state() == "done"


def test_checkpoints_of_a_trial_that_is_held_or_not_finished_stay_but_damaged_ones_go(home, ids):
    folder = home.trial(ids[0])
    old = list_checkpoints(folder.checkpoints)[-1]
    shutil.copytree(old, old.with_name(f"damaged-{old.name}"))
    with folder.lock():
        assert not any(ids[0] in path for path in gc(home)[0])
    folder.write_status(state="interrupted")
    assert [path for path in gc(home)[0] if ids[0] in path] == [f"trials/{ids[0]}/checkpoints/damaged-{old.name}"]


@pytest.mark.parametrize(("file", "before"), [("tensors.safetensors", b""), ("manifest.json", b'"device": "cp')])
def test_an_older_checkpoint_is_not_superseded_by_a_newest_one_that_is_damaged(file, before, home, ids):
    folder = home.trial(ids[0])
    newest, older = list_checkpoints(folder.checkpoints)
    raw = bytearray((newest / file).read_bytes())
    raw[raw.rindex(before) + len(before) - (not before)] ^= 1  # the last byte, or one of the state
    (newest / file).write_bytes(raw)
    assert not any(ids[0] in path for path in gc(home, "--yes")[0])
    assert newest_checkpoint(folder.checkpoints)[0] == older


def test_a_manifest_with_a_number_that_none_is_written_with_is_damaged_and_stops_no_gc(home, ids):
    newest, older = list_checkpoints(home.trial(ids[0]).checkpoints)
    path = newest / "manifest.json"
    path.write_text(path.read_text().replace('"step": ', '"more": NaN, "step": '))
    assert not any(ids[0] in freed for freed in gc(home, "--yes")[0])
    assert older.exists()


def test_caches_of_other_code_and_of_other_data_go_and_present_ones_stay(home, ids, tmp_path):
    run("plan", tmp_path.parent / "none.yaml", "--home", home.root)  # no such spec: makes nothing
    assert run("plan", write_spec(tmp_path / "spec"), "--home", home.root, *COUNTED)[0] == OK
    shapes = home.cache / "shapes.json"
    present = json.loads(shapes.read_text())
    shapes.write_text(json.dumps(present | {json.dumps(["other code", {}]): {}}))
    fingerprint = home.trial(ids[0]).description().data.fingerprint
    kept, gone = extractor_path(home.cache, fingerprint), extractor_path(home.cache, "0" * 64)
    older = kept.with_name(kept.name.replace("-v1", "-v0"))
    kept.parent.mkdir()
    for path in (kept, gone, older):
        path.write_bytes(b"weights")
    statistics = [home.cache / "statistics" / f"{p[:16]}-x-8px-n9.safetensors" for p in (fingerprint, "0" * 64)]
    statistics[0].parent.mkdir()
    for path in statistics:
        path.write_bytes(b"features")
    found, _ = gc(home, "--yes")
    assert {p for p in found if p.startswith("cache")} == {
        "cache/shapes.json",
        *(str(p.relative_to(home.root)) for p in (gone, older, statistics[1])),
    }
    assert statistics[0].exists()
    assert json.loads(shapes.read_text()) == present
    assert sorted(kept.parent.iterdir()) == [kept]


def test_unpacked_images_go_where_no_trial_streams_them(home, ids):
    folder = home.cache / "data"
    folder.mkdir(parents=True, exist_ok=True)
    key = "0123456789abcdef01234567"
    whole, broken = folder / f"{key}.pack", folder / f".{key}.pack.x1y2z3_4"
    for path in (whole, broken):
        path.write_bytes(b"images")
    description = home.trial(ids[0]).root / "trial.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps(content | {"data": content["data"] | {"resident": False}}))
    with locked(folder / f"{key}.lock"):
        assert not any("pack" in path for path in gc(home)[0])
    assert [p for p in gc(home)[0] if "pack" in p] == [str(broken.relative_to(home.root))]
    description.write_text(json.dumps(content))
    assert len([p for p in gc(home, "--yes")[0] if "pack" in p]) == 2 and not whole.exists() and not broken.exists()


def test_what_is_known_of_files_goes_where_no_trial_reads_them(home, ids, tmp_path):
    folder = home.cache / "data"
    folder.mkdir(parents=True, exist_ok=True)
    known = [index_path(folder, tmp_path).with_suffix(suffix) for suffix in (".index", ".json")]
    for path in known:
        path.write_bytes(b"{}")
    description = home.trial(ids[0]).root / "trial.json"
    content = json.loads(description.read_text())
    place = content["fields"] | {"data": content["fields"]["data"] | {"path": str(tmp_path)}}
    description.write_text(json.dumps(content | {"fields": place}))
    assert not any("files-" in path for path in gc(home, "--yes")[0]) and all(path.exists() for path in known)
    description.write_text(json.dumps(content))
    assert len([p for p in gc(home, "--yes")[0] if "files-" in p]) == 2 and not any(path.exists() for path in known)


def test_logs_of_ray_go_unless_a_sweep_is_running(home):
    session = "session_2026-01-31_12-00-00_123456_789"  # as Ray names them
    (home.root / "ray" / session / "logs").mkdir(parents=True)
    (home.root / "ray" / session / "logs" / "raylet.out").write_text("a log")
    (home.root / "ray" / "session_latest").symlink_to(home.root / "ray" / session)
    (home.root / "ray" / "u1000" / "ray" / session).mkdir(parents=True)
    with locked(home.sweep_folder("first") / "lock") as held:
        assert held and not any(p.startswith("ray/") for p in gc(home, "--yes")[0])
    freed = {p for p in gc(home, "--yes")[0] if p.startswith("ray/")}
    assert freed == {f"ray/{session}", "ray/session_latest", f"ray/u1000/ray/{session}"}
    assert [path.name for path in (home.root / "ray").rglob("*")] == ["u1000", "ray"]


def test_a_link_in_the_place_of_a_trial_is_left_alone_with_what_it_leads_to(home, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis.tex").write_text("years of work")
    (home.root / "trials" / "abcdefabcdef").symlink_to(tmp_path / "elsewhere")
    assert not any("abcdefabcdef" in path for path in gc(home, "--yes")[0])
    assert (tmp_path / "elsewhere" / "thesis.tex").exists()


# -- rm ----------------------------------------------------------------------------------------------


def test_rm_shows_the_trials_that_no_other_sweep_names_and_touches_nothing(home, ids):
    before = files(home)
    code, answer = run("rm", "second", "--home", home.root)
    assert code == OK and [Path(item["path"]).name for item in answer["items"]] == [ids[2]]
    assert answer["kept"] == 1 and not answer["freed"] and answer["bytes"] > 0
    assert files(home) == before


def test_rm_with_yes_forgets_the_sweep_and_the_other_sweep_is_as_it_was(home, ids):
    before = files(home)
    assert run("rm", "second", "--yes", "--home", home.root)[0] == OK
    gone = {f for f in before if f.startswith((f"trials/{ids[2]}/", "sweeps/second/"))}
    assert before - files(home) == gone and list(home.manifests()) == ["first"]
    assert {home.trial(ids[seed]).state() for seed in (0, 1)} == {"done"}
    assert run("rm", "first", "--yes", "--home", home.root)[0] == OK
    assert home.manifests() == {} and list(home.root.glob("trials/*")) == []


def test_rm_leaves_a_trial_that_is_held_and_refuses_a_sweep_that_runs(home, ids, capsys):
    with locked(home.sweep_folder("second") / "lock"):
        assert main(["rm", "second", "--yes", "--home", str(home.root)]) == BAD_INPUT
    assert "is running" in capsys.readouterr().err and "second" in home.manifests()
    with home.trial(ids[2]).lock():
        _, answer = run("rm", "second", "--yes", "--home", home.root)
    assert answer["held"] == [ids[2]] and answer["items"] == []
    assert home.trial(ids[2]).state() == "done" and "second" not in home.manifests()


def test_rm_never_guesses_between_profiles(home, capsys):
    manifest = home.manifests()["first"]
    for profile in ("a", "b"):
        home.write_manifest(manifest.changed(key=f"big--{profile}", name="big", profile=profile))
    assert main(["rm", "big", "--yes", "--home", str(home.root)]) == BAD_INPUT
    assert "big--a, big--b" in capsys.readouterr().err
    assert main(["rm", "fist", "--yes", "--home", str(home.root)]) == BAD_INPUT
    assert "did you mean 'first'?" in capsys.readouterr().err
    assert set(home.manifests()) == {"first", "second", "big--a", "big--b"}


# -- Trials that were trained one by one ---------------------------------------------------------------


@pytest.fixture
def alone(home, tmp_path):
    """`train` of the first sweep's spec with another number of steps, which no sweep has run."""
    spec = write_spec(tmp_path / "alone", {"dsd": VARIANTS["dsd"]}, seeds=[0, 1], name="first")

    def train(steps):
        words = ["--variant", "dsd", "--no-tracking", "--set", f"training.steps={steps}"]
        code, answer = run("train", spec, *words, "--home", home.root)
        assert code == OK and answer["state"] == "done"
        return answer["id"]

    return spec, train


def test_a_trial_that_was_trained_alone_is_no_garbage_and_no_part_of_the_sweep(home, ids, alone):
    _, train = alone
    other = train(1)
    assert other not in ids.values()
    home.trial(other).write_status(state="interrupted")
    assert not any(other in path for path in gc(home, "--yes")[0]) and home.trial(other).description() is not None
    assert {*home.manifests()["first"].ids} == {ids[0], ids[1]}
    assert run("logs", other, "--home", home.root)[1]["sweeps"] == ["first"]
    (sweep,) = [s for s in run("status", "--home", home.root)[1]["sweeps"] if s["sweep"] == "first"]
    (row,) = [t for t in sweep["trials"] if t["id"] == other]
    assert (
        row["state"] == "interrupted"
        and row["name"].endswith("(trained singly, training.steps=1)")
        and (row["step"], row["steps"]) == (1, 1)
    )


def test_a_trial_that_was_trained_alone_stays_when_its_sweep_runs_anew_and_goes_with_it(home, alone, tmp_path):
    spec, train = alone
    others = [train(1), train(2), train(1)]
    home.write_manifest(manifest_of(load_sweep(spec)))  # as `sweep` records it
    assert home.manifests()["first"].kept == [others[1], others[0]]
    assert run("export", "first", "--home", home.root, "--out", tmp_path / "out")[0] == OK
    assert not any(other in str(path) for path in (tmp_path / "out").rglob("*") for other in others)
    assert "kept" not in json.loads((tmp_path / "out" / "sweeps" / "first" / "manifest.json").read_text())
    assert run("rm", "first", "--yes", "--home", home.root)[0] == OK
    assert not any(home.trial(other).root.exists() for other in others)


def test_a_first_trial_that_was_trained_alone_is_kept_too(tmp_path):
    spec, home = write_spec(tmp_path, seeds=[0, 1]), Home(tmp_path / "home")
    _, answer = run(
        "train", spec, "--variant", "dsd", "--no-tracking", "--home", home.root, "--set", "training.steps=1"
    )
    home.write_manifest(manifest_of(load_sweep(spec)))
    assert gc(home)[0] == {} and home.manifests()["tiny"].kept == [answer["id"]]


def test_a_damaged_record_is_written_anew_by_its_sweep_and_a_newer_one_is_not(home, ids, alone):
    spec, _ = alone
    path, manifest = home.sweep_folder("first") / "manifest.json", manifest_of(load_sweep(spec))
    for damaged in ({"kept": ["../../victim"]}, {"kept": 7}, {"trials": None}):
        path.write_text(json.dumps(manifest.model_dump() | damaged))
        home.write_manifest(manifest)
        assert home.manifests()["first"] == manifest
    path.write_text(json.dumps(manifest.model_dump() | {"format": 2}))
    with pytest.raises(BadInput, match="format 2 is newer"):
        home.write_manifest(manifest)
