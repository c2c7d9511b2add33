"""Write a trial's spool: one JSON line per event, on local disk, from which the MLflow store is filled.

Lines are numbered. Events are a function of (trial, seed, step), so a resumed trial that rewrites
the end of its spool gives the same events the same numbers. A reader therefore never needs a line
twice.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from dsd_lab.core.observing.pictures import save_grid
from dsd_lab.core.training.events import Checkpointed, Diverged, Drew, Event, Finished, Logged, Probed
from dsd_lab.files.atomic import sync_file, sync_folder, write_atomic
from dsd_lab.home.names import NOT_FINITE, finite
from dsd_lab.home.record_types import FORMAT
from dsd_lab.home.spool import complete_lines, parsed_lines, read_spool, sound_lines
from dsd_lab.home.trial_records import SpoolLine
from dsd_lab.runs.meter import Meter

__all__ = ["Spool", "read_spool"]


class Spool:
    """Appends events to a spool; used only by the process that runs the trial.

    Args:
        path: the spool file.
        images: folder for image grids.
        resumed_at: step of the checkpoint that the trial resumes from; None: from the start.
        has_line: whether that checkpoint has a line.
        lines: number of lines before that checkpoint; None (older checkpoints): found by steps.
        meter: adds images, FLOPs and speed; None leaves them out.
    """

    def __init__(
        self,
        path: Path,
        images: Path,
        resumed_at: int | None,
        has_line: bool = True,
        lines: int | None = None,
        meter: Meter | None = None,
    ) -> None:
        kept = [] if resumed_at is None else _lines_to_checkpoint(path, resumed_at, lines)
        self._images, self._meter, self._timed_from = images, meter, resumed_at or 0
        self._unflushed: list[Path] = []
        # Replaced, not shortened in its place: its name may be a link to another file, or another name of one.
        write_atomic(path, b"".join(kept), durable=True)
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC), "ab")
        self._next = len(kept)
        last = SpoolLine.model_validate_json(kept[-1]) if kept else None
        written = last is not None and (last.kind, last.step) == ("checkpoint", resumed_at)
        if resumed_at is not None and has_line and not written:
            # The process was killed between the checkpoint and its line, so only the line is missing.
            self._write(Checkpointed(resumed_at, 0.0))

    def append(self, event: Event) -> None:
        """Write an event. It survives a kill of this process at once, and a power cut after the next `flush`."""
        line = self._write(event)
        self._unflushed += [self._images / name for name in line.files]

    def flush(self) -> dict[str, Any]:
        """Make all lines survive a power cut. Returns their number for the checkpoint: `{"lines": N}`."""
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
        """Current size of the file."""
        return self._file.tell()

    def _write(self, event: Event) -> SpoolLine:
        version = {} if self._next else {"format": FORMAT}
        fields = {
            "n": self._next,
            **version,
            "time": time.time(),
            "step": event.step,
            **_line_fields(event, self._images),
        }
        if self._meter is not None:
            fields |= self._meter.seen(event.step)
            if isinstance(event, Logged):
                fields["machine"] = self._meter.speed(self._timed_from, event.step, event.seconds)
                self._timed_from = event.step
        line = SpoolLine.model_validate(fields)
        self._file.write(line.model_dump_json(exclude_unset=True).encode() + b"\n")
        self._file.flush()
        self._next += 1
        return line

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _lines_to_checkpoint(path: Path, step: int, count: int | None) -> list[bytes]:
    """Lines up to and including a checkpoint's line. Lines after them, left by a power cut, are dropped."""
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


def _line_fields(event: Event, images: Path) -> dict[str, Any]:
    """Fields of an event's line without its step."""
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
