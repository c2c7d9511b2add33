"""What can go wrong between this program and an MLflow store."""

from __future__ import annotations

import sqlite3

import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from dsd_lab.errors import LabError

STORE_ERRORS = (MlflowException, SQLAlchemyError, sqlite3.Error, requests.RequestException, OSError)


class StoreUnavailable(LabError):
    """The store cannot be reached; spools are kept and replayed later."""
