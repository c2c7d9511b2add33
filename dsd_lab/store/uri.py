"""Addresses of stores: choice and checks."""

from __future__ import annotations

import base64
import configparser
import contextlib
import importlib.util
import os
import socket
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dsd_lab.errors import BadInput, NoResources
from dsd_lab.files.database import sqlite_path, sqlite_uri
from dsd_lab.files.redaction import without_password


def chosen_uri(given: str | None) -> str | None:
    """The store of `--tracking-uri` or `MLFLOW_TRACKING_URI`; None: SQLite in the home folder."""
    return given or os.environ.get("MLFLOW_TRACKING_URI")


_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_DRIVERS = {"postgresql": ("psycopg2", "psycopg"), "mysql": ("pymysql",), "mssql": ("pymssql",)}
"""Drivers by database in order of preference; SQLAlchemy's default differs by version."""
_MLFLOW_SETTINGS = ("AUTH", "AWS_SIGV4", "INSECURE_TLS", "SERVER_CERT_PATH", "CLIENT_CERT_PATH")
"""MLflow's settings of the connection to a server."""
_LONGEST_FILE = 504
"""Bytes of the path of a database: SQLite takes 512, of which the name of its journal needs 8."""
_TIMEOUT = 5.0
"""Seconds that a store has to accept a connection."""


def refuse_files(uri: str | None) -> None:
    """Refuse MLflow's file stores, which do not support what dsd-lab stores.

    Raises:
        BadInput: the address is a folder, or MLflow has no store of its kind.
    """
    if uri is None or uri.startswith(("databricks", "sqlite:")):
        return
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file") or scheme.partition("+")[0] not in _PORTS:
        name = "mlflow.db" if scheme in ("", "file") else "PATH/mlflow.db"
        raise BadInput(
            f"--tracking-uri {without_password(uri)}: is not a store that sweeps can use; use a database "
            f"(sqlite:///{name}, postgresql://...) or a server (http://...), or omit it for SQLite in HOME"
        )


def refuse_unsuitable(uri: str | None, home: Path) -> None:
    """Refuse an unreachable store or a missing driver before training starts.

    Args:
        uri: of the store; None is SQLite in the home folder.
        home: the home folder.

    Raises:
        BadInput: as `refuse_files`.
        NoResources: the folder or driver is missing, or nothing accepts a connection at the address.
    """
    refuse_files(uri)
    later = "or sweep with --no-tracking, after which `dsd-lab report` stores everything"
    file = sqlite_path(uri or own_uri(home))
    if file is not None and (length := len(os.fsencode(file.absolute()))) > _LONGEST_FILE:
        raise NoResources(
            f"{str(file)[:100]}...: its path of {length} bytes is too long for SQLite, which takes {_LONGEST_FILE}; "
            "name a shorter --home, or a server with --tracking-uri http://..."
        )
    if uri is None or uri.startswith("databricks"):
        return
    shown = f"--tracking-uri {without_password(uri)}"
    if uri.startswith("sqlite:"):
        if file is not None and not file.parent.is_dir():
            raise NoResources(f"{shown}: no such folder {file.parent}; make it, {later}")
        return
    place = urlsplit(uri)
    kind, _, named = place.scheme.partition("+")
    drivers = (named,) if named else _DRIVERS.get(kind, ())
    if drivers and not any(map(_installed, drivers)):
        raise NoResources(f"{shown}: {drivers[0]} is not installed; `pip install {drivers[0]}`, {later}")
    try:
        port = place.port or _PORTS[kind]
        socket.create_connection((place.hostname or "127.0.0.1", port), timeout=_TIMEOUT).close()
    except (OSError, ValueError) as error:
        raise NoResources(f"{shown}: no answer: {error}; start the server, {later}") from None
    if kind in ("http", "https") and _access_denied(uri):
        raise NoResources(
            f"{shown}: access denied; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, "
            f"{later}"
        )


def _access_denied(uri: str) -> bool:
    """Whether a server answers 401 or 403 to MLflow's credentials; False where only MLflow itself can tell."""
    if any(os.environ.get(f"MLFLOW_TRACKING_{name}") for name in _MLFLOW_SETTINGS):
        return False
    import http.client  # slow import, only needed for a server
    import urllib.error
    import urllib.request

    place = urlsplit(uri)
    given = unquote(place.username or ""), unquote(place.password or "")
    request = urllib.request.Request(
        f"{place.scheme}://{place.netloc.rpartition('@')[2]}{place.path.rstrip('/')}"
        "/api/2.0/mlflow/experiments/search?max_results=1"
    )
    if credentials := _credentials(*given):
        request.add_header("Authorization", credentials)
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code in (401, 403)
    except (OSError, http.client.HTTPException):  # reported when the store is used
        return False
    return False


def _credentials(user: str, password: str) -> str | None:
    """The authorisation header that MLflow sends: from the address, the environment or `~/.mlflow/credentials`."""
    kept = configparser.ConfigParser()
    with contextlib.suppress(configparser.Error, OSError, ValueError, RuntimeError):
        kept.read(Path.home() / ".mlflow" / "credentials")
    named = [
        os.environ.get(f"MLFLOW_TRACKING_{name}")
        or kept.get("mlflow", f"mlflow_tracking_{name.lower()}", fallback="", raw=True)
        or ""
        for name in ("USERNAME", "PASSWORD")
    ]
    user, password = (user, password) if user else (named[0], named[1])
    if user:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return f"Bearer {token}" if token else None


def with_driver(uri: str) -> str:
    """Add an installed driver to a database address that names none: `postgresql+psycopg2://...`."""
    kind, colon, rest = uri.partition("://")
    driver = next(filter(_installed, _DRIVERS.get(kind, ())), None)
    return uri if driver is None else f"{kind}+{driver}{colon}{rest}"


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def default_uri(home: Path) -> str:
    """`MLFLOW_TRACKING_URI` if set, else SQLite in the home folder."""
    return chosen_uri(None) or own_uri(home)


def own_uri(home: Path) -> str:
    """URI of the SQLite file of a home folder.

    Raises:
        BadInput: a link is in its place.
    """
    path = home.resolve() / "mlflow.db"
    if path.is_symlink():  # a home may have come with a clone, and MLflow would write its tables where it leads
        raise BadInput(f"{path}: is a link; name the store that it leads to with --tracking-uri sqlite:///PATH")
    return sqlite_uri(path)
