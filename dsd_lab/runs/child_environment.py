"""The environment of the processes that we start.

They get what Python, torch and CUDA read, and no more: Ray writes parts of the environment to its logs. What they
import never comes from the current folder, which may hold anybody's `random.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

_NAMES = frozenset(
    (
        *("HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "LANGUAGE", "TZ", "TERM", "VIRTUAL_ENV"),
        *("TMPDIR", "TEMP", "TMP"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "LIBRARY_PATH", "CPATH", "CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS"),
        *("MAX_JOBS", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    )
)
_PREFIXES = (
    *("LC_", "XDG_", "PYTHON", "CONDA", "OMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_", "NUMEXPR_", "GOMP_", "MALLOC_"),
    *("CUDA", "CUBLAS", "CUDNN", "NCCL_", "GLOO_", "NVIDIA_", "HIP_", "ROCR_", "HSA_", "TORCH", "PYTORCH_", "TRITON_"),
    *("RAY_", "TUNE_", "DSD_", "HF_", "SLURM_", "MPL", "COVERAGE_", "PYTEST_"),
)
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
_SECRET = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "_KEY", "KEY_", "AUTH")


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that a process of ours gets, with paths of imports that name no relative folder.

    Ray's own token stays in it, since a cluster may ask for it; no other name that sounds like a secret does.
    """
    kept = {name: value for name, value in environment.items() if _is_passed_on(name, value)}
    return kept | safe_imports(kept)


def safe_imports(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that keep Python from importing from the current folder."""
    folders = environment.get("PYTHONPATH", "").split(os.pathsep)
    kept = os.pathsep.join(folder for folder in folders if os.path.isabs(folder))  # an empty one is the current folder
    return {"PYTHONSAFEPATH": "1", **({"PYTHONPATH": kept} if "PYTHONPATH" in environment else {})}


def _is_passed_on(name: str, value: str) -> bool:
    if name.startswith("RAY_AUTH_"):
        return True
    if name.upper() in _PROXIES:
        return "@" not in value  # else it holds a password
    if any(word in name.upper() for word in _SECRET) and not name.endswith(("_PATH", "_FILE")):
        return False
    return name in _NAMES or name.startswith(_PREFIXES)
