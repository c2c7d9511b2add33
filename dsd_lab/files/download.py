"""Downloads of pinned files: complete and of the named SHA-256, or not there."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from dsd_lab.errors import NoResources
from dsd_lab.files.atomic import create_beside

MAX_BYTES = 4 * 2**30
"""Of a download whose size is not known."""
_PATIENCE = 30.0
"""Seconds that a server may be silent."""
_CHUNK = 2**18
_OTHER = "another SHA-256 than the pinned one"


class _Refused(Exception):
    """Something else came than what is pinned; the message is the reason."""


def download(
    what: str, urls: Sequence[str], path: Path, sha256: str, size: int | None = None, progress: bool = False
) -> None:
    """Download a file to `path`, which is complete and checked or not there.

    Args:
        what: what messages call it.
        urls: addresses that hold the same file, tried in order.
        path: the file to write.
        sha256: of the file.
        size: of the file in bytes, where it is known. No more is downloaded, or `MAX_BYTES`.
        progress: whether a bar shows how far it is.

    Raises:
        NoResources: it cannot be downloaded or written, or something else came.
    """
    by_hand = f"get {path.name} (SHA-256 {sha256}) in another way and put it at {path}"
    reasons: list[str] = []
    for url in urls:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _download(url, path, sha256, MAX_BYTES if size is None else size, progress)
            return
        except _Refused as error:
            reasons.append(str(error))
        except http.client.HTTPException as error:
            reasons.append(f"a damaged answer, {type(error).__name__}")
        except OSError as error:
            # Only the kind and number of the fault: an address of a proxy may hold a password.
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            code = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else None
            reasons.append(code or getattr(cause, "strerror", None) or type(cause).__name__)
    if set(reasons) == {_OTHER}:
        raise NoResources(f"{what}: what was downloaded has {_OTHER}; {by_hand}")
    raise NoResources(f"{what}: cannot be downloaded ({', '.join(dict.fromkeys(reasons))}); {by_hand}")


def _download(url: str, path: Path, sha256: str, most: int, progress: bool) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    digest, done = hashlib.sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "dsd-lab"})
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    handle, temporary = create_beside(path)
    try:
        with (
            os.fdopen(handle, "wb") as file,
            urllib.request.urlopen(request, timeout=_PATIENCE) as answer,
            Progress(*columns, console=Console(stderr=True), disable=not progress) as bar,
        ):
            task = bar.add_task("", total=answer.length)
            while chunk := answer.read(_CHUNK):
                done += len(chunk)
                if done > most:
                    raise _Refused(f"more than {most:,} bytes")
                digest.update(chunk)
                file.write(chunk)
                bar.update(task, completed=done)
            if answer.length:
                raise _Refused(f"ended after {done:,} of {done + answer.length:,} bytes")
        if digest.hexdigest() != sha256:
            raise _Refused(_OTHER)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
