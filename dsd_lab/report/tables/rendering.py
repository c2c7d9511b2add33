"""One table in four formats: HTML, Markdown and LaTeX from its cells, CSV from its numbers.

Names, grid values and error texts come from specs and machines, so every format escapes them.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dsd_lab.files.printable import printable
from dsd_lab.report.statistics.intervals import Estimate

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}
_DOCUMENT = r"""\documentclass[a4paper,landscape]{article}
\usepackage[T1]{fontenc}
\usepackage[margin=1.5cm]{geometry}
\usepackage{booktabs}
\begin{document}
%s
\end{document}
"""


@dataclass(frozen=True)
class Cell:
    """A cell: a text of one or more lines, a smaller second part, and a tone."""

    text: str
    detail: str = ""
    tone: str = ""
    """`good`, `bad`, `mixed` or empty."""


@dataclass(frozen=True)
class Table:
    """A table of the report: cells to show, and their numbers."""

    name: str
    """Stem of its files."""
    title: str
    header: list[str]
    rows: list[list[Cell]]
    frame: pd.DataFrame
    """Every number at full precision, for CSV."""
    note: str = ""
    dots: list[str] = field(default_factory=list)
    """Colours of the rows; empty for none."""
    folded: bool = False
    """Whether it is collapsed in HTML and left out of LaTeX, because it is long."""


def shown(value: float, digits: int, signed: bool = False) -> str:
    """A number with a fixed number of decimals; never `-0.00`."""
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.lstrip("+-") if not text.strip("+-0.") else text


def estimate_cell(value: Estimate | None, digits: int, signed: bool = False, more: str = "") -> Cell:
    """Mean, and below it the 95 % interval, if there is one."""
    if value is None:
        return Cell("-")
    interval = ""
    if value.ci_low is not None and value.ci_high is not None:
        interval = f"[{shown(value.ci_low, digits, signed)}, {shown(value.ci_high, digits, signed)}]"
    return Cell(shown(value.mean, digits, signed), "; ".join(filter(None, (interval, more))))


def write_tables(tables: list[Table], folder: Path) -> None:
    """Write `<name>.csv` and `<name>.tex` of every table, and `report.tex`, a document with all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    printed = [t for t in tables if not t.folded]
    for table in tables:
        safe = table.frame.rename(columns=csv_cell).map(csv_cell)
        safe.to_csv(folder / f"{table.name}.csv", index=False, lineterminator="\n")
    for table in printed:
        (folder / f"{table.name}.tex").write_text(latex(table))
    (folder / "report.tex").write_text(_DOCUMENT % "\n".join(f"\\input{{{t.name}.tex}}" for t in printed))


def csv_cell(value: Any) -> Any:
    """A value for a CSV file: seeds are joined by spaces; text that a spreadsheet would read as a formula is quoted."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if not isinstance(value, str):
        return value
    return ("'" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else "") + printable(value, keep="\n\t\r")


def latex(table: Table) -> str:
    """A LaTeX `table` environment; it needs the package booktabs."""
    label = table.name.replace("_", "-")
    head = " & ".join(_stack(textwrap.wrap(label_, 12, break_long_words=False)) for label_ in table.header)
    body = "\n".join(" & ".join(map(_latex_cell, row)) + r" \\" for row in table.rows)
    note = f"\n\\par\\smallskip\\parbox{{\\linewidth}}{{\\scriptsize {latex_text(table.note)}}}" if table.note else ""
    return rf"""% Needs \usepackage{{booktabs}}.
\begin{{table}}
\centering\footnotesize\setlength{{\tabcolsep}}{{4pt}}
\caption{{{latex_text(table.title)}}}\label{{tab:{label}}}
\begin{{tabular}}{{{"l" * len(table.header)}}}
\toprule
{head} \\
\midrule
{body}
\bottomrule
\end{{tabular}}{note}
\end{{table}}
"""


def _latex_cell(cell: Cell) -> str:
    details = textwrap.wrap(cell.detail, 24, break_long_words=False)
    return _stack(cell.text.split("\n"), details)


def _stack(lines: list[str], small: list[str] | None = None) -> str:
    parts = [*map(latex_text, lines), *(f"{{\\scriptsize {latex_text(line)}}}" for line in small or [])]
    return (
        parts[0]
        if len(parts) == 1
        else f"\\shortstack[l]{{{' '.join(f'{p}' + chr(92) * 2 for p in parts[:-1])}{parts[-1]}}}"
    )


def latex_text(text: str) -> str:
    """Text escaped for LaTeX; characters missing in its usual fonts become code points."""
    escaped = "".join(_LATEX.get(c, c) if " " <= c < "\x7f" else _beyond_ascii(c) for c in text)
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", escaped)


def _beyond_ascii(character: str) -> str:
    if character.isspace():
        return " "
    return character if "\u00a1" <= character <= "\u00ff" else f"[U+{ord(character):04X}]"


def markdown(table: Table) -> str:
    """A GitHub table."""
    rows = [table.header, ["---"] * len(table.header)]
    lines = ["| " + " | ".join(map(markdown_text, rows[0])) + " |", "| " + " | ".join(rows[1]) + " |"]
    for row in table.rows:
        cells = [markdown_text(" ".join(filter(None, (c.text.replace("\n", ", "), c.detail)))) for c in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown_text(text: str) -> str:
    """Text escaped for Markdown, on one line."""
    escaped = re.sub(r"([\\`*\[\]|~$])", r"\\\1", " ".join(printable(text, keep="\n\t").split()))
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)
    escaped = re.sub(r"^(\d*)([#+.)-])(?=[#\s])", r"\1\\\2", escaped)  # no heading, no list
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
