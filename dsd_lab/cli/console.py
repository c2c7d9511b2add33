"""Where tables are printed."""

from __future__ import annotations

from rich.console import Console

_UNBOUNDED = 500
"""Columns of a file or a pipe, wider than any table: rich would take 80 there, and wrap or cut what is wider."""


def table_console() -> Console:
    """As wide as the terminal; in a file or a pipe every row is one line."""
    console = Console()
    return console if console.is_terminal else Console(width=_UNBOUNDED)
