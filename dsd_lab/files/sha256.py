"""SHA-256 of files, and one whose state can be written down, so that hashing hours of data goes on after a kill.

`hashlib` keeps its state to itself. OpenSSL's own functions, which Python's module is linked with, keep it in a structure
that is plain memory (openssl/sha.h, `SHA256_CTX`). Where they cannot be found, as where OpenSSL is linked into Python
itself, or where they do not give the known digest, `hashlib` hashes and there is no state.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any

from dsd_lab.files.bounded import open_plain


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a regular file.

    Raises:
        BadFile: it is no regular file.
        OSError: as `open` does.
    """
    with open_plain(path) as file:
        return sha256_in(file)


def sha256_in(file: BufferedReader) -> str:
    """Hexadecimal SHA-256 of an open file, from its place to its end."""
    return hashlib.file_digest(file, "sha256").hexdigest()


_STATE = 112
"""Bytes of `SHA256_CTX`: eight words of the digest, two of the length, sixteen of the block, two counters."""


class Sha256:
    """As `hashlib.sha256`; `state` gives what another process goes on from.

    Args:
        state: of a hash that was begun before; None begins one.
    """

    def __init__(self, state: bytes | None = None) -> None:
        self._functions, self._known = _openssl(), hashlib.sha256()
        self._context = ctypes.create_string_buffer(_STATE)
        if state is not None:
            if self._functions is None or not _is_state(state):
                raise ValueError("the state of a hash cannot be taken up here")
            self._context.raw = state
        elif self._functions is not None:
            self._functions.SHA256_Init(self._context)

    def update(self, raw: bytes) -> None:
        """Hash more bytes."""
        if self._functions is None:
            self._known.update(raw)
        else:
            self._functions.SHA256_Update(self._context, raw, ctypes.c_size_t(len(raw)))

    def hexdigest(self) -> str:
        """Of all bytes so far; more may follow."""
        if self._functions is None:
            return self._known.hexdigest()
        copied, digest = ctypes.create_string_buffer(self._context.raw, _STATE), ctypes.create_string_buffer(32)
        self._functions.SHA256_Final(digest, copied)
        return digest.raw.hex()

    @property
    def state(self) -> bytes | None:
        """What `Sha256(state)` goes on from; None where the state cannot be had."""
        return None if self._functions is None else self._context.raw


def _is_state(state: bytes) -> bool:
    """Whether bytes can be a `SHA256_CTX`. OpenSSL checks nothing, and its counter says where it writes in memory."""
    if len(state) != _STATE:
        return False
    low, high = struct.unpack_from("=2I", state, 32)
    held, digest_size = struct.unpack_from("=2I", state, 104)
    return digest_size == 32 and low % 8 == 0 and bool(held == (high << 32 | low) // 8 % 64)


@cache
def _openssl() -> Any:
    """OpenSSL's functions, which were seen to give the digest of a known text over a copied state."""
    try:
        import _hashlib

        found = ctypes.CDLL(_hashlib.__file__)
        first, second, digest = (ctypes.create_string_buffer(size) for size in (_STATE, _STATE, 32))
        found.SHA256_Init(first)
        found.SHA256_Update(first, b"a" * 100, ctypes.c_size_t(100))
        second.raw = first.raw
        found.SHA256_Update(second, b"b" * 100, ctypes.c_size_t(100))
        found.SHA256_Final(digest, second)
    except (ImportError, AttributeError, OSError):
        return None
    return found if digest.raw == hashlib.sha256(b"a" * 100 + b"b" * 100).digest() else None
