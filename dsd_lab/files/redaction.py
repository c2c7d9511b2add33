"""Addresses and messages as they may be shown: without the passwords and tokens that they may hold."""

from __future__ import annotations

import re
from urllib.parse import unquote

_SECRET = r"[^=&#?\s]*(?:passw|pwd|token|secret|key|sig|credential|auth)[^=&#\s]*"


_QUERY = re.compile(rf"([?&;]{_SECRET}=)([^&#]*)", re.IGNORECASE)


_QUERY_IN_TEXT = re.compile(rf"([?&;]{_SECRET}=)[^&#\s'\"]*", re.IGNORECASE)


_USER = re.compile(r"\b((?!sqlite|file)[a-z][a-z0-9+.-]*://)(?:([^:@\s]*:)[^\s'\"]*|[^\s'\"]*)@", re.IGNORECASE)


def without_password(text: str, address: str = "") -> str:
    """Text with `***` in the place of passwords and tokens.

    Args:
        text: a message; addresses in it are looked for as far as spaces end them.
        address: one that is known, whose secrets may hold spaces or stand in the text without the address.
    """
    secrets = _secrets(address)
    for secret in sorted({*secrets, *map(unquote, secrets)}, key=len, reverse=True):
        text = text.replace(secret, "***")
    text = _USER.sub(lambda found: f"{found[1]}{found[2] or ''}***@", text)
    return _QUERY_IN_TEXT.sub(r"\1***", text)


def _secrets(address: str) -> list[str]:
    """The password, or the token in its place, and the secret values of the query. A password may hold any letter."""
    scheme, _, rest = address.partition("://")
    found = [value for _, value in _QUERY.findall(rest)]
    user, at, _ = rest.rpartition("@")
    if at and scheme not in ("sqlite", "file"):
        name, colon, password = user.partition(":")
        found.append(password if colon else name)
    return [secret for secret in found if secret]
