"""Progress of a sweep: a live table in a terminal, else plain lines. Reads only the home folder."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live

from dsd_lab.cli.live_table import Row, Variant, live_table, plain_row
from dsd_lab.cli.live_trials import LiveTrials
from dsd_lab.files.printable import printable
from dsd_lab.home.home import Home
from dsd_lab.home.trial_records import Status
from dsd_lab.planning.estimates import cached_shape
from dsd_lab.planning.eta import Remaining, TrialProgress
from dsd_lab.specs.evaluate_list import of_trial
from dsd_lab.specs.report import ReportSettings
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import Generation
from dsd_lab.training_code import training_code
from dsd_lab.units import duration

_FINISHED = ("done", "failed", "diverged", "stopped")
"""States in which this sweep does no more for a trial."""
_PRINT_SECONDS = 30.0
_Snapshot = list[tuple[PlannedTrial, str, Status]]
"""All trials with state and status."""


class SweepProgress:
    """Watches the trials of a sweep in a thread within the `with` block.

    Args:
        home: where the trials write their states.
        trials: all trials of the sweep, finished ones included.
        console: output.
        evaluations: made for every finished trial.
        settings: of the report, for the verdict so far.
    """

    def __init__(
        self,
        home: Home,
        trials: list[PlannedTrial],
        console: Console,
        evaluations: Sequence[Generation],
        settings: ReportSettings,
    ) -> None:
        self._home, self._trials, self._console = home, trials, console
        self._stop = threading.Event()
        self._began = time.monotonic()
        code = training_code()
        self._remaining = Remaining(trials, evaluations, lambda fields: cached_shape(fields, home, code))
        self._live = LiveTrials(home, trials, settings)
        self._wanted = {t.id: len(of_trial(evaluations, t.fields)) for t in trials}
        self._evaluated: dict[str, list[float]] = {}
        self._released: set[str] = set()
        """Finished trials without a live process."""
        self._holdout: int | None = None
        self._ended: set[str] = set()
        """Trials whose end was printed, or came before."""
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> SweepProgress:
        self._ended = {t.id for t, state, _ in self._snapshot() if state not in ("running", "pending", "interrupted")}
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        if self._console.is_terminal:
            with Live(self._table(self._snapshot()), console=self._console, refresh_per_second=2) as live:
                while not self._stop.wait(1.0):
                    live.update(self._table(self._snapshot()))
                live.update(self._table(self._snapshot()))
        else:
            self._plain()

    def _plain(self) -> None:
        printed = time.monotonic()
        while True:
            last = self._stop.wait(1.0)
            snapshot = self._snapshot()
            for trial, state, status in snapshot:
                if trial.id not in self._ended and state in _FINISHED:
                    self._ended.add(trial.id)
                    note = f": {status.error}" if status.error else ""
                    took = duration(status.seconds)
                    self._say(f"{trial.name}: {state} after {took}{note}")
            if not last and time.monotonic() - printed > _PRINT_SECONDS:
                printed = time.monotonic()
                seen = self._seen(snapshot)
                self._say(self._summary(snapshot, seen))
                for row in self._rows(snapshot, seen):
                    self._say(f"  {plain_row(row)}")
                for trial, _, _ in snapshot:
                    if progress := self._home.trial(trial.id).evaluating():
                        self._say(f"  {trial.name}: {progress}")
            if last:
                return

    def _say(self, line: str) -> None:
        """Print one line, unwrapped, since a file has no width."""
        self._console.print(printable(line), soft_wrap=True)

    def _snapshot(self) -> _Snapshot:
        snapshot = []
        for trial in self._trials:
            folder = self._home.trial(trial.id)
            status = folder.status()
            snapshot.append((trial, folder.state(status=status), status))
        return snapshot

    def _summary(self, snapshot: _Snapshot, seen: list[TrialProgress]) -> str:
        counts = Counter(state for _, state, _ in snapshot)
        parts = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        left = self._remaining.seconds(seen, self._holdout)
        spent = duration(time.monotonic() - self._began)
        return f"{parts}; {spent} spent, {'about ' + duration(left) + ' left' if left is not None else 'remaining time unknown'}"

    def _seen(self, snapshot: _Snapshot) -> list[TrialProgress]:
        seen = []
        for trial, state, status in snapshot:
            folder = self._home.trial(trial.id)
            if state == "done" and len(self._evaluated.get(trial.id, ())) < self._wanted[trial.id]:
                self._evaluated[trial.id] = [e.seconds for e in folder.evaluations().values()]
            is_active = state == "running" or (
                state == "done" and trial.id not in self._released and folder.is_locked()
            )
            complete = len(self._evaluated.get(trial.id, ())) >= self._wanted[trial.id]
            if state == "done" and not is_active and complete:
                self._released.add(trial.id)
            over = status.step - status.own_steps
            seen.append(
                TrialProgress(
                    trial, state, status.step, status.seconds, self._evaluated.get(trial.id, ()), is_active, over
                )
            )
            if self._holdout is None:
                described = folder.description()
                self._holdout = None if described is None else described.data.holdout
        return seen

    def _rows(self, snapshot: _Snapshot, seen: list[TrialProgress]) -> list[Row]:
        """Rows of the running trials."""
        each = self._remaining.each(seen, self._holdout) or {}
        return [
            Row(
                trial.name,
                status.step,
                trial.fields.training.steps,
                self._live.so_far(trial),
                each.get(trial.id),
            )
            for trial, state, status in snapshot
            if state == "running"
        ]

    def _variants(self, snapshot: _Snapshot) -> list[Variant]:
        groups: dict[str, _Snapshot] = {}
        for row in snapshot:
            groups.setdefault(row[0].name.rsplit(" ", 1)[0], []).append(row)
        found = []
        for name, rows in groups.items():
            working = [(t, self._home.trial(t.id).evaluating()) for t, state, _ in rows if state == "done"]
            notes = [f"s{t.seed} {progress}" for t, progress in working if progress]
            notes += [f"s{t.seed}: {s.error}" for t, state, s in rows if state in _FINISHED[1:]]
            found.append(Variant(name, [state for _, state, _ in rows], "; ".join(notes)))
        return found

    def _table(self, snapshot: _Snapshot) -> Group:
        size, seen = self._console.size, self._seen(snapshot)
        summary, rows = self._summary(snapshot, seen), self._rows(snapshot, seen)
        return live_table(summary, rows, self._variants(snapshot), size.width, size.height)
