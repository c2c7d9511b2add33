"""Addresses of stores: which one is meant, and whether it suits."""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from dsd_lab.errors import BadInput, NoResources
from dsd_lab.files.redaction import without_password


def chosen_uri(given: str | None) -> str | None:
    """The store that a command line or `MLFLOW_TRACKING_URI` names; None: SQLite in the home folder."""
    return given or os.environ.get("MLFLOW_TRACKING_URI")


_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_DRIVERS = {"postgresql": ("psycopg2", "psycopg"), "mysql": ("pymysql",), "mssql": ("pymssql",)}
"""What can speak with a database, the one that is asked for first; which one SQLAlchemy takes by itself differs by its version."""
_PATIENCE = 5.0
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
        socket.create_connection((place.hostname or "127.0.0.1", port), timeout=_PATIENCE).close()
    except (OSError, ValueError) as error:
        raise NoResources(f"{shown}: nobody answers: {error}; start the server, {later}") from None


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
