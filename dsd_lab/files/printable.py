"""Text of others as a terminal and a page can show it: what does not print is escaped."""

from __future__ import annotations

import sys


def printable(text: str, keep: str = "") -> str:
    """Control, bidirectional and other invisible characters, and halves of surrogate pairs, as `\\x1b` or `\\u202e`.

    Args:
        text: may come from a spec, a file, a store or a column of a table.
        keep: characters that stay as they are although they do not print, such as a line break.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str, most: int = 80) -> str:
    """`text` as it can stand in a message: line breaks and control characters escaped, the end cut off."""
    text = text if len(text) <= most else text[: most - 3] + "..."
    return printable(text)


def say(line: str, error: bool = False) -> None:
    """Print one line, however long, on standard output or on standard error; what does not print in it is escaped."""
    print(printable(line), file=sys.stderr if error else sys.stdout, flush=True)
