"""Start a trial from another trial's checkpoint, where both train identically up to that step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from dsd_lab.core.training.checkpoints import load_checkpoint
from dsd_lab.errors import BadInput, CorruptCheckpoint
from dsd_lab.files.atomic import make_folder, sync_file, sync_folder, write_atomic
from dsd_lab.home.spool import complete_lines, is_whole_picture, parsed_lines
from dsd_lab.home.trial_folder import TrialFolder
from dsd_lab.home.trial_records import BeganFrom
from dsd_lab.planning.shared_steps import Beginning


def begin_from(found: Beginning, folder: TrialFolder, data: str, device: str) -> bool:
    """Copy records, images and checkpoint of another trial. The checkpoint comes last, so a trial has all or none.

    Args:
        found: by `find_beginning`.
        folder: of the trial to start.
        data: fingerprint of its images.
        device: type of its device.

    Returns:
        Whether it succeeded. False where a file is damaged or missing, or where images or device differ.
    """
    name = f"step-{found.step:09d}"
    try:
        _, state = load_checkpoint(found.folder.checkpoints / name)
        lines = _lines_until(found)
    except (CorruptCheckpoint, BadInput, OSError):
        return False
    if lines is None or (state.get("data"), state.get("device"), state.get("told", True)) != (data, device, True):
        return False
    pictures = [picture for line in lines for picture in json.loads(line).get("files", [])]
    try:
        if not all(is_whole_picture(found.folder.images / picture) for picture in pictures):
            return False
        for place in (folder.images, folder.checkpoints):
            make_folder(place)
        for picture in pictures:
            _copy(found.folder.images / picture, folder.images / picture)
        sync_folder(folder.images)
        write_atomic(folder.spool, b"".join(lines), durable=True)
        writing = folder.checkpoints / f".writing-{name}"
        shutil.rmtree(writing, ignore_errors=True)  # of an attempt that was killed
        shutil.copytree(found.folder.checkpoints / name, writing, symlinks=True, copy_function=_copy)
        sync_folder(writing)
        writing.rename(folder.checkpoints / name)
        sync_folder(folder.checkpoints)
    except FileNotFoundError:
        return False
    return True


def _copy(source: str | Path, target: str | Path) -> None:
    """Copy a file so that it outlives a power cut."""
    shutil.copyfile(source, target)
    sync_file(Path(target))


def _lines_until(found: Beginning) -> list[bytes] | None:
    """The other trial's lines up to its checkpoint's line; None where that is missing."""
    lines = complete_lines(found.folder.spool)
    for count, entry in enumerate(parsed_lines(lines, found.folder.spool), 1):
        if entry.kind == "checkpoint" and entry.step == found.step:
            return lines[:count]
    return None


def taken_over(found: Beginning) -> dict[str, Any]:
    """Entries for the status of the started trial."""
    status = found.folder.status()
    return {
        "began_from": BeganFrom(trial=found.folder.id, step=found.step),
        "code": status.code,
        "trained_by": [entry for entry in status.trained_by if entry.step < found.step],
        "trained_on": [entry for entry in status.trained_on if entry.step < found.step],
    }
