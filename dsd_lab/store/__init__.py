"""The MLflow store: spools are replayed into it, and reports read from it."""

import contextlib
import os
from collections.abc import Iterator

# Set before the import: no telemetry, and no lines per run on the terminal.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

SHORT_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""Timeouts that detect a dead server within seconds. The command line sets them for its process."""


@contextlib.contextmanager
def short_timeouts() -> Iterator[None]:
    """Apply `SHORT_TIMEOUTS` within the block, unless set otherwise; MLflow reads the variables at every request."""
    added = {name: value for name, value in SHORT_TIMEOUTS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
