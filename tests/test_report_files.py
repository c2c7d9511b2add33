"""What a report leaves in its folder: the same numbers in every format, LaTeX that compiles, pictures over training, no old files."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sweeping import run, train_here, write_spec
from test_report import KINDS, SETTINGS, Reader, manifest, report, result, written  # noqa: F401

from dsd_lab.cli.main import main
from dsd_lab.home.home import Home
from dsd_lab.report.tables.rendering import latex_text, markdown_text
from dsd_lab.report.write import write_report

pytestmark = pytest.mark.integration

GROUP = re.compile(r"\{\\scriptsize ((?:[^{}\\]|\\.|\{\})*)\}")


def latex_rows(text):
    """The cells of a table's rows as plain text: the details after the text, as in the page."""
    body = text.partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    rows = []
    for line in filter(None, re.split(r" \\\\\n", body)):
        cells = []
        for cell in re.split(r" & ", line):
            inner = re.fullmatch(r"\\shortstack\[l\]\{(.*)\}", cell, re.S)
            parts = re.split(r"\\\\", inner[1]) if inner else [cell]
            cells.append(" ".join(GROUP.sub(r"\1", part) for part in parts))
        rows.append(cells)
    return rows


def flat(text):
    """Text without line breaks, and without the signs that stand between details."""
    return " ".join(text.replace(";", " ").replace(",", " ").split())


def test_every_cell_of_a_table_says_the_same_in_html_markdown_and_latex(report):  # noqa: F811
    page, _, folder, _ = report
    html = Reader((folder / "report.html").read_text()).rows
    lines = (folder / "report.md").read_text().splitlines()
    compared = 0
    for table in page.tables:
        shown = html[table.name]
        assert shown[0] == table.header and len(shown) == len(table.rows) + 1
        tex = None if table.folded else latex_rows((folder / "tables" / f"{table.name}.tex").read_text())
        assert tex is None or len(tex) == len(table.rows)
        for at, row in enumerate(table.rows):
            words = [" ".join(filter(None, (c.text.replace("\n", ", "), c.detail))) for c in row]
            assert "| " + " | ".join(markdown_text(w) for w in words) + " |" in lines
            for place, cell in enumerate(row):
                assert flat(shown[at + 1][place]) == flat(f"{cell.text} {cell.detail}")
                if tex is not None:
                    assert flat(tex[at][place]) == flat(latex_text(f"{cell.text} {cell.detail}".replace("\n", " ")))
                    compared += 1
    assert compared > 100


def test_the_numbers_of_latex_are_those_of_csv_and_json(report):  # noqa: F811
    _, content, folder, _ = report
    numbers = pd.read_csv(folder / "tables" / "verdicts.csv", float_precision="round_trip")
    rows = latex_rows((folder / "tables" / "verdicts.tex").read_text())
    for at, group in enumerate(content["variants"]):
        for column, (name, digits) in enumerate((("latent/std", 3), ("latent/effective_rank/token", 2)), 3):
            found = group["metrics"][name]
            assert numbers[f"{name} mean"][at] == found["mean"]
            assert rows[at][column].split()[0] == f"{found['mean']:.{digits}f}"
    compared = pd.read_csv(folder / "tables" / "comparisons.csv", float_precision="round_trip")
    assert compared["mean"].tolist() == [r["mean"] for r in content["comparisons"]["rows"]]


@pytest.mark.slow
def test_the_latex_compiles_as_it_is(report, tmp_path):  # noqa: F811
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex on this machine")
    shutil.copytree(report[2] / "tables", tmp_path / "tables")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(command, cwd=tmp_path / "tables", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "tables" / "report.pdf").stat().st_size > 10_000


def test_the_latex_is_balanced_and_every_row_has_the_columns_of_its_table(report):  # noqa: F811
    """What can be checked where no LaTeX is installed."""
    for path in (report[2] / "tables").glob("*.tex"):
        text = path.read_text()
        assert text.isascii() or text.encode("latin-1")
        bare = re.sub(r"\\[{}\\]", "", text)
        assert bare.count("{") == bare.count("}")
        opened = re.findall(r"\\begin\{(\w+)\}", text)
        assert sorted(opened) == sorted(re.findall(r"\\end\{(\w+)\}", text))
        if path.stem != "report":
            columns = len(re.search(r"\\begin\{tabular\}\{(l+)\}", text)[1])
            assert {len(row) for row in latex_rows(text)} == {columns}
            assert all(f"\\{rule}rule" in text for rule in ("top", "mid", "bottom"))


# -- Pictures over training --------------------------------------------------------------------------


def drew(folder, kind, step, grey, sign="+"):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    name = f"{kind}{sign}step{sign}{step}{sign}timestamp{sign}1{sign}{kind}-{step}.png"
    Image.fromarray(np.full((4, 4), grey, np.uint8)).save(folder / "images" / name)


def test_pictures_over_training_are_a_slider_that_needs_no_script(tmp_path):
    for step in (5, 10, 30):
        drew(tmp_path / "naive", "samples", step, step)
        drew(tmp_path / "naive", "reconstruction", step, step, sign="%")
    drew(tmp_path / "dsd", "samples", 30, 99)
    results = [result("naive", 1, "running", folder=tmp_path / "naive"), result("naive", 0, folder=tmp_path / "none")]
    results += [result("dsd", 0, folder=tmp_path / "dsd")]
    page, _ = write_report(results, SETTINGS, manifest(["naive", "dsd"]), tmp_path / "report")
    assert [(f.name, f.steps) for f in page.frames] == [("reconstruction", [5, 10, 30]), ("samples", [5, 10, 30])]
    assert [[label for label, _ in shots] for shots in page.frames[1].shots] == [
        ["naive, seed 1 (running)", "dsd, seed 0"]
    ] * 3
    assert [bool(address) for _, address in page.frames[1].shots[0]] == [True, False]
    tags = Reader((tmp_path / "report" / "report.html").read_text()).tags
    choices = [a for tag, a in tags if tag == "input"]
    assert {a["type"] for a in choices} == {"radio"} and len(choices) == 6
    assert [a["id"] for a in choices if "checked" in a] == ["reconstruction-steps-3", "samples-steps-3"]
    assert {a["for"] for tag, a in tags if tag == "label"} == {a["id"] for a in choices}


def test_one_step_needs_no_slider_and_many_are_thinned_out_between_the_first_and_the_last(tmp_path):
    drew(tmp_path / "one", "samples", 5, 5)
    for step in range(0, 400, 10):
        drew(tmp_path / "many", "samples", step, step % 255)
    for folder, expected in (("one", []), ("many", [[0, 390, 9]])):
        trials = [result("dsd", folder=tmp_path / folder)]
        page, _ = write_report(trials, SETTINGS, manifest(["dsd"]), tmp_path / f"report {folder}")
        assert [[f.steps[0], f.steps[-1], len(f.steps)] for f in page.frames] == expected


# -- The folder ----------------------------------------------------------------------------------------


def test_several_sweeps_make_one_report_with_a_folder_each_and_tables_under_their_own_anchors(
    tmp_path, capsys, monkeypatch
):
    home = Home(tmp_path / "home")
    specs = [write_spec(tmp_path / name, name=name, why=f"Why {name}?") for name in ("first", "second")]
    for spec in specs:
        train_here(home, spec)
    code, answer = run("report", *specs, "first", "--home", home.root)
    assert code == 0 and [s["sweep"] for s in answer["sweeps"]] == ["first", "second"]
    folder = home.report_folder("first+second")
    html, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    tags = Reader(html).tags
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids)) and {"first-verdicts", "second-verdicts", "first", "second"} <= set(ids)
    links = [a["href"][1:] for tag, a in tags if tag == "a"]
    assert set(links) <= set(ids)
    assert html.index("Why first?") < html.index("Why second?") and "# first, second" in text
    pictures = re.findall(r"\]\(([^)]+\.png)\)", text)
    assert len(pictures) >= 4 and all((folder / p).exists() for p in pictures)
    monkeypatch.setattr("dsd_lab.report.write.draw_all", lambda *_: [])  # tables and JSON are compared
    for name in ("first", "second"):
        assert (folder / name / "tables" / "verdicts.csv").exists()
        alone = run("report", name, "--home", home.root, "--out", tmp_path / "alone")[1]
        assert answer["sweeps"][("first", "second").index(name)] == alone
        assert (Path(tmp_path) / "alone" / "tables" / "verdicts.csv").read_bytes() == (
            folder / name / "tables" / "verdicts.csv"
        ).read_bytes()
    capsys.readouterr()
    assert main(["report", "first", "third", "--home", str(home.root)]) == 2
    assert "no sweep 'third'" in capsys.readouterr().err
