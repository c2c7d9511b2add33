"""MLflow: spools are replayed into it, reports read from it."""

import contextlib
import os
from collections.abc import Iterator

# Set before the import: no telemetry, and no two lines a run on the terminal.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

SOON = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""Time-outs under which a dead server is noticed in seconds: the command line sets them for its process."""


@contextlib.contextmanager
def short_timeouts() -> Iterator[None]:
    """`SOON` where the environment says nothing else, until the block ends; MLflow asks the environment at every request."""
    added = {name: value for name, value in SOON.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
