"""An exported folder before anything of it is copied: its index, its files, and what they would take. It may be anybody's."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from dsd_lab.errors import BadInput, NoResources
from dsd_lab.files.bounded import MAX_JSON, BadFile, read_plain
from dsd_lab.files.image_files import MAX_BYTES
from dsd_lab.home.export_format import INDEX, Index, kind_of, parsed_index
from dsd_lab.home.home import Home
from dsd_lab.specs.yaml_document import one_line
from dsd_lab.units import readable

_LARGEST = {"manifest": MAX_JSON, "spec": MAX_JSON, "spool": 256 * 2**20, "png": MAX_BYTES}
"""Bytes of a file that are still read into memory, by kind."""
_LARGEST_OTHER = 16 * 2**20


def index_of(source: Path) -> Index:
    """The index of an exported folder.

    Raises:
        BadInput: there is none, or it is not what an index says.
    """
    path = source / INDEX
    if not source.is_dir():
        raise BadInput(f"{source}: no such folder; name one that `dsd-lab export` wrote")
    if path.is_symlink() or not path.is_file():
        raise BadInput(f"{source}: has no {INDEX}: not an export, or an interrupted one")
    try:
        return parsed_index(str(path), read_plain(path, MAX_JSON))
    except BadFile as error:
        raise BadInput(f"{path}: {error.strerror}") from None


def check_tree(source: Path, index: Index) -> None:
    """Every path stays in the folder, every file is listed and every listed file is there; none is a link.

    Raises:
        BadInput: one is not so.
    """
    for name in index.files:
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
            raise BadInput(f"{source / INDEX}: the path {name[:200]!r} leaves the export")
        if kind_of(name) is None:
            raise BadInput(f"{source / INDEX}: an export has no file {name[:200]!r}")
    found = set()
    for folder, folders, files in os.walk(source):
        for name in (*folders, *files):
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise BadInput(f"{one_line(str(path), 500)}: is a link; an export has none")
            if not stat.S_ISDIR(mode):
                if not stat.S_ISREG(mode):
                    raise BadInput(f"{one_line(str(path), 500)}: is not a regular file")
                found.add(path.relative_to(source).as_posix())
    for what, names in (
        (f"is not listed in {INDEX}", found - set(index.files) - {INDEX}),
        (f"is listed in {INDEX} but missing", set(index.files) - found),
    ):
        if names:
            raise BadInput(f"{one_line(str(source / min(names)), 500)}: {what}")


def check_sizes(source: Path, home: Home, index: Index) -> None:
    """Before any byte is copied: a file of a terabyte can take no room where it lies, and all of it in a copy.

    Raises:
        BadInput: a file is larger than one of its kind.
        NoResources: the disk has no room for all of them.
    """
    for name, listed in index.files.items():
        kind = str((kind_of(name) or ("", None))[0])
        if kind != "tensors" and listed.bytes > (most := _LARGEST.get(kind, _LARGEST_OTHER)):
            raise BadInput(f"{source / name}: is larger than {most:,} bytes")
    place = next(path for path in (home.root, *home.root.parents) if path.exists())
    needed, free = sum(listed.bytes for listed in index.files.values()), shutil.disk_usage(place).free
    if needed > free:
        raise NoResources(
            f"{source}: the copy needs {readable(needed)} of disk, {readable(free)} are free in {home.root}; free space, or name another --home"
        )
