"""What the tests of data sets share: generated images as folders, parquet files and archives."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from dsd_lab.specs.trial import Data


def pictures(count, colour=True, size=8, seed=0):
    """Random images [N, H, W] or [N, H, W, 3] uint8."""
    shape = (count, size, size, 3) if colour else (count, size, size)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def encoded(array, form="PNG", mode=None):
    """An image file's bytes."""
    buffer = io.BytesIO()
    picture = Image.fromarray(np.asarray(array, dtype=np.uint8))
    (picture.convert(mode) if mode else picture).save(buffer, form)
    return buffer.getvalue()


def deep():
    """A PNG of 16 bits a pixel."""
    buffer = io.BytesIO()
    Image.fromarray((np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path, arrays, labels, names=None, split=""):
    """An image folder; class `label` is called `names[label]`, images are numbered in order."""
    for i, (array, label) in enumerate(zip(arrays, labels, strict=True)):
        folder = root / split / (names[label] if names else f"class{label:03}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:05}.png").write_bytes(array if isinstance(array, bytes) else encoded(array))
    return Data(source="folder", path=str(root))


def write_parquet(path: Path, arrays, labels, columns=("image", "label"), metadata=None):
    """A parquet file of images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raws = [a if a is None or isinstance(a, bytes) else encoded(a) for a in arrays]
    images = [raw if raw is None else {"bytes": raw, "path": f"{i}.png"} for i, raw in enumerate(raws)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({columns[0]: pa.array(images, kind), columns[1]: pa.array(labels, pa.int64())})
    pa.parquet.write_table(table.replace_schema_metadata(metadata), path, row_group_size=5)
    return Data(source="parquet", path=str(path.parent))


def write_zip(path: Path, entries, method=zipfile.ZIP_DEFLATED):
    """A zip file; `entries` are bytes by name."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, raw in entries.items():
            archive.writestr(name, raw)
    return Data(source="zip", path=str(path))


def write_tar(path: Path, entries):
    """A shard; `entries` are bytes by name, or a header of tarfile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, raw in entries.items():
            info = raw if isinstance(raw, tarfile.TarInfo) else tarfile.TarInfo(name)
            content = b"" if info is raw else raw
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return Data(source="tar", path=str(path.parent))


def changed(spec: Data, **fields) -> Data:
    """The spec with other values, validated."""
    return Data.model_validate(spec.model_dump() | fields)
