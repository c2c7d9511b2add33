"""Progress of a sweep: a live table in a terminal, plain lines elsewhere. Reads the home folder only."""

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
from dsd_lab.specs.evaluate_list import applies
from dsd_lab.specs.report import ReportSettings
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import Generation
from dsd_lab.training_code import training_code
from dsd_lab.units import duration

_OVER = ("done", "failed", "diverged", "stopped")
"""States in which this run does no more for a trial."""
_PLAIN_EVERY = 30.0
_Looked = list[tuple[PlannedTrial, str, Status]]
"""Every trial, its state and its status."""


class SweepProgress:
    """Watches the trials of a sweep from a thread until the `with` block ends.

    Args:
        home: where the trials write their states.
        trials: all trials of the sweep, finished ones too.
        console: where to draw.
        evaluations: of every finished trial.
        settings: of the report, by which the verdict so far is judged.
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
        self._wanted = {t.id: sum(applies(e, t.fields) for e in evaluations) for t in trials}
        self._evaluated: dict[str, list[float]] = {}
        self._released: set[str] = set()
        """Finished trials that nobody works on."""
        self._holdout: int | None = None
        self._ended: set[str] = set()
        """Trials whose end was told, or came before."""
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> SweepProgress:
        self._ended = {t.id for t, state, _ in self._look() if state not in ("running", "pending", "interrupted")}
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
        told = time.monotonic()
        while True:
            last = self._stop.wait(1.0)
            looked = self._look()
            for trial, state, status in looked:
                if trial.id not in self._ended and state in _OVER:
                    self._ended.add(trial.id)
                    note = f": {status.error}" if status.error else ""
                    took = duration(status.seconds)
                    self._say(f"{trial.name}: {state} after {took}{note}")
            if not last and time.monotonic() - told > _PLAIN_EVERY:
                told = time.monotonic()
                seen = self._seen(looked)
                self._say(self._summary(looked, seen))
                for row in self._rows(looked, seen):
                    self._say(f"  {plain_row(row)}")
                for trial, _, _ in looked:
                    if how_far := self._home.trial(trial.id).evaluating():
                        self._say(f"  {trial.name}: {how_far}")
            if last:
                return

    def _say(self, line: str) -> None:
        """One line, however long: it may go to a file, which has no width."""
        self._console.print(printable(line), soft_wrap=True)

    def _look(self) -> _Looked:
        looked = []
        for trial in self._trials:
            folder = self._home.trial(trial.id)
            status = folder.status()
            looked.append((trial, folder.state(status=status), status))
        return looked

    def _summary(self, looked: _Looked, seen: list[TrialProgress]) -> str:
        counts = Counter(state for _, state, _ in looked)
        parts = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        left = self._remaining.seconds(seen, self._holdout)
        spent = duration(time.monotonic() - self._began)
        return f"{parts}; {spent} spent, {'about ' + duration(left) + ' left' if left is not None else 'time left not known yet'}"

    def _seen(self, looked: _Looked) -> list[TrialProgress]:
        seen = []
        for trial, state, status in looked:
            folder = self._home.trial(trial.id)
            if state == "done" and len(self._evaluated.get(trial.id, ())) < self._wanted[trial.id]:
                self._evaluated[trial.id] = [e.seconds for e in folder.evaluations().values()]
            at_work = state == "running" or (state == "done" and trial.id not in self._released and folder.is_locked())
            complete = len(self._evaluated.get(trial.id, ())) >= self._wanted[trial.id]
            if state == "done" and not at_work and complete:
                self._released.add(trial.id)
            over = status.step - status.own_steps
            seen.append(
                TrialProgress(
                    trial, state, status.step, status.seconds, self._evaluated.get(trial.id, ()), at_work, over
                )
            )
            if self._holdout is None:
                described = folder.description()
                self._holdout = None if described is None else described.data.holdout
        return seen

    def _rows(self, looked: _Looked, seen: list[TrialProgress]) -> list[Row]:
        """The trials that train."""
        each = self._remaining.each(seen, self._holdout) or {}
        return [
            Row(
                trial.name,
                status.step,
                trial.fields.training.steps,
                self._live.so_far(trial),
                each.get(trial.id),
            )
            for trial, state, status in looked
            if state == "running"
        ]

    def _variants(self, looked: _Looked) -> list[Variant]:
        groups: dict[str, _Looked] = {}
        for row in looked:
            groups.setdefault(row[0].name.rsplit(" ", 1)[0], []).append(row)
        found = []
        for name, rows in groups.items():
            working = [(t, self._home.trial(t.id).evaluating()) for t, state, _ in rows if state == "done"]
            notes = [f"s{t.seed} {how_far}" for t, how_far in working if how_far]
            notes += [f"s{t.seed}: {s.error}" for t, state, s in rows if state in _OVER[1:]]
            found.append(Variant(name, [state for _, state, _ in rows], "; ".join(notes)))
        return found

    def _table(self, looked: _Looked) -> Group:
        size, seen = self._console.size, self._seen(looked)
        summary, rows = self._summary(looked, seen), self._rows(looked, seen)
        return live_table(summary, rows, self._variants(looked), size.width, size.height)
