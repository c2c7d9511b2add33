"""Remove passwords and tokens from addresses and messages."""

from __future__ import annotations

import re
from urllib.parse import unquote

_SECRET = r"[^=&#?\s]*(?:passw|pwd|token|secret|key|sig|credential|auth)[^=&#\s]*"


_QUERY = re.compile(rf"([?&;]{_SECRET}=)([^&#]*)", re.IGNORECASE)


_QUERY_IN_TEXT = re.compile(rf"([?&;]{_SECRET}=)[^&#\s'\"]*", re.IGNORECASE)


_USER = re.compile(r"\b((?!sqlite|file)[a-z][a-z0-9+.-]*://)(?:([^:@\s]*:)[^\s'\"]*|[^\s'\"]*)@", re.IGNORECASE)


def without_password(text: str, address: str = "") -> str:
    """Replace passwords and tokens by `***`.

    Args:
        text: a message. An address in it is assumed to end at a space.
        address: a known address, whose secrets may contain spaces or occur in the text on their own.
    """
    secrets = _secrets(address)
    for secret in sorted({*secrets, *map(unquote, secrets)}, key=len, reverse=True):
        text = text.replace(secret, "***")
    text = _USER.sub(lambda found: f"{found[1]}{found[2] or ''}***@", text)
    return _QUERY_IN_TEXT.sub(r"\1***", text)


def _secrets(address: str) -> list[str]:
    """The password or token and the secret query values of an address. A password may contain any character."""
    scheme, _, rest = address.partition("://")
    found = [value for _, value in _QUERY.findall(rest)]
    user, at, _ = rest.rpartition("@")
    if at and scheme not in ("sqlite", "file"):
        name, colon, password = user.partition(":")
        found.append(password if colon else name)
    return [secret for secret in found if secret]
