"""Other people of the same machine: another user, as far as this machine allows one, and what they leave in folders."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]


def neighbour() -> list[str]:
    """What makes a command another user's: nothing where this machine, or where Python lies, does not allow it."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        return []
    tried = subprocess.run([*_NOBODY, sys.executable, "-c", "import ray"], capture_output=True, timeout=60)
    return [] if tried.returncode else _NOBODY


def stranger() -> tuple[list[str], dict[str, str]]:
    """Python as another user starts it, with this package, and the environment for it; skips the test where nothing lets one.

    It is the tests' interpreter or, where that lies in a folder of root's, the system's with the same packages.
    """
    packages = str(Path(find_spec("torch").origin).parents[1])
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parents[1]}:{packages}", "HOME": "/nonexistent"}
    for name in ("USER", "LOGNAME"):
        environment.pop(name, None)
    for python in (sys.executable, "/usr/bin/python3"):
        started = [*_NOBODY, python]
        tried = [*started, "-c", "import subprocess, sys, torch; subprocess.run([sys.executable, '-V'], check=True)"]
        if neighbour() and subprocess.run(tried, env=environment, capture_output=True).returncode == 0:
            return started, environment
    pytest.skip("another user can start no interpreter with these packages")


def plant_modules(folder: Path) -> Path:
    """Modules with the names of others, which write to the file that is returned when anything imports them."""
    seen = folder.parent / f"{folder.name}-imported"
    for name in ("random", "json", "secrets", "numpy", "torch", "ray", "mlflow", "uvicorn", "starlette", "yaml"):
        (folder / f"{name}.py").write_text(f"open({str(seen)!r}, 'a').write({name!r} + ' ')\nraise SystemExit(99)\n")
    return seen
