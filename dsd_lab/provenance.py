"""Where a result comes from: code, versions, machine. No environment variables, no paths outside the package."""

from __future__ import annotations

import hashlib
import platform
import re
import shlex
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsd_lab.files.redaction import without_password
from dsd_lab.training_code import training_code

if TYPE_CHECKING:
    import torch

_PACKAGE = Path(__file__).parent
_MOST_OF_DIFF = 256 * 1024
"""Characters of a work tree's difference that are kept."""
_SECRET = re.compile(r"(?i)((?:token|secret|passw(?:or)?d|api_?key|credential)[\w-]{0,40}[\"']?\s{0,9}[:=]\s{0,9})\S.*")
_command: str | None = None


def remember_call(command: str | list[str] | None) -> None:
    """Keep the command line that this process works for, without the passwords in it."""
    global _command
    text = command if isinstance(command, str) or command is None else shlex.join(["dsd-lab", *command])
    _command = None if text is None else without_secrets(text)


def called_with() -> str | None:
    """The command line that this process works for; None where it was called by none, as from a notebook."""
    return _command


def without_secrets(text: str) -> str:
    """Text with `***` in the place of passwords in addresses, and of whatever a key such as `token` is given."""
    return _SECRET.sub(r"\1***", without_password(text))


@cache
def work_tree_diff() -> str:
    """What the package's files differ by from their commit, without secrets, cut where it is long; empty outside git."""
    found = without_secrets(_git("diff", "HEAD", "--", str(_PACKAGE)) or "")
    return found if len(found) <= _MOST_OF_DIFF else f"{found[:_MOST_OF_DIFF]}\n[cut at {_MOST_OF_DIFF} characters]\n"


def provenance() -> dict[str, Any]:
    """Commit and whether the work tree differs from it (None outside git), code hash, versions, machine."""
    packages = (
        "dsd-lab",
        "torch",
        "timm",
        "numpy",
        "safetensors",
        "pydantic",
        "scikit-learn",
        "ray",
        "mlflow",
        "torch-fidelity",
    )
    return {
        "code": training_code(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", str(_PACKAGE))),
        "git_diff": hashlib.sha256(work_tree_diff().encode()).hexdigest() if work_tree_diff() else None,
        "command": called_with(),
        "python": platform.python_version(),
        "versions": {name: version for name in packages if (version := _version(name))},
        "machine": {"host": platform.node(), "system": platform.platform(), "processor": processor()},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    if not (_PACKAGE.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(_PACKAGE.parent), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    import torch  # whoever has a device has imported it

    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def processor() -> str:
    """The processor's name as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
