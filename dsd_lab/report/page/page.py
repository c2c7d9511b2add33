"""The pages of a report: one self-contained HTML file and the same in Markdown."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from dsd_lab.files.printable import printable
from dsd_lab.report.page.glossary import GLOSSARY, Term, first_terms, term_of
from dsd_lab.report.tables.rendering import Table, markdown, markdown_text
from dsd_lab.version import __version__

_DOTS, _SCALE = 200, 114
"""Dots per inch of the figures' bitmaps, and CSS pixels per inch."""


@dataclass(frozen=True)
class Drawn:
    """A figure that was drawn."""

    stem: str
    """Its files are `figures/<stem>.svg` and `.png`."""
    caption: str


@dataclass(frozen=True)
class Frames:
    """Pictures of one kind over training: one frame per step, one picture per row of the tables."""

    name: str
    caption: str
    steps: list[int]
    shots: list[list[tuple[str, str]]]
    """By step: label and data URL of each picture; an empty URL if there is no picture at that step."""


@dataclass(frozen=True)
class Page:
    """The content of both pages of a sweep, in reading order."""

    key: str
    """Key of the sweep."""
    title: str
    why: str
    notices: list[str]
    answer: list[str]
    method: str
    tables: list[Table]
    """The first table comes after the first figure, before all other figures."""
    figures: list[Drawn]
    frames: list[Frames]
    columns: list[tuple[str, str, str]]
    """Label, metric and meaning of the first table's columns."""
    variants: list[tuple[str, str]]
    """Name and `why`."""
    provenance: list[tuple[str, str]]

    @property
    def terms(self) -> list[Term]:
        """Terms explained at the top."""
        return first_terms(self.tables[0].header) if self.tables else []


def write_html(pages: list[Page], folder: Path) -> None:
    """Write `report.html`. It makes no external requests, has no scripts, and escapes all text from specs.

    Its Content-Security-Policy allows only its own style, by hash, and inline pictures: text that escaped escaping could
    not load or run anything.
    """
    places, several = Path(__file__).parent, len(pages) > 1
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    files = {p.key: {d.stem: _place(folder, p, several) / f"{d.stem}.png" for d in p.figures} for p in pages}
    images = {key: {stem: (_inline(f), _width(f)) for stem, f in found.items()} for key, found in files.items()}
    most = max((len(f.steps) for p in pages for f in p.frames), default=1)
    colours = sorted({colour for p in pages for table in p.tables for colour in table.dots})
    dots = {colour: f"dot-{number}" for number, colour in enumerate(colours)}
    style = environment.from_string((places / "page.css").read_text()).render(most=most, dots=dots)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    template = environment.from_string((places / "page.html").read_text())
    shown = template.render(
        pages=pages,
        images=images,
        several=several,
        dots=dots,
        style=Markup(style),
        policy=Markup(policy),
        made=_now(),
        version=__version__,
        glossary=GLOSSARY,
        term_of=term_of,
    )
    (folder / "report.html").write_text(shown)


def _shown(value: Any) -> Any:
    return printable(value, keep="\n") if type(value) is str else value


def _place(folder: Path, page: Page, several: bool) -> Path:
    """Folder of a page's figures; with several sweeps, each has its own."""
    return folder / page.key / "figures" if several else folder / "figures"


def write_markdown(pages: list[Page], folder: Path) -> None:
    """Write `report.md`, with figures by relative path."""
    parts = [f"# {markdown_text(', '.join(p.title for p in pages))}"] if len(pages) > 1 else []
    for page in pages:
        parts += _md_parts(page, _place(Path(), page, len(pages) > 1).as_posix())
    parts += ["## Glossary", _md_list([(t.name, t.meaning) for t in GLOSSARY])]
    parts.append(f"Made {_now()} by dsd-lab {__version__}.")
    (folder / "report.md").write_text("\n\n".join(filter(None, parts)) + "\n")


def summary(page: Page) -> str:
    """The question, the answer and the first table of a page, in Markdown."""
    parts = [
        markdown_text(page.why),
        *(f"**{markdown_text(a)}**" for a in page.answer),
        *map(markdown, page.tables[:1]),
    ]
    return "\n\n".join(filter(None, parts))


def _md_parts(page: Page, place: str) -> list[str]:
    lead, *others = [_md_figure(d, place, number) for number, d in enumerate(page.figures, 1)] or [""]
    parts = [f"# {markdown_text(page.title)}", markdown_text(page.why)]
    parts += [f"> {markdown_text(n)}" for n in page.notices]
    parts += [f"**{markdown_text(a)}**" for a in page.answer]
    parts += [_md_list([(t.name, t.meaning) for t in page.terms]), lead]
    for table in page.tables[:1]:
        parts += [f"## {markdown_text(table.title)}", markdown(table), markdown_text(table.note)]
        parts += [markdown_text(page.method)]
    if others:
        parts += ["## Figures", *others]
    for table in page.tables[1:]:
        shown = [markdown(table), markdown_text(table.note)]
        folded = ["<details><summary>Show</summary>", *shown, "</details>"] if table.folded else shown
        parts += [f"## {markdown_text(table.title)}", *folded]
    return [*parts, "## Variants", _md_list(page.variants), "## Provenance", _md_list(page.provenance)]


def _md_figure(drawn: Drawn, place: str, number: int) -> str:
    caption = markdown_text(drawn.caption)
    return f"![{caption}]({place}/{drawn.stem}.png)\n\n*Figure {number}. {caption}*"


def _md_list(pairs: list[tuple[str, str]]) -> str:
    return "\n".join(f"- **{markdown_text(name)}**: {markdown_text(text)}" for name, text in pairs)


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _width(path: Path) -> int:
    """Width of a figure in CSS pixels; text has the same size in all figures, and the widest fill the page."""
    pixels = int.from_bytes(path.read_bytes()[16:20])
    return round(pixels / _DOTS * _SCALE)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
