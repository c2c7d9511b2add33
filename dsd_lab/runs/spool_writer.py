"""A trial's spool: one JSON line an event, on local disk, before anything else hears of it.

The spool is the truth that the store replays. Lines are numbered; since events are a function of
(trial, seed, step), a resumed trial that rewrites its tail writes the same numbers for the same
events, and a reader that has seen line n never needs it again.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from dsd_lab.core.observing.pictures import save_grid
from dsd_lab.core.training.events import Checkpointed, Diverged, Drew, Event, Finished, Logged, Probed
from dsd_lab.files.atomic import sync_file, sync_folder
from dsd_lab.home.names import NOT_FINITE, finite
from dsd_lab.home.record_types import FORMAT
from dsd_lab.home.spool import complete_lines, parsed_lines, read_spool, sound_lines
from dsd_lab.home.trial_records import SpoolLine
from dsd_lab.runs.meter import Meter

__all__ = ["Spool", "read_spool"]


class Spool:
    """Appends events to a file; used by the one process that runs the trial.

    Args:
        path: the spool file.
        images: folder for drawn images.
        resumed_at: step of the checkpoint that the trial resumes from; None starts it anew.
        told: whether that checkpoint has a line.
        lines: lines that precede that checkpoint; None, of an older checkpoint: found by their steps.
        meter: counts images, FLOPs and speed; None leaves them out.
    """

    def __init__(
        self,
        path: Path,
        images: Path,
        resumed_at: int | None,
        told: bool = True,
        lines: int | None = None,
        meter: Meter | None = None,
    ) -> None:
        kept = [] if resumed_at is None else _until_checkpoint(path, resumed_at, lines)
        self._images, self._meter, self._timed_from = images, meter, resumed_at or 0
        self._unflushed: list[Path] = []
        self._file = path.open("r+b" if path.exists() else "w+b")
        sync_folder(path.parent)
        self._file.truncate(sum(len(line) for line in kept))
        self._file.seek(0, os.SEEK_END)
        self._next = len(kept)
        last = SpoolLine.model_validate_json(kept[-1]) if kept else None
        written = last is not None and (last.kind, last.step) == ("checkpoint", resumed_at)
        if resumed_at is not None and told and not written:
            # Killed between the checkpoint and its line: the line is all that is missing.
            self._write(Checkpointed(resumed_at, 0.0))

    def append(self, event: Event) -> None:
        """Write one event; it outlives this process from here on, and a power cut from the next `flush` on."""
        line = self._write(event)
        self._unflushed += [self._images / name for name in line.files]

    def flush(self) -> dict[str, Any]:
        """Make everything that was appended survive a power cut; returns how many lines that is."""
        for path in self._unflushed:
            sync_file(path)
        if self._unflushed:
            sync_folder(self._images)
            sync_folder(self._images.parent)
        self._unflushed = []
        os.fsync(self._file.fileno())
        return {"lines": self._next}

    @property
    def bytes(self) -> int:
        """Size of the file so far."""
        return self._file.tell()

    def _write(self, event: Event) -> SpoolLine:
        version = {} if self._next else {"format": FORMAT}
        said = {"n": self._next, **version, "time": time.time(), "step": event.step, **_said(event, self._images)}
        if self._meter is not None:
            said |= self._meter.seen(event.step)
            if isinstance(event, Logged):
                said["machine"] = self._meter.speed(self._timed_from, event.step, event.seconds)
                self._timed_from = event.step
        line = SpoolLine.model_validate(said)
        self._file.write(line.model_dump_json(exclude_unset=True).encode() + b"\n")
        self._file.flush()
        self._next += 1
        return line

    def close(self) -> None:
        """Close the file; what was appended stays."""
        self._file.close()


def _until_checkpoint(path: Path, step: int, count: int | None) -> list[bytes]:
    """The lines before a checkpoint and its own, where it is there; what a power cut left after them is dropped."""
    lines = complete_lines(path)
    lines = lines if count is None else lines[: max(count, sound_lines(path))]
    kept: list[bytes] = []
    for line, entry in zip(lines, parsed_lines(lines, path), strict=True):
        if entry.step > step:
            break
        kept.append(line)
        if entry.kind == "checkpoint" and entry.step == step:
            break
    return kept


def _said(event: Event, images: Path) -> dict[str, Any]:
    """What a line says of an event beside its step."""
    if isinstance(event, Logged):
        return {"kind": "train", "metrics": finite(event.metrics), "seconds": event.seconds}
    if isinstance(event, Probed):
        damaged = [name for name, values in event.spectra.items() if not all(map(math.isfinite, values))]
        return {
            "kind": "probe",
            "metrics": finite(event.metrics) | {f"{NOT_FINITE}spectrum/{name}": 1.0 for name in damaged},
            "spectra": {name: values for name, values in event.spectra.items() if name not in damaged},
            "seconds": event.seconds,
        }
    if isinstance(event, Drew):
        return {
            "kind": "images",
            "files": [save_grid(images, name, event.step, grid) for name, grid in event.images.items()],
        }
    if isinstance(event, Checkpointed):
        return {"kind": "checkpoint", "seconds": event.seconds}
    if isinstance(event, Diverged):
        return {"kind": "diverged", "reason": event.reason}
    if isinstance(event, Finished):
        return {"kind": "finished", "images_seen": event.images_seen}
    raise TypeError(f"no spool entry for {type(event).__name__}")
