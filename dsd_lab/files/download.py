"""Downloads of pinned files: complete and of the named SHA-256, or not there."""

from __future__ import annotations

import socket
import urllib.error
from collections.abc import Sequence
from pathlib import Path

from dsd_lab.errors import NoResources

_PATIENCE = 30.0
"""Seconds that a server may be silent."""


def download(what: str, urls: Sequence[str], path: Path, sha256: str, progress: bool = False) -> None:
    """Download a file to `path`, which is complete and checked or not there.

    Args:
        what: what messages call it.
        urls: addresses that hold the same file, tried in order.
        path: the file to write.
        sha256: of the file.
        progress: whether a bar shows how far it is.

    Raises:
        NoResources: it cannot be downloaded or written, or something else came.
    """
    from torch.hub import download_url_to_file

    by_hand = f"get {path.name} (SHA-256 {sha256}) in another way and put it at {path}"
    before = socket.getdefaulttimeout()
    reasons: list[str] = []
    for url in urls:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            socket.setdefaulttimeout(_PATIENCE)
            download_url_to_file(url, str(path), sha256, progress)
            return
        except RuntimeError:
            reasons.append("another SHA-256 than the pinned one")
        except OSError as error:
            # Only the kind and number of the fault: an address of a proxy may hold a password.
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            code = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else None
            reasons.append(code or getattr(cause, "strerror", None) or type(cause).__name__)
        finally:
            socket.setdefaulttimeout(before)
    if set(reasons) == {"another SHA-256 than the pinned one"}:
        raise NoResources(f"{what}: what was downloaded has another SHA-256 than the pinned one; {by_hand}")
    raise NoResources(f"{what}: cannot be downloaded ({', '.join(dict.fromkeys(reasons))}); {by_hand}")
