"""Where a result comes from: code, versions, machine. Records no environment variables and no outside paths."""

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
_MAX_DIFF = 256 * 1024
"""Characters of the work tree's diff that are kept."""
_SECRET = re.compile(r"(?i)((?:token|secret|passw(?:or)?d|api_?key|credential)[\w-]{0,40}[\"']?\s{0,9}[:=]\s{0,9})\S.*")
_command: str | None = None


def remember_call(command: str | list[str] | None) -> None:
    """Remember the command line that this process serves, without passwords."""
    global _command
    if isinstance(command, list):  # word by word: a password may hold spaces and quotes, which end it in a line
        command = shlex.join(["dsd-lab", *(without_password(word, _address_in(word)) for word in command)])
    _command = None if command is None else without_secrets(command)


def _address_in(word: str) -> str:
    found = re.search(r"[A-Za-z][A-Za-z0-9+.-]*://.*", word, re.DOTALL)
    return "" if found is None else found[0]


def called_with() -> str | None:
    """The remembered command line; None outside the command line, as in a notebook."""
    return _command


def without_secrets(text: str) -> str:
    """Replace passwords in addresses and values of keys such as `token` by `***`."""
    return _SECRET.sub(r"\1***", without_password(text))


@cache
def work_tree_diff() -> str:
    """The package's `git diff HEAD`, without secrets, truncated to `_MAX_DIFF` characters; empty outside git."""
    found = without_secrets(_git("diff", "HEAD", "--", str(_PACKAGE)) or "")
    return found if len(found) <= _MAX_DIFF else f"{found[:_MAX_DIFF]}\n[cut at {_MAX_DIFF} characters]\n"


def provenance() -> dict[str, Any]:
    """Code hash, git commit, whether the work tree is dirty (git fields are None outside git), versions, machine."""
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
    """Name of the GPU or processor."""
    import torch  # already imported by whoever has a device

    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def processor() -> str:
    """The processor's name, from `/proc/cpuinfo`."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
