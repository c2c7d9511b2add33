"""Every message about bad input, as a table that people read: `tests/fixtures/messages.md`, written anew by running this file."""

import os
import sys
import tempfile
from pathlib import Path

from test_bad_specs import ROWS, message_of

TABLE = Path(__file__).parent / "fixtures" / "messages.md"
HEAD = """\
# What dsd-lab says about bad specs

Written by `python tests/test_messages.py`; a test compares. A row for each bad input of `tests/test_bad_specs.py`:
what is wrong (B1 to B40 are the catalogue's numbers), and the one line that a person gets. Long lines are cut here.

| what | message |
|---|---|
"""
LONGEST = 300


def table() -> str:
    rows = []
    for row in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            message = message_of(row, Path(folder))
        shown = message if len(message) <= LONGEST else message[:LONGEST] + " ..."
        cells = [cell.replace("|", "\\|").replace("\n", "\\n") for cell in (row.id, shown)]
        rows.append(f"| {cells[0]} | {cells[1]} |\n")
    return HEAD + "".join(rows)


def test_the_messages_are_those_that_were_read_as_prose(monkeypatch):
    monkeypatch.chdir(Path.cwd())  # put back afterwards
    assert table() == TABLE.read_text(), "read the messages that changed, then run `python tests/test_messages.py`"


if __name__ == "__main__":
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(table())
    sys.exit(0)
