"""Addresses of stores: which one is meant, and whether it suits."""

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
from dsd_lab.files.redaction import without_password


def chosen_uri(given: str | None) -> str | None:
    """The store that a command line or `MLFLOW_TRACKING_URI` names; None: SQLite in the home folder."""
    return given or os.environ.get("MLFLOW_TRACKING_URI")


_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_DRIVERS = {"postgresql": ("psycopg2", "psycopg"), "mysql": ("pymysql",), "mssql": ("pymssql",)}
"""What can speak with a database, the one that is asked for first; which one SQLAlchemy takes by itself differs by its version."""
_MLFLOWS_OWN = ("AUTH", "AWS_SIGV4", "INSECURE_TLS", "SERVER_CERT_PATH", "CLIENT_CERT_PATH")
"""Settings of MLflow's about how it speaks with a server."""
_TIMEOUT = 5.0
"""Seconds in which a store has to take a connection."""


def refuse_files(uri: str | None) -> None:
    """MLflow's folders of text files take no part of what is stored here: refuse their addresses.

    Raises:
        BadInput: the address is a folder, or of a kind that MLflow has no store for.
    """
    if uri is None or uri.startswith(("databricks", "sqlite:")):
        return
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file") or scheme.partition("+")[0] not in _PORTS:
        name = "mlflow.db" if scheme in ("", "file") else "PATH/mlflow.db"
        raise BadInput(
            f"--tracking-uri {without_password(uri)}: is not a store that sweeps can use; take a database "
            f"(sqlite:///{name}, postgresql://...) or a server (http://...), or leave it out for SQLite in HOME"
        )


def refuse_unsuitable(uri: str | None) -> None:
    """Refuse a store before anything is trained for it, where nobody is at its address or nothing can speak with it.

    Raises:
        BadInput: as `refuse_files`.
        NoResources: its folder or its driver is not there, or nothing takes a connection at its address.
    """
    refuse_files(uri)
    if uri is None or uri.startswith("databricks"):
        return
    shown = f"--tracking-uri {without_password(uri)}"
    later = "or sweep with --no-tracking, after which `dsd-lab report` stores everything"
    if uri.startswith("sqlite:"):
        folder = Path(uri.removeprefix("sqlite:///")).parent
        if uri.startswith("sqlite:///") and not uri.startswith("sqlite:///file:") and not folder.is_dir():
            raise NoResources(f"{shown}: there is no folder {folder}; make it, {later}")
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
        raise NoResources(f"{shown}: nobody answers: {error}; start the server, {later}") from None
    if kind in ("http", "https") and _refuses_us(uri):
        raise NoResources(
            f"{shown}: refuses this user; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, "
            f"{later}"
        )


def _refuses_us(uri: str) -> bool:
    """Whether a server answers 401 or 403 to the credentials that MLflow would send; where only MLflow can tell, False."""
    if any(os.environ.get(f"MLFLOW_TRACKING_{name}") for name in _MLFLOWS_OWN):
        return False
    import http.client  # a third of the start of a command: only where there is a server
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
    except (OSError, http.client.HTTPException):  # how it fails is told where it is used
        return False
    return False


def _credentials(user: str, password: str) -> str | None:
    """The header that MLflow sends: of the address, else of the environment, else of `~/.mlflow/credentials`."""
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
    """The address of a database with the name of an installed driver, where it names none: `postgresql+psycopg2://...`."""
    kind, colon, rest = uri.partition("://")
    driver = next(filter(_installed, _DRIVERS.get(kind, ())), None)
    return uri if driver is None else f"{kind}+{driver}{colon}{rest}"


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def default_uri(home: Path) -> str:
    """`MLFLOW_TRACKING_URI` where it is set, else SQLite in the home folder."""
    return chosen_uri(None) or own_uri(home)


def own_uri(home: Path) -> str:
    """The SQLite file of a home folder."""
    return f"sqlite:///{home.resolve() / 'mlflow.db'}"
