"""Other people of the same machine: another user, as far as this machine allows one, and what they leave in folders."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]


def neighbour() -> list[str]:
    """What makes a command another user's: nothing where this machine, or where Python lies, does not allow it."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        return []
    tried = subprocess.run([*_NOBODY, sys.executable, "-c", "import ray"], capture_output=True, timeout=60)
    return [] if tried.returncode else _NOBODY


def plant_modules(folder: Path) -> Path:
    """Modules with the names of others, which write to the file that is returned when anything imports them."""
    seen = folder.parent / f"{folder.name}-imported"
    for name in ("random", "json", "secrets", "numpy", "torch", "ray", "mlflow", "uvicorn", "starlette", "yaml"):
        (folder / f"{name}.py").write_text(f"open({str(seen)!r}, 'a').write({name!r} + ' ')\nraise SystemExit(99)\n")
    return seen
