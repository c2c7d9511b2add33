"""Writes a data set in the form that `core.data.prepared` reads: every image decoded, resized and cropped once.

Images are appended in the order of their files. A process that was killed is taken up after the last block of them that
is in the journal.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import __version__ as pillow

from dsd_lab.core.data.dataset import check_classes, held_out, share_held_out
from dsd_lab.core.data.decoding import mismatch, refusal
from dsd_lab.core.data.prepared import (
    FIELDS,
    HELD_OUT,
    JOURNAL,
    LABELS,
    MANIFEST,
    Manifest,
    index_of,
    open_set,
    read_manifest,
)
from dsd_lab.core.data.progress import tell
from dsd_lab.core.data.records import place_of, shown
from dsd_lab.core.preparing.check import checked
from dsd_lab.core.preparing.image_files import ArrayFile, ImageFile, JpegFile
from dsd_lab.core.preparing.journal import State, begin, check_key, note, resumed
from dsd_lab.core.preparing.source import Source, source_to_prepare
from dsd_lab.errors import BadInput, NoResources, is_disk_full
from dsd_lab.files.atomic import sync_file, sync_folder, write_json
from dsd_lab.files.image_files import DamagedImage
from dsd_lab.files.locks import locked
from dsd_lab.units import short_bytes

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

_BLOCK_BYTES, _MAX_IN_BLOCK = 2**26, 8192
"""A block of images is on the disk before its line in the journal is."""
_LOCK = "prepare.lock"


def prepare(spec: Data, name: str, out: Path, jpeg: int | None, workers: int) -> Manifest:
    """Write a data set to a folder; what is there already is checked and gone on with.

    Args:
        spec: what is read, and how it is resized, cropped and split.
        name: declared name of the data set.
        out: folder to write.
        jpeg: quality of the JPEG form; None: the array form.
        workers: threads that decode and encode, also when the written images are checked.

    Raises:
        BadInput: an image is damaged, or the folder holds something else.
        NoResources: the disk has no room.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        known = {MANIFEST, JOURNAL, _LOCK, LABELS, HELD_OUT, *ArrayFile.names, *JpegFile.names}
        foreign = sorted(path.name for path in out.iterdir() if path.name not in known and path.name[0] != ".")
        if foreign:
            raise BadInput(f"--out {shown(out)}: holds {shown(foreign[0])}; name a new or empty folder")
        with locked(out / _LOCK, wait=False) as mine:
            if not mine:
                raise BadInput(f"--out {shown(out)}: another `dsd-lab prepare` writes there")
            source = source_to_prepare(spec, jpeg)
            if (out / MANIFEST).exists():
                return _checked_again(out, source, workers)
            return _finished(spec, source, name, out, jpeg, workers, _written(spec, source, out, jpeg, workers))
    except OSError as error:
        if is_disk_full(error):
            raise
        raise BadInput(f"{shown(error.filename or out)}: {error.strerror or shown(str(error))}") from None


def _checked_again(out: Path, source: Source, workers: int) -> Manifest:
    """Check a complete set. Another version of Pillow may decode the JPEG form to other pixels: its fingerprint is new."""
    made = read_manifest(out)
    check_key(out, made.key, source.key)
    labels, held, _ = open_set(out, made)
    again = checked(out, made, _opened(out, made.quality, made.shape, workers), labels, held)
    if made.form == "jpeg" and made.pillow != pillow:
        again = again.model_copy(update={"pillow": pillow})
        write_json(out / MANIFEST, again.model_dump(), durable=True)
    elif again != made:
        raise BadInput(f"{shown(out)}: is not what was written; remove it, and prepare it again")
    return again


# -- Writing ------------------------------------------------------------------------------------------


def _written(spec: Data, source: Source, out: Path, jpeg: int | None, workers: int) -> State:
    """Append all images that are not there yet; where the first image in colour comes after grey ones, begin again."""
    state = resumed(out, source.key)
    if not state.rows:
        state = State(shape=_first_shape(spec, source))
    while True:
        try:
            return _append(spec, source, out, jpeg, workers, state)
        except _InColour:
            (out / JOURNAL).unlink()
            state = State(shape=(3, *state.shape[1:]))


class _InColour(Exception):
    """An image in colour after grey ones: all are written in three channels."""


def _first_shape(spec: Data, source: Source) -> tuple[int, ...]:
    with contextlib.closing(source.looked(spec, 0, 0, lambda pixels: b"")) as looked:
        for _, shape, _ in looked:
            if not isinstance(shape, DamagedImage):
                return shape
            if spec.damaged == "refuse":
                raise refusal(shape)
    raise BadInput(f"{place_of(spec)}: every image is damaged")


def _append(spec: Data, source: Source, out: Path, jpeg: int | None, workers: int, state: State) -> State:
    journal, block = out / JOURNAL, _block_of(state.shape)
    images = _opened(out, jpeg, state.shape, workers)
    if not state.rows:
        begin(out, source.key)
    if jpeg is None:
        _check_room(out, (len(source) - state.records) * int(np.prod(state.shape)))
    fresh: dict[int, str] = {}
    looked = source.looked(spec, state.records, workers, images.encode)
    with contextlib.closing(images), contextlib.closing(looked), journal.open("a") as lines:
        images.begin(state.rows, state.ends[-1] if state.ends else 0)
        for number, (where, shape, raw) in enumerate(looked, state.records):
            if isinstance(shape, DamagedImage):
                if spec.damaged == "refuse":
                    raise refusal(shape)
                fresh[number] = str(shape)
                continue
            if shape[1:] != state.shape[1:]:
                raise mismatch(where, shape, state.shape)
            if shape[0] > state.shape[0]:
                raise _InColour
            images.append(raw)
            if images.rows - state.rows == block:
                note(lines, images, state, number + 1, fresh)
                tell("images written", number + 1, len(source))
        if images.rows > state.rows or fresh:
            note(lines, images, state, len(source), fresh)
    return state


def _block_of(shape: Sequence[int]) -> int:
    """Images of a block."""
    return max(1, min(_MAX_IN_BLOCK, _BLOCK_BYTES // int(np.prod(shape))))


def _check_room(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if needed > free:
        raise NoResources(
            f"{shown(out)}: {short_bytes(free)} free, {short_bytes(needed)} needed; --jpeg takes about a sixth of it"
        )


def _split(spec: Data, source: Source, damaged: dict[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] and which images are held out [N], without damaged ones."""
    sound = torch.ones(len(source), dtype=torch.bool)
    sound[list(damaged)] = False
    labels = torch.cat(source.labels)
    count = len(source.labels[0])
    check_classes(source.labels[0], labels[:count][sound[:count]], source.class_names)
    held = torch.arange(len(labels)) >= count
    if len(source.labels) == 1:
        return labels[sound].numpy(), held_out(labels[sound], spec.holdout).numpy()
    if not bool(held[sound].any()):
        raise BadInput(f"{place_of(spec)}: every held-out image is damaged")
    return labels[sound].numpy(), held[sound].numpy()


def _finished(
    spec: Data, source: Source, name: str, out: Path, jpeg: int | None, workers: int, state: State
) -> Manifest:
    labels, held = _split(spec, source, state.damaged)
    classes = int(labels.max()) + 1
    shares = len(source.labels) == 1 or (source.loaded is not None and spec.source != "idx")
    origin = share_held_out(spec.holdout, classes) if len(source.labels) == 1 else source.holdout_from
    made = Manifest(
        form="array" if jpeg is None else "jpeg",
        quality=jpeg,
        key=source.key,
        name=name,
        source=spec.source,
        fields=spec.model_dump(include=set(FIELDS)),
        holdout=spec.holdout if shares else None,
        damaged=list(state.damaged.values()),
        fingerprint="0" * 64,
        shape=list(state.shape),
        count=state.rows,
        class_names=list(source.class_names),
        holdout_from=origin,
        notes=list(source.notes),
        levels=[[0] * 256] * state.shape[0],
        block=_block_of(state.shape),
        blocks=state.blocks,
        index=index_of(labels, held),
        pillow=pillow,
    )
    images = _opened(out, jpeg, state.shape, workers)
    images.finish(state.rows)
    made = checked(out, made, images, labels, held)
    np.save(out / LABELS, labels)
    np.save(out / HELD_OUT, held)
    for name in (LABELS, HELD_OUT):
        sync_file(out / name)
    sync_folder(out)
    write_json(out / MANIFEST, made.model_dump(), durable=True)
    (out / JOURNAL).unlink(missing_ok=True)
    return made


def _opened(out: Path, jpeg: int | None, shape: Sequence[int], workers: int) -> ImageFile:
    return ArrayFile(out, tuple(shape)) if jpeg is None else JpegFile(out, tuple(shape), jpeg, workers)
