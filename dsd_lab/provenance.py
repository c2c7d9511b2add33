"""Where a result comes from: code, versions, machine. No environment variables, no paths outside the package."""

from __future__ import annotations

import ast
import hashlib
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_PACKAGE = Path(__file__).parent


@cache
def training_code() -> str:
    """Twelve digits of a hash of the training code's syntax trees: comments and docstrings do not count."""
    digest = hashlib.sha256()
    for path in sorted((_PACKAGE / "core").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if (
                isinstance(body, list)
                and body
                and isinstance(body[0], ast.Expr)
                and isinstance(body[0].value, ast.Constant)
            ):
                body.pop(0)
        digest.update(path.relative_to(_PACKAGE / "core").as_posix().encode() + ast.dump(tree).encode())
    return digest.hexdigest()[:12]


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
