"""The notebooks: run from a clean kernel against a small store, and committed with the outputs of a real run."""

import argparse
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from sweeping import EVALUATION, run, train_here, write_spec

from dsd_lab.errors import OK, UNEXPECTED, BadInput
from dsd_lab.home.home import Home
from dsd_lab.report.figures.registry import FIGURES
from dsd_lab.report.notebook import open_sweep
from dsd_lab.report.tables.rendering import csv_cell
from dsd_lab.specs.loading import load_sweep
from dsd_lab.training_code import training_code

ANALYSIS = Path(__file__).resolve().parents[1] / "analysis"
NOTEBOOKS = sorted(ANALYSIS.glob("*.ipynb"))
UNRUN = sorted((ANALYSIS / "unrun").glob("*.ipynb"))
VELOCITY, CLEAN = ({"output": space, "loss_space": space} for space in ("velocity", "clean"))
VARIANTS = {
    "control": {"objective": {"diffusion_weight": 0.0}},
    "naive": {"objective": {"target": "live"} | VELOCITY},
    "decoupled": {"objective": {"target": "stop_gradient"} | VELOCITY},
    "clean_joint": {"objective": {"target": "live"} | CLEAN},
    "dsd_online": {"objective": {"target": "stop_gradient"} | CLEAN},
    "dsd": {"objective": {"target": "ema"} | CLEAN},
}


def cells(path):
    return json.loads(path.read_text())["cells"]


def shown(cell):
    return [output.get("data", {}) for output in cell.get("outputs", [])]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    home = Home(folder / "home")
    more = {"seeds": [0, 1], "evaluate": [EVALUATION], "base": {"probe": {"every": 3, "images": 16, "t_bins": 2, "gradient_images": 4}}}  # fmt: skip
    train_here(home, write_spec(folder / "a", VARIANTS, name="collapse_ablation", **more))
    some = {name: VARIANTS[name] for name in ("control", "naive")}
    train_here(home, write_spec(folder / "b", some, name="size_scaling", grid={"network.width": [16, 32]}, **more))
    normalisers = {"latent.normaliser": ["none", "layernorm"]}
    train_here(home, write_spec(folder / "c", some, name="normaliser_ablation", grid=normalisers, **more))
    some = {name: VARIANTS[name] for name in ("control", "naive", "dsd")}
    tuned = {"grid": {"optimiser.lr": [1e-3, 2e-3]}, "report": {"tuned": {"by": "fid"}}}
    for name in ("what_dsd_needs", "dsd_recipe"):
        train_here(home, write_spec(folder / name, some, name=name, **tuned, **more))
    axes = {"latent.normaliser": ["none", "layernorm"], "training.steps": [6, 9]}
    mapped = {"control": None, "reference": "naive", "map": {"x": "latent.normaliser", "y": "training.steps"}}
    two = {name: some[name] for name in ("naive", "dsd")}
    train_here(home, write_spec(folder / "d", two, name="regime_map", grid=axes, **more | {"report": mapped}))
    long = {"training": {"steps": 27}, "observation": {"images_every": 1000}}
    train_here(home, write_spec(folder / "e", some, name="slow_collapse", **more | {"base": more["base"] | long}))
    pair = {"control": some["control"], "live": some["naive"], "detached": {"objective": VELOCITY | {"target": "stop_gradient", "noised": "detached"}}}  # fmt: skip
    train_here(home, write_spec(folder / "f", pair, name="without_stop_gradient", grid=normalisers, **more))
    guided = [EVALUATION | {"guidance": scale} for scale in (1.0, 1.5)]
    train_here(home, write_spec(folder / "g", two, name="paper_mini", **more | {"evaluate": guided}))
    return home


def loaded(name):
    """A script of the folder as a module."""
    found = importlib.util.spec_from_file_location(name, ANALYSIS / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # its dataclasses ask for it
    found.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", [*NOTEBOOKS, *UNRUN], ids=lambda p: p.stem)
def test_a_notebook_runs_from_a_clean_kernel(home, path, monkeypatch):
    pytest.importorskip("nbclient", reason="notebooks need nbclient and ipykernel: pip install dsd-lab[test]")
    execute = loaded("execute")
    monkeypatch.setenv("PYTHONPATH", str(ANALYSIS.parent))
    monkeypatch.setenv("DSD_LAB_HOME", "")  # `execute` sets it; put back at the end
    made = execute.execute(path, home.root)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in code)
    kinds = {kind for cell in code for output in cell.outputs for kind in output.get("data", {})}
    assert "text/markdown" in kinds and ("image/png" in kinds) == (path.stem != "paper_tables")
    assert "tiny" not in json.dumps(made) and str(home.root) not in json.dumps(made)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_committed_notebook_opens_with_its_data_has_outputs_and_nothing_that_differs_from_run_to_run(path):
    content = json.loads(path.read_text())
    assert set(content["metadata"]) == {"kernelspec", "language_info"}
    first = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
    told = "".join(shown(first)[0]["text/markdown"])
    assert all(f"**{what}**" in told for what in ("commit", "training code", "versions", "machines", "data"))
    for number, cell in enumerate(content["cells"]):
        assert cell["id"] == f"cell-{number}" and cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["execution_count"] is None and cell["outputs"]
            assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in cell["outputs"])  # fmt: skip
            source = "".join(cell["source"])
            assert len(source.splitlines()) < 25 and "def " not in source  # thin: what is computed is the package's
    assert path.stat().st_size < 600_000


def test_a_notebook_that_was_not_run_has_no_outputs_and_no_executed_twin():
    for path in UNRUN:
        assert not (ANALYSIS / path.name).exists()
        assert all(not cell["outputs"] for cell in cells(path) if cell["cell_type"] == "code")


@pytest.mark.slow
def test_a_notebooks_tables_and_numbers_are_those_of_the_report(home, tmp_path):
    assert run("report", "collapse_ablation", "--home", home.root, "--out", tmp_path)[0] == OK
    page, opened = (tmp_path / "report.md").read_text(), open_sweep(home.root, "collapse_ablation")
    used = {"verdicts", "effects", "comparisons", "cost", "evaluations", "theory", "rank_gap"}
    assert used | {"trials"} <= {path.stem for path in (tmp_path / "tables").glob("*.csv")}
    for name in used:
        table = opened.table(name).markdown.split("\n\n")[1]
        assert table.startswith("| ") and len(table.splitlines()) > 3 and table in page
        frame = opened.frame(name).map(csv_cell)
        assert frame.to_csv(index=False) == (tmp_path / "tables" / f"{name}.csv").read_text()


def test_every_result_names_a_profile_notebooks_and_figures_that_there_are():
    figures = {f"{stem}.png" for stem, *_ in FIGURES}
    for name, result in loaded("results").RESULTS.items():
        plan = load_sweep(ANALYSIS.parent / "experiments" / f"{result.spec}.yaml", result.profile)
        assert plan.profile == result.profile and plan.trials, name
        assert {*result.notebooks} <= {path.stem for path in (*NOTEBOOKS, *UNRUN)}, name
        assert {*result.figures.values()} <= figures and all(
            (ANALYSIS / "figures" / f).exists() for f in result.figures
        )


def result_in(tmp_path, monkeypatch, **more):
    """A sweep of two trials as a result, and the arguments that make it."""
    results = loaded("results")
    write_spec(tmp_path / "experiments", {"dsd": {}}, name="small", profiles={"p": {"seeds": [0, 1]}})
    (tmp_path / "experiments" / "spec.yaml").rename(tmp_path / "experiments" / "small.yaml")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "RECORDS", tmp_path / "records")
    monkeypatch.setitem(results.RESULTS, "small", results.Result("small", "p", "nowhere", **more))
    asked = argparse.Namespace(names=["small"], home=str(tmp_path / "home"), out=str(tmp_path / "out"), set=["base.training.steps=4"], from_records=False)  # fmt: skip
    return results, asked


@pytest.mark.slow
def test_a_result_is_made_by_one_command_says_what_made_it_and_is_not_made_twice(tmp_path, monkeypatch, capfd):
    results, asked = result_in(tmp_path, monkeypatch)
    assert results.main(asked) == OK
    made = json.loads((tmp_path / "out" / "small" / "result.json").read_text())
    assert made["trials"] == {"done": 2} and made["seeds"] == [0, 1] and made["failed_notebooks"] == []
    assert made["command"].startswith("dsd-lab sweep ") and made["command"].endswith("--set base.training.steps=4")
    (by,) = made["trained_by"]
    assert by["trials"] == 2 and by["git_commit"] and by["machine"]["processor"] and by["code"] == training_code()
    assert (tmp_path / "out" / "small" / "report.html").exists()
    home = Home(tmp_path / "home")
    folders = [
        home.trial(t.id) for t in load_sweep(tmp_path / "experiments" / "small.yaml", "p", sets=asked.set).trials
    ]
    # Records of a trial that other code made: what is written now does not change who trained it.
    entry = json.loads((folders[0].root / "trial.json").read_text())
    entry["provenance"]["git_commit"] = "0" * 40
    (folders[0].root / "trial.json").write_text(json.dumps(entry))
    assert results.main(asked) == OK
    told = capfd.readouterr().out
    assert "small: 2 of 2 trials left, about" in told and "small: 0 of 2 trials left" in told
    again = json.loads((tmp_path / "out" / "small" / "result.json").read_text())
    assert {b["git_commit"]: b["trials"] for b in again["trained_by"]} == {"0" * 40: 1, by["git_commit"]: 1}
    assert again["trial_seconds"] == made["trial_seconds"] == pytest.approx(sum(f.status().seconds for f in folders), abs=0.1)  # fmt: skip
    assert again["reported_by"]["git_commit"] == by["git_commit"]


@pytest.mark.slow
def test_a_result_is_made_again_from_its_records_without_training(tmp_path, monkeypatch, capfd):
    results, asked = result_in(tmp_path, monkeypatch)
    assert results.main(asked) == OK
    packed = (tmp_path / "records" / "small.tar.xz").read_bytes()
    with tarfile.open(tmp_path / "records" / "small.tar.xz") as archive:
        assert all((e.uid, e.gid, e.uname, e.gname, e.mtime) == (0, 0, "", "", 0) for e in archive)
        texts = [archive.extractfile(e).read().decode(errors="replace") for e in archive if e.isfile()]
    assert len(texts) > 6 and not any(str(tmp_path) in text or socket.gethostname() in text for text in texts)
    tables = {path.name: path.read_text() for path in (tmp_path / "out" / "small" / "tables").glob("*.csv")}
    trained = json.loads((tmp_path / "out" / "small" / "result.json").read_text())["trained_by"]
    asked.home, asked.out, asked.from_records = str(tmp_path / "other"), str(tmp_path / "again"), True
    capfd.readouterr()
    assert results.main(asked) == OK
    assert "small: 0 of 2 trials left" in capfd.readouterr().out
    again = {path.name: path.read_text() for path in (tmp_path / "again" / "small" / "tables").glob("*.csv")}
    assert again.keys() == tables.keys() and again["verdicts.csv"] == tables["verdicts.csv"]
    (by,) = json.loads((tmp_path / "again" / "small" / "result.json").read_text())["trained_by"]
    assert [by["code"], by["git_commit"]] == [trained[0]["code"], trained[0]["git_commit"]]
    assert (tmp_path / "records" / "small.tar.xz").read_bytes() == packed


def test_large_records_stay_beside_their_report(tmp_path, monkeypatch, capfd):
    results, _ = result_in(tmp_path, monkeypatch)
    monkeypatch.setattr(results, "LARGEST", 1)
    monkeypatch.setattr(results, "_run", lambda command: Path(command[command.index("--out") + 1]).mkdir())
    kept = tmp_path / "records" / "small.tar.xz"
    for folder in (tmp_path / "out", kept.parent):
        folder.mkdir()
    kept.write_text("of an earlier run")
    results.keep_records("small", "small--p", tmp_path / "out", "home")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["records.tar.xz"] and not kept.exists()
    assert "its records are not kept in" in capfd.readouterr().out


def test_a_result_without_records_is_not_made_from_them(tmp_path, monkeypatch):
    results, asked = result_in(tmp_path, monkeypatch)
    asked.from_records = True
    with pytest.raises(SystemExit, match="no records of small in"):
        results.main(asked)


def test_stale_and_diverged_trials_are_not_left_and_stopped_or_failed_ones_are():
    results = loaded("results")
    states = ("done", "diverged", "stale", "pending", "failed", "interrupted", "stopped", "running", "other images")
    rows = [{"id": str(i), "status": state, "seconds": 2.0**i} for i, state in enumerate(states)]
    assert {row["status"] for row in results.unfinished(rows)} == {*states} - {"done", "diverged", "stale"}
    assert results.seconds_of(rows) * len(os.sched_getaffinity(0)) == sum(2.0**i for i in range(3, 9))


@pytest.mark.parametrize(
    ("code", "exit_code", "told"),
    [(0, OK, ""), (3, OK, "reads a sweep that has not been run yet"), (1, UNEXPECTED, "notebook one failed")],
)
def test_a_notebook_that_fails_is_an_error_after_everything_else_was_made(
    tmp_path, monkeypatch, capfd, code, exit_code, told
):
    """Sweep, report and plan are recorded and not run."""
    results, asked = result_in(tmp_path, monkeypatch, notebooks=("one", "two"))
    (tmp_path / "out" / "small").mkdir(parents=True)  # as `report` does
    called, really = [], subprocess.run

    def start(command, **more):
        if command[0] == "git":
            return really(command, **more)
        called.append([Path(word).name for word in command])
        if "export" in command:
            Path(command[command.index("--out") + 1]).mkdir()
        trials = json.dumps({"trials": [{"id": "0" * 12, "seed": 0, "status": "diverged", "seconds": 1.0}]})
        failing = command[-1] == "one" and command[1].endswith("execute.py")
        return subprocess.CompletedProcess(command, code if failing else 0, trials, "")

    monkeypatch.setattr(results.subprocess, "run", start)
    assert results.main(asked) == exit_code
    verbs = [next(w for w in words if w in ("plan", "sweep", "report", "export", "one", "two")) for words in called]
    assert verbs == ["plan", "sweep", "report", "export", "one", "two", "plan"]
    made = json.loads((tmp_path / "out" / "small" / "result.json").read_text())
    assert made["failed_notebooks"] == (["one"] if exit_code else []) and made["trials"] == {"diverged": 1}
    assert told in capfd.readouterr().out


def notebook(path, source):
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": None, "outputs": [], "source": source}
    path.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


@pytest.mark.parametrize(
    ("error", "code"), [("NoSweep('no sweep named so')", 3), ("BadInput('no table of that name')", None)]
)
def test_a_notebook_whose_sweep_is_missing_ends_apart_from_one_that_fails(tmp_path, monkeypatch, capsys, error, code):
    pytest.importorskip("nbclient", reason="notebooks need nbclient and ipykernel: pip install dsd-lab[test]")
    execute = loaded("execute")
    monkeypatch.setattr(execute, "FOLDER", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ANALYSIS.parent))
    monkeypatch.setenv("DSD_LAB_HOME", "")
    kind = error.partition("(")[0]
    notebook(
        tmp_path / "one.ipynb",
        f"from dsd_lab.{'home.lookup' if kind == 'NoSweep' else 'errors'} import {kind}\nraise {error}",
    )
    before = (tmp_path / "one.ipynb").read_bytes()
    with pytest.raises(SystemExit if code else execute.CellExecutionError) as ended:
        execute.main(str(tmp_path), "one")
    assert (tmp_path / "one.ipynb").read_bytes() == before
    assert code is None or (ended.value.code == code and "one: no sweep named so" in capsys.readouterr().err)


@pytest.mark.slow
def test_an_opened_sweep_says_what_it_does_not_have(home):
    opened = open_sweep(home.root, "collapse_ablation")
    with pytest.raises(BadInput, match="no table 'verdict'"):
        opened.table("verdict")
    with pytest.raises(BadInput, match="no figure 'nothing'"):
        opened.figure("nothing")
    with pytest.raises(BadInput, match="has no rows for the table 'scaling'"):
        opened.frame("scaling")
    with pytest.raises(BadInput, match="nothing to draw"):
        opened.figure("scaling")
    scaled = open_sweep(home.root, "size_scaling")
    frame = scaled.frame("scaling")
    assert frame["parameters"].nunique() == 2 and set(frame["variant"]) == {"control", "naive"}
    assert frame.equals(scaled.frame("scaling")) and scaled.figure("scaling").png.startswith(b"\x89PNG")
