"""Fetches a known data set: downloads its files, checks them, and lays them out as a source reads them."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np

from dsd_lab.errors import BadInput, NoResources, is_disk_full
from dsd_lab.files.atomic import write_json
from dsd_lab.files.bounded import read_json
from dsd_lab.files.download import download
from dsd_lab.files.locks import locked
from dsd_lab.files.sha256 import sha256_of
from dsd_lab.specs.known_data import DATA_SETS, KnownSet
from dsd_lab.units import readable

ORIGIN = "SOURCE.json"
"""Where a fetched set comes from, and its licence: in its folder."""
_ROOM = 3
"""Times a download that its unpacking may take."""
_CIFAR_ROW = 1 + 3 * 32 * 32


def fetch_data(name: str, out: Path, progress: bool = False) -> bool:
    """Make the folder of a data set, which is complete or not there; False where it was already.

    What was downloaded before the process was stopped is not downloaded again.

    Raises:
        BadInput: something else is in the folder's place, it cannot be written, or another process fetches it.
        NoResources: a file cannot be downloaded, something else came, or the disk has no room.
    """
    known, part = DATA_SETS[name], out.with_name(f".{out.name}.part")
    if _is_fetched(out, name):
        return False
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with locked(out.with_name(f".{out.name}.lock"), wait=False) as mine:  # not in `part`, which is removed
            if not mine:
                raise BadInput(f"{out}: another `dsd-lab fetch-data` writes there")
            if _is_fetched(out, name):  # by a process that held the lock a moment ago
                return False
            _fetch(name, known, part, out, progress)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise BadInput(f"--out {error.filename or out}: {error.strerror or error}") from None
    return True


def _is_fetched(out: Path, name: str) -> bool:
    if os.path.lexists(out) and origin_of(out) != name:
        raise BadInput(f"{out}: is there already, and was not fetched as {name}; move it away, or name another --out")
    return os.path.lexists(out)


def _fetch(name: str, known: KnownSet, part: Path, out: Path, progress: bool) -> None:
    part.mkdir(exist_ok=True)
    free = shutil.disk_usage(part).free
    if free < _ROOM * known.bytes:
        raise NoResources(f"{part}: {readable(free)} free, {readable(_ROOM * known.bytes)} needed")
    for file in known.downloads:
        path = part / file.file
        if not (path.is_file() and sha256_of(path) == file.sha256):
            download(f"{name}: {file.file}", file.urls, path, file.sha256, file.bytes, progress)
    laid = part / "laid"
    shutil.rmtree(laid, ignore_errors=True)
    laid.mkdir()
    _lay_out(known, part, laid)
    hashes = {file.file: file.sha256 for file in known.downloads}
    origin = {"name": name, "title": known.title, "licence": known.licence, "link": known.link, "sha256": hashes}
    write_json(laid / ORIGIN, origin, durable=True)
    os.rename(laid, out)
    shutil.rmtree(part, ignore_errors=True)


def origin_of(folder: Path) -> str | None:
    """The name under which a folder was fetched; None of any other."""
    try:
        return str(read_json(folder / ORIGIN)["name"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _lay_out(known: KnownSet, part: Path, laid: Path) -> None:
    files = [part / file.file for file in known.downloads]
    if known.unpacks == "cifar10":
        _cifar10(files[0], laid)
    elif known.unpacks == "flowers":
        _extract(files[0], part / "unpacked")
        for path in sorted((part / "unpacked" / "flower_photos").iterdir()):
            os.rename(path, laid / path.name)
    elif known.unpacks == "flowers102":
        _flowers102(files, part / "unpacked", laid)
    else:
        for path in files:  # copied, so that a download is still there if this process ends here
            shutil.copyfile(path, laid / path.name)


def _extract(archive: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")


def _cifar10(archive: Path, laid: Path) -> None:
    """The binary version: rows of a label and the red, green and blue planes of 32 x 32; as PNG in parquet files."""
    with tarfile.open(archive) as packed:
        files = {Path(member.name).name: member for member in packed if member.isreg()}

        def content(name: str) -> bytes:
            handle = packed.extractfile(files[name])
            assert handle is not None
            return handle.read()

        names = content("batches.meta.txt").decode().split()
        train = b"".join(content(f"data_batch_{number}.bin") for number in range(1, 6))
        test = content("test_batch.bin")
    for split, raw in (("train", train), ("test", test)):
        rows = np.frombuffer(raw, dtype=np.uint8).reshape(-1, _CIFAR_ROW)
        _write_parquet(laid / f"{split}.parquet", rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0], names)


def _write_parquet(path: Path, pixels: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    """The Hugging Face image layout: images [N, C, H, W] as PNG, and labels [N] with the names of their classes."""
    import pyarrow as pa
    import pyarrow.parquet
    from PIL import Image

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([("image", kind), ("label", pa.int64())], metadata=told)
    with pyarrow.parquet.ParquetWriter(path, schema) as file:
        for start in range(0, len(pixels), 1000):
            images = []
            for number, array in enumerate(pixels[start : start + 1000], start):
                raw = io.BytesIO()
                Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0))).save(raw, "PNG")
                images.append({"bytes": raw.getvalue(), "path": f"{number:05}.png"})
            own = pa.array(labels[start : start + 1000].astype(np.int64))
            file.write_table(pa.table([pa.array(images, kind), own], schema=schema))


def _flowers102(files: list[Path], unpacked: Path, laid: Path) -> None:
    from scipy.io import loadmat

    _extract(files[0], unpacked)
    labels = loadmat(files[1])["labels"][0]
    splits = loadmat(files[2])
    for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        for number in splits[key][0].tolist():
            folder = laid / split / str(labels[number - 1])
            folder.mkdir(parents=True, exist_ok=True)
            name = f"image_{number:05}.jpg"
            os.rename(unpacked / "jpg" / name, folder / name)
