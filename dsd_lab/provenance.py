"""Where a result comes from: code, versions, machine. No environment variables, no paths outside the package."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsd_lab.training_code import training_code

if TYPE_CHECKING:
    import torch

_PACKAGE = Path(__file__).parent


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
