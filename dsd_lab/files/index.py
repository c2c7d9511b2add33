"""Which files lie below a folder, and whether their content is what it was: without reading those that did not change.

The listing of a folder (relative path, size and times of every file) costs one `stat` per file. The index in the
cache remembers the SHA-256 of every file by what the listing says of it, so that a file is read again only after
its size or a time changed. The digest of a folder is made of relative paths and contents: `touch`, a copy and a
move of the whole folder leave it as it is.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dsd_lab.files.atomic import read_cache, write_atomic, write_json

_KEY, _CONTENT = 16, 32
"""Bytes of the index per file: a hash of its row in the listing, and the SHA-256 of its content."""
_THREADS = 4
_CHUNK = 4096
"""Files between two calls of `on_progress`."""


@dataclass(frozen=True)
class Listing:
    """The files below a folder, sorted by relative path."""

    root: Path
    rows: list[tuple[bytes, bytes]]
    """Of every file: path relative to `root`, and its size, time of change and time of status change in nanoseconds."""

    @property
    def digest(self) -> str:
        """SHA-256 of all rows."""
        return hashlib.sha256(b"\0\n".join([part for row in self.rows for part in row])).hexdigest()


def listing_of(root: Path) -> Listing:
    """List a folder; names that begin with a dot are passed over, links are followed, a circle of links once.

    Raises:
        OSError: a folder cannot be read.
    """
    rows: list[tuple[bytes, bytes]] = []
    _list(os.fsencode(os.path.realpath(root)), b"", rows, ())
    rows.sort()
    return Listing(root, rows)


def _list(folder: bytes, prefix: bytes, rows: list[tuple[bytes, bytes]], above: tuple[bytes, ...]) -> None:
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(b"."):
                continue
            if entry.is_dir():
                folders.append((entry.path, name, entry.is_symlink()))
                continue
            try:
                stat = entry.stat()
                row = b"%d %d %d" % (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            except OSError:  # a link into nothing
                row = b"-1"
            rows.append((prefix + name, row))
    for path, name, is_link in folders:
        target = os.path.realpath(path) if is_link else path
        if is_link and (os.path.realpath(folder) + b"/").startswith(target.rstrip(b"/") + b"/"):
            continue  # a link to a folder that holds it
        if target not in above:
            _list(target, prefix + name + b"/", rows, (*above, target) if is_link else above)


def known_digest(listing: Listing, cache: Path) -> str | None:
    """The digest of the folder's content, where nothing changed since it was last indexed; reads no file of it."""
    entry = read_cache(index_path(cache, listing.root).with_suffix(".json"))
    digest = entry.get("content") if entry.get("listing") == listing.digest else None
    return digest if isinstance(digest, str) else None


def content_digest(listing: Listing, cache: Path, on_progress: Callable[[int, int], None] | None = None) -> str:
    """SHA-256 of relative paths and contents; reads the files whose row in the listing is not in the index.

    Args:
        listing: of the folder, as it is now.
        cache: folder of the index.
        on_progress: called with the files done and their number, every few thousand.

    Raises:
        OSError: a file cannot be read.
    """
    if (known := known_digest(listing, cache)) is not None:
        return known
    place = index_path(cache, listing.root)
    index, digest, written = _read_index(place), hashlib.sha256(), io.BytesIO()
    with ThreadPoolExecutor(_THREADS) as pool:
        for done, part in _parts(listing.rows):
            keys = [hashlib.blake2b(b"\0".join(row), digest_size=_KEY).digest() for row in part]
            paths = [os.path.join(os.fsencode(listing.root), path) for path, _ in part]
            found = [index.get(key) for key in keys]
            fresh = pool.map(_hashed, [path for path, known in zip(paths, found, strict=True) if known is None])
            contents = [next(fresh) if known is None else known for known in found]
            for (path, _), key, content in zip(part, keys, contents, strict=True):
                digest.update(hashlib.sha256(path).digest() + content)
                written.write(key + content)
            if on_progress is not None:
                on_progress(done, len(listing.rows))
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(place.with_suffix(".index"), written.getvalue())
    write_json(place.with_suffix(".json"), {"listing": listing.digest, "content": digest.hexdigest()})
    return digest.hexdigest()


def _parts(rows: list[tuple[bytes, bytes]]) -> Iterator[tuple[int, list[tuple[bytes, bytes]]]]:
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        yield start + len(part), part


def _hashed(path: bytes) -> bytes:
    if not os.path.isfile(path):  # a link into nothing, or a pipe, which would be waited for
        return bytes(_CONTENT)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _read_index(place: Path) -> dict[bytes, bytes]:
    """Content by row; empty where there is no index, or a damaged one."""
    try:
        table = place.with_suffix(".index").read_bytes()
    except OSError:
        return {}
    width = _KEY + _CONTENT
    if len(table) % width:
        return {}
    return {table[at : at + _KEY]: table[at + _KEY : at + width] for at in range(0, len(table), width)}


def index_path(cache: Path, root: Path) -> Path:
    """The index of a folder, without a suffix: `.index` holds the files, `.json` the digests."""
    return cache / f"files-{hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:24]}"
