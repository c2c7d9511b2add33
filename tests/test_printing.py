"""What specs, files and stores say reaches a terminal, a table and a page as text and as nothing else."""

import base64
import contextlib
import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from rich.table import Table
from rich.text import Text
from sweeping import run, write_spec

from dsd_lab.cli.console import LabConsole, table_console
from dsd_lab.cli.main import main
from dsd_lab.errors import BAD_INPUT, OK
from dsd_lab.files.printable import printable, say
from dsd_lab.home.home import Home
from dsd_lab.report.tables.rendering import csv_cell, markdown_text

KEPT = Path(__file__).parent / "fixtures" / "home-schema1" / "home"
EVIL = "\x1b[2J\x1b]0;title\x07\u202egnp.exe\u2066\u200b\r\x9b31m"
PACKAGE = Path(__file__).resolve().parents[1] / "dsd_lab"


def shows_no_control(text):
    return all(c.isprintable() or c == "\n" for c in text)


def test_what_does_not_print_is_escaped_and_what_prints_stays():
    assert printable("a \u00e9 \u65e5 \U0001f600") == "a \u00e9 \u65e5 \U0001f600"
    assert printable("\x1b\u202e\ud800\n") == "\\x1b\\u202e\\ud800\\n"
    assert printable("a\nb\tc", keep="\n") == "a\nb\\tc"


@pytest.mark.parametrize("value", [EVIL, "[bold]y[/nope]", "[link=http://x]y[/link]", ":smile: [red]"], ids=ascii)
def test_nothing_reaches_a_terminal_as_more_than_text(value):
    out = io.StringIO()
    console = LabConsole(file=out, force_terminal=True, width=400)
    table = Table(title=value)
    table.add_column(value)
    table.add_row(value)
    table.add_row(Text(value))
    console.print(table)
    console.print(value)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())  # rich's own colours
    assert shows_no_control(plain) and plain.count(printable(value)) >= 4  # rich drops the bell of a Text


def test_say_prints_one_line_whatever_it_holds(capsys):
    say(f"a\nb{EVIL}")
    say(EVIL, error=True)
    found = capsys.readouterr()
    assert found.out.count("\n") == found.err.count("\n") == 1
    assert shows_no_control(found.out + found.err)


def test_verbs_print_through_these_functions_alone():
    for path in [*(PACKAGE / "cli").glob("*.py"), PACKAGE / "store" / "uploader.py"]:
        text = path.read_text()
        if path.name not in (
            "completion.py",
            "options.py",
            "main.py",
        ):  # a script for a shell; JSON, which escapes on its own
            assert not re.search(r"(?<![\w.])print\(", text), path
        assert not re.search(r"(?<!Lab)\bConsole\(", text), path
    assert isinstance(table_console(), LabConsole)


def test_a_grid_value_that_looks_like_markup_is_printed_as_it_is(tmp_path, capsys):
    spec = write_spec(
        tmp_path, base={"data": {"source": "folder", "size": 8}}, grid={"data.path": ["[bold]y[/nope]", "b"]}
    )
    assert main(["plan", str(spec), "--home", str(tmp_path / "home")]) == OK
    assert "[bold]y[/nope]" in capsys.readouterr().out


@pytest.fixture
def evil_home(tmp_path):
    """A home whose files say what a terminal would act on."""
    shutil.copytree(KEPT, tmp_path / "home")
    path = tmp_path / "home" / "sweeps" / "old" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["why"] = f"why {EVIL} [bold]y[/nope]"
    for entry in manifest["trials"]:
        entry["point"] = {"data.name": f"[bold]{EVIL}[/nope]"}
        entry["name"] = f"{entry['variant']} name=[bold]{EVIL}[/nope] s{entry['seed']}"
    path.write_text(json.dumps(manifest))
    for status in (tmp_path / "home").glob("trials/*/status.json"):
        content = json.loads(status.read_text())
        status.write_text(json.dumps(content | {"error": f"[/nope] {EVIL}"}))
    return Home(tmp_path / "home")


@pytest.mark.integration
def test_no_verb_and_no_page_passes_on_what_a_terminal_would_act_on(evil_home, capsys):
    trial = next(p.name for p in evil_home.root.glob("trials/*"))
    for verb in (["status"], ["logs", trial], ["gc"], ["report", "old"], ["rm", "old"]):
        assert main([*verb, "--home", str(evil_home.root)]) == OK
        said = capsys.readouterr()
        assert shows_no_control(said.out) and shows_no_control(said.err), verb
    folder = evil_home.report_folder("old")
    for name in ("report.md", "report.html", "tables/trials.csv"):
        text = (folder / name).read_text()
        assert shows_no_control(text) and "\\x1b" in text, name


def test_a_complaint_about_a_hostile_name_is_one_line(tmp_path, capsys):
    assert main(["report", f"no{EVIL}such", "--home", str(tmp_path)]) == BAD_INPUT
    assert main(["import", str(tmp_path / f"x{EVIL}"), "--home", str(tmp_path / "h")]) == BAD_INPUT
    said = capsys.readouterr().err
    assert shows_no_control(said) and len(said.splitlines()) == 2


@pytest.mark.parametrize("text", [EVIL, "a\u202eb"])
def test_tables_hold_no_such_character(text):
    assert shows_no_control(markdown_text(text)) and csv_cell(f"={text}").startswith("'=")
    assert "\u202e" not in csv_cell(text)


@pytest.mark.integration
def test_a_page_runs_and_loads_nothing_but_its_own_style(evil_home):
    with contextlib.redirect_stdout(io.StringIO()):
        assert run("report", "old", "--home", evil_home.root)[0] == OK
    page = (evil_home.report_folder("old") / "report.html").read_text()
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert (
        policy == f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert page.index("Content-Security-Policy") < page.index("<style>")
    assert "<script" not in page and not re.search(r"\s(style|on\w+)=", page)  # what the policy would block
    assert not re.search(r'src="(?!data:image/png;base64,)', page)


# -- What cannot be stored -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ['why: "\\ud800"', 'why: "a\\0b"', '"\\ud800": 1', 'base: {data: {name: "\\udfff"}}'])
def test_text_that_cannot_be_stored_is_refused_before_anything_is_trained(text, tmp_path, capsys):
    spec = write_spec(tmp_path)
    content = yaml.safe_load(spec.read_text())
    content = {k: v for k, v in content.items() if k not in ("why", "base")}
    spec.write_text(f"{text}\n{yaml.safe_dump(content)}")
    assert main(["sweep", str(spec), "--home", str(tmp_path / "home")]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert ":1: " in line and "cannot be stored" in line and not (tmp_path / "home").exists()


def test_the_same_on_the_command_line(tmp_path, capsys):
    spec = write_spec(tmp_path)
    assert main(["plan", str(spec), "--set", 'why="\\ud800"']) == BAD_INPUT
    assert "half of a surrogate pair, which cannot be stored" in capsys.readouterr().err


def test_a_date_that_cannot_be_stored_is_said_to_be_none(tmp_path, capsys):
    shutil.copytree(KEPT, tmp_path / "home")
    path = tmp_path / "home" / "sweeps" / "old" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"run_at": 1e300}))
    assert main(["report", "old", "--home", str(tmp_path / "home")]) == BAD_INPUT
    assert "run_at: 1e+300 is not a date between 2000 and 2100" in capsys.readouterr().err
