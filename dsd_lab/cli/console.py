"""Console output in which untrusted text cannot act as markup or escape codes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from dsd_lab.files.printable import printable

_PIPE_WIDTH = 500
"""Columns of a file or pipe, wider than any table. Rich's default of 80 would wrap or truncate."""


class LabConsole(Console):
    """A console without markup, emoji codes and highlighting, which escapes unprintable characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text, keep="\n"), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, keep="\n"))


def table_console(stderr: bool = False) -> LabConsole:
    """A console as wide as the terminal; in a file or pipe, every table row is one line."""
    console = LabConsole(stderr=stderr)
    return console if console.is_terminal else LabConsole(stderr=stderr, width=_PIPE_WIDTH)
