"""Another user of the same machine, as far as this machine allows one."""

import os
import shutil
import subprocess
import sys

_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]


def neighbour() -> list[str]:
    """What makes a command another user's: nothing where this machine, or where Python lies, does not allow it."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        return []
    tried = subprocess.run([*_NOBODY, sys.executable, "-c", "import ray"], capture_output=True, timeout=60)
    return [] if tried.returncode else _NOBODY
