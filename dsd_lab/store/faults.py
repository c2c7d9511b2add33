"""Errors of MLflow stores."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from dsd_lab.errors import LabError
from dsd_lab.files.redaction import without_password

STORE_ERRORS = (MlflowException, SQLAlchemyError, sqlite3.Error, requests.RequestException, OSError)
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "PERMISSION_DENIED")
"""MLflow's codes of errors that a retry does not cure."""


class StoreUnavailable(LabError):
    """The store is unreachable or refuses a value. Spools are kept and replayed later."""


@contextlib.contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Turn errors of a store into a one-line `StoreUnavailable` without passwords.

    Raises:
        StoreUnavailable: the store does not answer, or refuses a value.
    """
    try:
        yield
    except STORE_ERRORS as error:
        lines = [line for line in str(error).splitlines() if line and not line.startswith("(raised as a result of")]
        reason = (lines or [type(error).__name__])[0][:300]
        refused = isinstance(error, MlflowException) and error.error_code in _REFUSALS
        what = "refuses a value" if refused else "does not answer"
        raise StoreUnavailable(without_password(f"the store {uri} {what}: {reason}", uri)) from None
