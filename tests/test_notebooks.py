"""The notebooks: run from a clean kernel against a small store, and committed with the outputs of a real run."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from sweeping import EVALUATION, run, train_here, write_spec

from dsd_lab.errors import OK, BadInput
from dsd_lab.home.home import Home
from dsd_lab.report.figures.registry import FIGURES
from dsd_lab.report.notebook import open_sweep
from dsd_lab.report.tables.rendering import csv_cell
from dsd_lab.specs.loading import load_sweep

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


@pytest.mark.slow
def test_a_result_is_made_by_one_command_says_what_it_takes_and_is_not_made_twice(tmp_path, monkeypatch, capfd):
    results = loaded("results")
    write_spec(tmp_path / "experiments", {"dsd": {}}, name="small", profiles={"p": {"seeds": [0, 1]}})
    (tmp_path / "experiments" / "spec.yaml").rename(tmp_path / "experiments" / "small.yaml")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setitem(results.RESULTS, "small", results.Result("small", "p", "nowhere"))
    asked = argparse.Namespace(names=["small"], home=str(tmp_path / "home"), out=str(tmp_path / "out"), set=["base.training.steps=4"])  # fmt: skip
    results.main(asked)
    made = json.loads((tmp_path / "out" / "small" / "result.json").read_text())
    assert made["trials"] == {"done": 2} and made["seeds"] == [0, 1] and made["git_commit"] is not None
    assert "--set base.training.steps=4" in made["command"] and made["machine"]["processor"] and made["code"]
    assert (tmp_path / "out" / "small" / "report.html").exists()
    results.main(asked)
    told = capfd.readouterr().out
    assert "small: 2 of 2 trials left, about" in told and "small: 0 of 2 trials left" in told


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
