"""Shipped specs by name, from a clone and from a wheel in an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from sweeping import run

from dsd_lab.cli.main import main
from dsd_lab.errors import BAD_INPUT, OK
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.shipped import FOLDER, shipped_names, spec_file

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml"))


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_spec_is_found_by_its_name_everywhere_and_is_the_one_of_the_repository(empty):
    assert shipped_names() == NAMES
    assert FOLDER.resolve() == ROOT / "experiments"  # one place of truth
    by_name, by_path = load_sweep(spec_file("factorial")), load_sweep(ROOT / "experiments" / "factorial.yaml")
    assert [t.id for t in by_name.trials] == [t.id for t in by_path.trials]


@pytest.mark.parametrize("name", ["factorial", "factorial.yaml"])
def test_a_file_of_that_name_stands_before_it_and_that_is_said(empty, capsys, name):
    (empty / name).write_text("name: mine\nvariants: {a: {}}\n")
    assert run("plan", "factorial", "--home", "home")[1]["sweep"]["name"] == "mine"
    assert f"factorial is {empty / name}, not the spec that dsd-lab ships with" in capsys.readouterr().err


def test_a_name_that_is_none_and_a_path_that_is_no_file_say_what_would_be_right(empty, capsys):
    for given, told in (
        ("factorail", "factorail: no such file, and no spec that dsd-lab ships with; did you mean 'factorial'?"),
        ("experiments/mnist.yaml", "no such file; the spec that dsd-lab ships with is called 'mnist'"),
        ("experiments/other.yaml", "experiments/other.yaml: no such file"),
    ):
        assert main(["plan", given]) == BAD_INPUT
        assert told in capsys.readouterr().err


def test_the_list_says_what_data_a_spec_needs_and_whether_it_is_here(empty, capsys):
    (empty / "data" / "mnist").mkdir(parents=True)
    code, answer = run("specs")
    assert code == OK and [row["name"] for row in answer["specs"]] == NAMES
    rows = {row["name"]: row for row in answer["specs"]}
    assert rows["collapse_ablation"]["data"] == [{"source": "digits", "path": None, "hub": None, "here": True, "from": None}]  # fmt: skip
    assert rows["mnist"]["data"][0]["here"] and not rows["cifar10"]["data"][0]["here"]
    assert rows["cifar10"]["data"][0]["path"] == str(empty / "data" / "cifar10")
    assert rows["mnist"]["question"].endswith("?") and rows["mnist"]["trials"] == 24
    for name in NAMES:  # whoever needs a folder says where its images come from
        for data in rows[name]["data"]:
            assert data["path"] is None or "://" in data["from"]
    assert main(["specs"]) == OK
    printed = capsys.readouterr().out
    assert f"cifar10: 16 trials; no images in {empty / 'data' / 'cifar10'} yet: https://" in printed
    assert main(["sweep", "cifar10", "--home", "home"]) == BAD_INPUT
    said = capsys.readouterr().err
    assert "data/cifar10; run `dsd-lab fetch-data cifar10 --out " in said and " or get the images from https://" in said


def test_init_copies_a_shipped_spec_and_what_it_extends(empty, capsys):
    code, answer = run("init", "--from", "normaliser_ablation")
    assert code == OK and answer["spec"] == str(empty / "normaliser_ablation.yaml")
    assert answer["extends"] == [str(empty / "collapse_ablation.yaml")]
    shipped = load_sweep(FOLDER / "normaliser_ablation.yaml")
    copied = load_sweep(empty / "normaliser_ablation.yaml")
    assert [t.id for t in copied.trials] == [t.id for t in shipped.trials] and copied.key == shipped.key
    code, answer = run("init", "Mine.yaml", "--from", "normaliser_ablation")  # the parent is there already
    assert code == OK and answer["extends"] == [] and load_sweep(empty / "Mine.yaml").spec.name == "mine"
    (empty / "collapse_ablation.yaml").write_text("name: other\nvariants: {a: {}}\n")
    for arguments in (["again.yaml", "--from", "normaliser_ablation"], ["--from", "factorail"], ["collapse_ablation.yaml", "--from", "mnist"]):  # fmt: skip
        before = sorted(empty.iterdir())
        assert main(["init", *arguments]) == BAD_INPUT
        assert sorted(empty.iterdir()) == before
    assert "did you mean 'factorial'?" in capsys.readouterr().err


def test_what_to_call_next_is_how_this_program_was_called_as_a_fresh_shell_takes_it(tmp_path):
    program = f"#!{sys.executable}\nimport sys\nfrom dsd_lab.cli.main import main\nsys.exit(main())\n"
    for folder in ("own bin", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "dsd-lab").write_text(program)
        (tmp_path / folder / "dsd-lab").chmod(0o755)

    def told(called, path, **variables):
        environment = {k: v for k, v in os.environ.items() if k != "DSD_LAB_HOME"}
        environment |= {"PATH": f"{path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **variables}
        command = [called, "init", "--from", "factorial", f"{len(list(tmp_path.iterdir()))}.yaml"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[-1].removeprefix("next: ")

    # Another installation may be the one that the search path finds.
    assert told("own bin/dsd-lab", tmp_path / "other").startswith("'own bin/dsd-lab' plan ")
    assert told(str(tmp_path / "other" / "dsd-lab"), tmp_path / "other").startswith("dsd-lab plan ")
    assert told("other/dsd-lab", "/", DSD_LAB_HOME="my home").endswith(" --home 'my home'")


@pytest.mark.slow
def test_a_wheel_brings_the_specs_and_its_commands_work_from_an_empty_folder(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("dsd_lab", "experiments"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*build, "-w", tmp_path, source], check=True, timeout=280)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    packed = tmp_path / "installed" / "dsd_lab" / "experiments"
    assert not packed.is_symlink() and sorted(p.stem for p in packed.glob("*.yaml")) == NAMES
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DSD_LAB")}
    environment |= {"PYTHONPATH": str(tmp_path / "installed"), "PYTHONSAFEPATH": "1"}

    def called(*arguments):
        command = [sys.executable, "-m", "dsd_lab", *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)

    listed = json.loads(called("specs", "--json").stdout)["specs"]
    assert {Path(row["file"]).parent for row in listed} == {packed}
    assert called("init", "my.yaml", "--from", "mnist").returncode == OK
    tiny = ["--only", "variant=dsd", "--only", "seed=0", "--set", "network.width=16", "--set", "training.steps=4"]
    swept = called("sweep", "collapse_ablation", *tiny, "--set", "evaluate=[]", "--no-tracking")
    assert swept.returncode == OK, swept.stdout + swept.stderr
    assert (folder / "runs" / "sweeps" / "collapse_ablation--quick" / "manifest.json").exists()
    # What it prints to go on with is typed as it stands.
    following = next(line for line in swept.stdout.splitlines() if line.startswith("next: ")).removeprefix("next: ")
    assert following == f"{sys.executable} -m dsd_lab report collapse_ablation--quick"
