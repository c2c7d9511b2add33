"""Progress of a sweep: a live table in a terminal, plain lines elsewhere. Reads the home folder only."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dsd_lab.home import Home
from dsd_lab.specs.sweep import PlannedTrial

_COLOURS = {
    "done": "green",
    "running": "cyan",
    "failed": "bold red",
    "diverged": "yellow",
    "interrupted": "magenta",
    "stopped": "yellow",
    "stale": "yellow",
    "pending": "dim",
}
_OVER = ("done", "failed", "diverged", "stopped")
"""States in which this run does no more for a trial."""
_PLAIN_EVERY = 30.0


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class SweepProgress:
    """Watches the trials of a sweep from a thread until the `with` block ends.

    Args:
        home: where the trials write their states.
        trials: all trials of the sweep, finished ones too.
        console: where to draw.
    """

    def __init__(self, home: Home, trials: list[PlannedTrial], console: Console) -> None:
        self._home, self._trials, self._console = home, trials, console
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> SweepProgress:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        if self._console.is_terminal:
            with Live(self._table(self._look()), console=self._console, refresh_per_second=2) as live:
                while not self._stop.wait(1.0):
                    live.update(self._table(self._look()))
                live.update(self._table(self._look()))
        else:
            self._plain()

    def _plain(self) -> None:
        ended = {t.id for t, state, _ in self._look() if state not in ("running", "pending", "interrupted")}
        told = time.monotonic()
        while True:
            last = self._stop.wait(1.0)
            looked = self._look()
            self._time_left(looked)
            for trial, state, status in looked:
                if trial.id not in ended and state in _OVER:
                    ended.add(trial.id)
                    note = f": {status.get('error')}" if status.get("error") else ""
                    took = duration(float(status.get("seconds", 0)))
                    self._console.print(f"{trial.name}: {state} after {took}{note}", markup=False, highlight=False)
            if not last and time.monotonic() - told > _PLAIN_EVERY:
                told = time.monotonic()
                self._console.print(self._summary(looked), markup=False, highlight=False)
            if last:
                return

    def _look(self) -> list[tuple[PlannedTrial, str, dict[str, Any]]]:
        looked = []
        for trial in self._trials:
            folder = self._home.trial(trial.id)
            looked.append((trial, folder.state(), folder.status()))
        return looked

    def _summary(self, looked: list[tuple[PlannedTrial, str, dict[str, Any]]]) -> str:
        counts = Counter(state for _, state, _ in looked)
        parts = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        left = self._time_left(looked)
        spent = duration(time.monotonic() - self._began)
        return f"{parts}; {spent} spent, {'about ' + duration(left) + ' left' if left is not None else 'time left not known yet'}"

    def _time_left(self, looked: list[tuple[PlannedTrial, str, dict[str, Any]]]) -> float | None:
        """Remaining steps over the steps a second of this run so far."""
        done = remaining = 0
        for trial, state, status in looked:
            step, steps = int(status.get("step", 0)), trial.fields.training.steps
            done += min(step, steps)
            remaining += 0 if state in _OVER else steps - step
        if remaining == 0:
            return 0.0
        now = time.monotonic()
        if self._first is None or (self._first[1] == done and now - self._first[0] > 1.5):
            self._first = (now, done)  # time starts with the first step, not with the workers' start
        since, before = self._first
        if done == before:
            return None
        rate = (done - before) / (now - since)
        return remaining / rate

    def _table(self, looked: list[tuple[PlannedTrial, str, dict[str, Any]]]) -> Group:
        table = Table(box=None, pad_edge=False)
        for column in ("variant", "trials", "now"):
            table.add_column(column)
        groups: dict[str, list[tuple[PlannedTrial, str, dict[str, Any]]]] = {}
        for row in looked:
            groups.setdefault(row[0].name.rsplit(" ", 1)[0], []).append(row)
        for name, rows in groups.items():
            marks = Text()
            for _, state, _ in rows:
                marks.append(
                    {"done": "●", "running": "◐", "pending": "○", "failed": "✗", "diverged": "▲", "stopped": "■"}.get(
                        state, "◌"
                    ),
                    _COLOURS[state],
                )
            running = ", ".join(
                f"s{t.seed} {int(s.get('step', 0)):,}/{t.fields.training.steps:,}"
                for t, state, s in rows
                if state == "running"
            )
            failed = "; ".join(f"s{t.seed} {s.get('error')}" for t, state, s in rows if state in _OVER[1:])
            table.add_row(name, marks, Text(running or failed, "red" if failed and not running else ""))
        return Group(Text(self._summary(looked)), table)
