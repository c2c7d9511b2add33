"""What somebody typed is not there, or is typed otherwise: one line says what was meant, with nothing heavy imported."""

import json
import os
import stat
from pathlib import Path

import pytest
import yaml
from sweeping import VARIANTS, imported, run, train_here, write_idx, write_spec

from dsd_lab.cli.main import main
from dsd_lab.core.data.records import PackedRecords, pack
from dsd_lab.errors import BAD_INPUT, OK, BadInput
from dsd_lab.files.atomic import PRIVATE
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import find_trial, manifest_of
from dsd_lab.home.trial_folder import state_notes
from dsd_lab.specs.loading import load_sweep
from dsd_lab.training_code import training_code

ROOT = Path(__file__).parents[1]


@pytest.fixture
def planned(tmp_path):
    """A spec of two variants and seeds, and a home in which it is recorded and nothing has started."""
    spec = write_spec(tmp_path, {k: VARIANTS[k] for k in ("dsd", "naive")}, seeds=[0, 1])
    home, plan = Home(tmp_path / "home"), load_sweep(spec)
    home.prepare()
    home.write_manifest(manifest_of(plan))
    return spec, home, {t.name: t.id for t in plan.trials}


def last_line(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def refused(capsys, *arguments):
    """The last line that a refused command prints."""
    try:
        code = main([*map(str, arguments)])
    except SystemExit as ended:
        code = ended.code
    assert code == BAD_INPUT
    return last_line(capsys)


# -- Verbs, specs, variants ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["swep"], "dsd-lab: error: no verb 'swep'; did you mean 'sweep'?"),
        (["reprot", "x.yaml"], "dsd-lab: error: no verb 'reprot'; did you mean 'report'?"),
        (["fly"], "dsd-lab: error: no verb 'fly'; `dsd-lab --help` lists them"),
        (["fly\x1b[2J"], r"dsd-lab: error: no verb 'fly\\x1b[2J'; `dsd-lab --help` lists them"),
        (["plan", "a.yaml", "--no-such"], "dsd-lab: error: unrecognized arguments: --no-such"),
    ],
)
def test_an_unknown_verb_names_the_nearest(words, line, capsys):
    assert refused(capsys, *words) == line


def test_a_spec_that_is_not_there_names_the_nearest_beside_it_and_among_the_experiments(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_spec(tmp_path)
    assert refused(capsys, "plan", "spek.yaml") == "dsd-lab: spek.yaml: no such file; did you mean 'spec.yaml'?"
    assert refused(capsys, "plan", "nothing_like_it.yaml") == "dsd-lab: nothing_like_it.yaml: no such file"
    monkeypatch.chdir(ROOT)
    meant = "no such file; did you mean 'experiments/collapse_ablation.yaml'?"
    assert refused(capsys, "plan", "colapse_ablation.yaml") == f"dsd-lab: colapse_ablation.yaml: {meant}"
    assert (
        refused(capsys, "plan", "experiments/collapse_ablation") == f"dsd-lab: experiments/collapse_ablation: {meant}"
    )


def test_an_unknown_variant_profile_or_sweep_names_the_nearest(planned, capsys):
    spec, home, _ = planned
    at = ("--home", home.root)
    line = refused(capsys, "train", spec, "--variant", "naiv", "--no-tracking", *at)
    assert line == "dsd-lab: --variant naiv: no such variant in this spec; did you mean 'naive'?"
    line = refused(capsys, "plan", spec, "--only", "variant=naiv", *at)
    assert line == "dsd-lab: --only variant=naiv: no variant 'naiv' in this sweep; did you mean 'naive'?"
    for verb in ("report", "status"):
        line = refused(capsys, verb, "tinny", *at)
        assert line == f"dsd-lab: no sweep 'tinny' has been run in {home.root}; did you mean 'tiny'?"


@pytest.mark.parametrize(
    "words", [["swep"], ["plan", "spek.yaml"], ["logs", "naiv"], ["plan", "a.yaml", "--set", "a", "b"]]
)
def test_a_hint_imports_nothing_heavy(words, tmp_path):
    modules, code, printed, _ = imported(*words, *([] if words == ["swep"] else ["--home", str(tmp_path)]))
    assert code == BAD_INPUT and not printed
    assert not modules & {"torch", "ray", "mlflow"}


# -- Names in the place of ids ---------------------------------------------------------------------------


def test_a_trial_is_found_by_its_id_its_name_and_the_words_of_its_name(planned):
    _, home, ids = planned
    naive = ids["naive s1"]
    for text in (naive, naive[:7], "naive s1", "s1 naive", "tiny naive s1"):
        assert find_trial(home, text).id == naive


def test_an_ambiguous_name_lists_the_trials_that_it_can_mean(planned, capsys):
    _, home, ids = planned
    first, second = ids["naive s0"], ids["naive s1"]
    assert refused(capsys, "logs", "naive", "--home", home.root) == (
        f"dsd-lab: naive: 2 trials match: {first} (tiny naive s0), {second} (tiny naive s1); "
        "give an id or more of the name"
    )
    assert refused(capsys, "sample", "naiv", "--home", home.root) == (
        f"dsd-lab: naiv: no such trial in {home.root}; did you mean 'naive'?"
    )
    assert refused(capsys, "logs", "ffffffffffff", "--home", home.root) == (
        f"dsd-lab: ffffffffffff: no such trial in {home.root}; `dsd-lab status` lists them"
    )


def test_a_variant_that_reads_like_an_id_is_never_taken_for_another_trial(tmp_path):
    spec = write_spec(tmp_path, {"ada": {}})
    home, plan = Home(tmp_path / "home"), load_sweep(spec)
    home.prepare()
    home.write_manifest(manifest_of(plan))
    (home.root / "trials" / "ada000000000").mkdir(parents=True)
    with pytest.raises(BadInput, match="ada: 2 trials match"):
        find_trial(home, "ada")


def test_logs_and_status_take_names(planned, capsys):
    spec, home, ids = planned
    code, answer = run("logs", "naive s1", "--home", home.root)
    assert code == OK and (answer["id"], answer["name"], answer["state"]) == (ids["naive s1"], "naive s1", "pending")
    other = write_spec(spec.parent / "other", {"dsd": {}}, name="second")
    home.write_manifest(manifest_of(load_sweep(other)))
    assert [s["sweep"] for s in run("status", "--home", home.root)[1]["sweeps"]] == ["tiny", "second"]
    for named in ("second", other):
        assert [s["sweep"] for s in run("status", named, "--home", home.root)[1]["sweeps"]] == ["second"]


# -- --set -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--set", "training.steps", "5"], "dsd-lab: error: --set training.steps 5: write --set training.steps=5"),
        (["--set", "seeds", "[0, 1]"], "dsd-lab: error: --set seeds [0, 1]: write --set 'seeds=[0, 1]'"),
        (
            ["--set", "training.steps=5", "seeds=[0]"],
            "dsd-lab: error: 'seeds=[0]': every override needs its own --set: write --set 'seeds=[0]'",
        ),
        (["--set", "training.steps"], "dsd-lab: --set training.steps: write training.steps=VALUE"),
        (["--set", "fast"], "dsd-lab: --set fast: write key.path=value, such as training.steps=200"),
        (
            ["--set", "optimiser.lr=1e-3,1e-4"],
            "dsd-lab: --set optimiser.lr=1e-3,1e-4: optimiser.lr: '1e-3,1e-4' is not valid; it must be a number; "
            "several values are an axis of the grid: --set 'grid.optimiser.lr=[1e-3, 1e-4]'",
        ),
        (
            ["--set", "optimiser.lr=[0.1, 0.2]"],
            "dsd-lab: --set optimiser.lr=[0.1, 0.2]: optimiser.lr: [0.1, 0.2] is not valid; it must be a number; "
            "several values are an axis of the grid: --set 'grid.optimiser.lr=[0.1, 0.2]'",
        ),
        (
            ["--set", "objective.target=live,ema"],
            "dsd-lab: --set objective.target=live,ema: objective.target: 'live,ema' is not valid; it must be 'live', "
            "'stop_gradient' or 'ema'; several values are an axis of the grid: --set 'grid.objective.target=[live, ema]'",
        ),
    ],
)
def test_an_override_that_is_typed_otherwise_says_how(planned, words, line, capsys):
    spec, home, _ = planned
    assert refused(capsys, "plan", spec, "--home", home.root, *words) == line


def test_the_axis_that_the_hint_names_works_and_a_file_is_told_the_same(planned, tmp_path, capsys):
    spec, _, _ = planned
    assert len(load_sweep(spec, sets=["grid.optimiser.lr=[1e-3, 1e-4]"]).trials) == 8
    listed = write_spec(tmp_path / "listed", base={"optimiser": {"lr": [0.1, 0.2]}})
    line = refused(capsys, "plan", listed)
    assert line.endswith(
        "it must be a number; several values are an axis of `grid`: write optimiser.lr: [0.1, 0.2] there"
    )


def test_a_path_of_set_is_relative_to_the_current_folder_and_one_in_a_file_to_that_file(tmp_path, monkeypatch):
    """Everywhere that a path can be set, in the record of the sweep too."""
    folders = {name: tmp_path / name for name in ("here", "specs", "specs/common")}
    for folder in folders.values():
        (folder / "images").mkdir(parents=True)
        write_idx(folder / "images")
    data = {"source": "idx", "path": "images"}
    spec = write_spec(folders["specs"], base={"data": data})
    monkeypatch.chdir(folders["here"])

    def path_of(plan):
        (recorded,) = {v["data"]["path"] for v in [manifest_of(plan).spec["base"]] if "data" in v} or {None}
        paths = {t.fields.data.path for t in plan.trials}
        assert len(paths) == 1 and recorded in (None, *paths)
        return Path(paths.pop()).parent

    assert path_of(load_sweep(spec)) == folders["specs"]
    for key in ("base.data.path", "data.path", "variants.dsd.data.path"):
        plan = load_sweep(spec, sets=[f"{key}=images"])
        assert {Path(t.fields.data.path).parent for t in plan.trials} == {folders["here"]}, key
    for text in ("base.data={source: idx, path: images}", "grid.data.path=[images]"):
        plan = load_sweep(spec, sets=[text])
        assert {Path(t.fields.data.path).parent for t in plan.trials} == {folders["here"]}, text
        assert str(folders["here"]) in json.dumps(manifest_of(plan).spec), text
    assert path_of(load_sweep(spec, sets=["base.data.path=../specs/images"])) == folders["specs"]

    below = {"name": "below", "base": {"data": data}, "variants": {"a": {}}}
    (folders["specs/common"] / "base.yaml").write_text(yaml.safe_dump(below))
    child = folders["specs"] / "child.yaml"
    child.write_text("extends: common/base.yaml\nname: child\n")
    assert path_of(load_sweep(child)) == folders["specs/common"]
    child.write_text("extends: common/base.yaml\nname: child\nbase: {data: {path: images}}\n")
    assert path_of(load_sweep(child)) == folders["specs"]


def test_a_reference_of_set_is_relative_to_the_current_folder_too(planned, tmp_path, monkeypatch):
    spec, _, _ = planned
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    plan = load_sweep(spec, sets=["evaluate=[{reference: stats.npz, metrics: [fid]}]"])
    assert plan.spec.evaluate[0].reference == str(tmp_path / "here" / "stats.npz")


# -- Paths, rights, states ---------------------------------------------------------------------------------


def test_messages_name_places_from_the_root(planned, monkeypatch, capsys):
    _, home, ids = planned
    monkeypatch.chdir(home.root.parent)
    assert main(["logs", ids["naive s1"], "--home", "home"]) == OK
    assert capsys.readouterr().out.splitlines()[0] == (
        f"naive s1: pending, trial {ids['naive s1']} in {home.root}/trials/{ids['naive s1']}"
    )
    assert refused(capsys, "sample", "x", "--home", "home").endswith(
        f"x: no such trial in {home.root}; `dsd-lab status` lists them"
    )
    assert main(["init", "mine.yaml"]) == OK
    assert capsys.readouterr().out.splitlines()[0] == (
        f"{home.root.parent}/mine.yaml: a spec to edit, and {home.root.parent}/spec.schema.json for editors"
    )
    assert refused(capsys, "status", "--home", "~nobody-is-called-so/x") == (
        "dsd-lab: --home ~nobody-is-called-so/x: no such user"
    )


@pytest.fixture
def shared_with_a_group():
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.mark.integration
def test_every_file_of_a_home_follows_the_umask_but_those_that_can_hold_a_secret(tmp_path, shared_with_a_group):
    home = Home(tmp_path / "home")
    spec = write_spec(tmp_path, {k: VARIANTS[k] for k in ("dsd", "broken")})
    (trial, _) = train_here(home, spec).trials
    at = ("--home", home.root)
    assert run("report", spec, *at)[0] == OK
    assert run("sample", trial.id, "--n", 1, "--steps", 1, *at)[0] == OK
    assert run("latents", "dsd", *at)[0] == OK
    wrong = {
        str(path.relative_to(home.root)): oct(mode)
        for path in home.root.rglob("*")
        if (mode := stat.S_IMODE(path.lstat().st_mode)) != (0o775 if path.is_dir() else 0o664)
    }
    failed = next(t.id for t in load_sweep(spec).trials if t.variant == "broken")
    assert wrong == {f"trials/{failed}/error.txt": oct(PRIVATE)}
    assert any(path.name == "weights.safetensors" for path in home.root.rglob("*"))


def test_the_pack_of_streamed_images_follows_the_umask(tmp_path, shared_with_a_group):
    class Two:
        labels = None

        def items(self):
            return iter([("a", lambda: b"one"), ("b", lambda: b"two")])

        def stamp(self):
            return [("file", 6, 0.0)]

    packed = pack(Two(), tmp_path, "image", str)
    assert isinstance(packed, PackedRecords)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("*.pack")} == {0o664}


def test_states_are_explained_where_they_are_shown(planned, capsys):
    _, home, ids = planned
    code = training_code()
    states = {"naive s0": "interrupted", "naive s1": "diverged", "dsd s0": "done", "dsd s1": "failed"}
    for name, state in states.items():
        folder = home.trial(ids[name])
        folder.root.mkdir(parents=True)
        folder.write_status(state=state, step=3, steps=12, code="0" * 12 if state == "done" else code)
    notes = [
        "interrupted: the process ended before the last step; the same `dsd-lab sweep` resumes from the last checkpoint",
        "diverged: a loss or weight became NaN or infinite, which ended training; this is a result: the trial is not "
        "retrained and has no verdict",
        "failed: ended by an error; `dsd-lab logs TRIAL` shows it, `dsd-lab sweep SPEC --retry-failed` runs the trial again",
        f"stale: finished with other training code than the present ({code}); the result is valid and reported; "
        "`dsd-lab logs TRIAL` names the code, `dsd-lab reproduce TRIAL` tests whether the present code gives the same",
    ]
    assert state_notes(["running", "done", "pending"], code) == []
    assert main(["status", "--home", str(home.root)]) == OK
    assert capsys.readouterr().out.splitlines()[-4:] == notes
    for name, note in zip(states, (*notes[:2], notes[3], notes[2]), strict=True):
        assert main(["logs", name, "--home", str(home.root)]) == OK
        assert capsys.readouterr().out.splitlines()[-1] == note
