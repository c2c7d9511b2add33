"""Addresses of stores: which one is meant, and how it may be shown, without the password that it may hold."""

from __future__ import annotations

import os
import re
from pathlib import Path

_PASSWORD = re.compile(r"(://[^/@:\s]*:)[^/@\s]*@")


def chosen_uri(given: str | None) -> str | None:
    """The store that a command line or `MLFLOW_TRACKING_URI` names; None: SQLite in the home folder."""
    return given or os.environ.get("MLFLOW_TRACKING_URI")


def without_password(text: str) -> str:
    """Text with `***` in the place of the password of every address in it."""
    return _PASSWORD.sub(r"\1***@", text)


def default_uri(home: Path) -> str:
    """`MLFLOW_TRACKING_URI` where it is set, else SQLite in the home folder."""
    return chosen_uri(None) or own_uri(home)


def own_uri(home: Path) -> str:
    """The SQLite file of a home folder."""
    return f"sqlite:///{home.resolve() / 'mlflow.db'}"
