"""Where every line is printed: nothing that a file, a spec or a store says reaches a terminal as more than text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from dsd_lab.files.printable import printable

_UNBOUNDED = 500
"""Columns of a file or a pipe, wider than any table: rich would take 80 there, and wrap or cut what is wider."""


class LabConsole(Console):
    """A console without markup, emoji codes and highlighting, that escapes what does not print."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text, keep="\n"), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, keep="\n"))


def table_console(stderr: bool = False) -> LabConsole:
    """As wide as the terminal; in a file or a pipe every row is one line."""
    console = LabConsole(stderr=stderr)
    return console if console.is_terminal else LabConsole(stderr=stderr, width=_UNBOUNDED)
