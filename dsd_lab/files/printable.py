"""Escape untrusted text for terminals and pages."""

from __future__ import annotations

import sys


def printable(text: str, keep: str = "") -> str:
    """Escape control, bidirectional and other invisible characters and unpaired surrogates as `\\x1b` or `\\u202e`.

    Args:
        text: from a spec, a file, a store or a table.
        keep: unprintable characters to leave unescaped, such as a line break.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str, most: int = 80) -> str:
    """Escape line breaks and control characters and truncate, for use in a message."""
    text = text if len(text) <= most else text[: most - 3] + "..."
    return printable(text)


def say(line: str, error: bool = False) -> None:
    """Print one line to standard output or standard error, with unprintable characters escaped."""
    print(printable(line), file=sys.stderr if error else sys.stdout, flush=True)
