"""Addresses of stores as they may be shown: without the password that they may hold."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(://[^/@:\s]*:)[^/@\s]*@")


def without_password(text: str) -> str:
    """Text with `***` in the place of the password of every address in it."""
    return _PASSWORD.sub(r"\1***@", text)
