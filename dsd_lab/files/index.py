"""Detect changes of the files below a folder without re-reading unchanged files.

The listing (relative path, size and times of every file) costs one `stat` per file. The index in the cache maps
each row of the listing to the SHA-256 of the file's content. A file is read again only after its size or a time
changed. The digest of a folder covers relative paths and contents only: `touch`, copying and moving the whole
folder do not change it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dsd_lab.files.atomic import read_cache, write_atomic, write_json
from dsd_lab.files.sha256 import sha256_of

_KEY, _CONTENT = 16, 32
"""Bytes per file in the index: hash of its row in the listing, and SHA-256 of its content."""
_THREADS = 4
_CHUNK = 4096
"""Files between two calls of `on_progress`."""


@dataclass(frozen=True)
class Listing:
    """The files below a folder, sorted by relative path."""

    root: Path
    rows: list[tuple[bytes, bytes]]
    """Per file: path relative to `root`; and its size, mtime and ctime in nanoseconds."""

    @property
    def digest(self) -> str:
        """SHA-256 of all rows."""
        return hashlib.sha256(b"\0\n".join([part for row in self.rows for part in row])).hexdigest()


def listing_of(root: Path) -> Listing:
    """List a folder, or one file. Skips names that begin with a dot, follows links, and stops at cyclic links.

    Raises:
        OSError: a folder cannot be read.
    """
    rows: list[tuple[bytes, bytes]] = []
    if os.path.isfile(root):
        return Listing(root, [(b"", _row(os.stat(root)))])
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
                row = _row(entry.stat())
            except OSError:  # a dangling link
                row = b"-1"
            rows.append((prefix + name, row))
    for path, name, is_link in folders:
        target = os.path.realpath(path) if is_link else path
        if is_link and (os.path.realpath(folder) + b"/").startswith(target.rstrip(b"/") + b"/"):
            continue  # cyclic: links to one of its own parents
        if target not in above:
            _list(target, prefix + name + b"/", rows, (*above, target) if is_link else above)


def _row(stat: os.stat_result) -> bytes:
    return b"%d %d %d" % (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def known_digest(listing: Listing, cache: Path) -> str | None:
    """The digest of the folder's content from the index; None where the listing changed. Reads no listed file."""
    entry = read_cache(index_path(cache, listing.root).with_suffix(".json"))
    digest = entry.get("content") if entry.get("listing") == listing.digest else None
    return digest if isinstance(digest, str) else None


def content_digest(listing: Listing, cache: Path, on_progress: Callable[[int, int], None] | None = None) -> str:
    """SHA-256 over relative paths and contents. Reads only files that the index does not know.

    Args:
        listing: current listing of the folder.
        cache: folder of the index.
        on_progress: called with the files done and their total, every `_CHUNK` files.

    Raises:
        OSError: a file cannot be read.
    """
    if (known := known_digest(listing, cache)) is not None:
        return known
    place = index_path(cache, listing.root)
    index, digest, written = _read_index(place), hashlib.sha256(), io.BytesIO()
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_suffix(".part")
    with ThreadPoolExecutor(_THREADS) as pool, beside.open("ab") as saved:
        for done, part in _parts(listing.rows):
            keys = [hashlib.blake2b(b"\0".join(row), digest_size=_KEY).digest() for row in part]
            root = os.fsencode(listing.root)
            paths = [os.path.join(root, path) if path else root for path, _ in part]
            found = [index.get(key) for key in keys]
            fresh = pool.map(_hashed, [path for path, known in zip(paths, found, strict=True) if known is None])
            contents = [next(fresh) if known is None else known for known in found]
            for (path, _), key, content in zip(part, keys, contents, strict=True):
                digest.update(hashlib.sha256(path).digest() + content)
                written.write(key + content)
            saved.write(b"".join(k + c for k, c, old in zip(keys, contents, found, strict=True) if old is None))
            saved.flush()
            if on_progress is not None:
                on_progress(done, len(listing.rows))
    write_atomic(place.with_suffix(".index"), written.getvalue())
    write_json(place.with_suffix(".json"), {"listing": listing.digest, "content": digest.hexdigest()})
    beside.unlink(missing_ok=True)
    return digest.hexdigest()


def _parts(rows: list[tuple[bytes, bytes]]) -> Iterator[tuple[int, list[tuple[bytes, bytes]]]]:
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        yield start + len(part), part


def _hashed(path: bytes) -> bytes:
    if not os.path.isfile(path):  # a dangling link, or a pipe, which would block
        return bytes(_CONTENT)
    return bytes.fromhex(sha256_of(os.fsdecode(path)))


def _read_index(place: Path) -> dict[bytes, bytes]:
    """Content hash by row hash, including those of a process that was stopped. Damaged tables are ignored."""
    width, found = _KEY + _CONTENT, dict[bytes, bytes]()
    for suffix in (".index", ".part"):
        with contextlib.suppress(OSError):
            table = place.with_suffix(suffix).read_bytes()
            whole = len(table) if len(table) % width == 0 else 0
            found |= {table[at : at + _KEY]: table[at + _KEY : at + width] for at in range(0, whole, width)}
            if not whole and suffix == ".part":  # torn: what is appended would be read at the wrong place
                place.with_suffix(suffix).unlink()
    return found


def index_path(cache: Path, root: Path) -> Path:
    """Path of a folder's index without suffix: `.index` holds the files' hashes, `.json` the digests."""
    return cache / f"files-{hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:24]}"
