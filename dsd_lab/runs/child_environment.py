"""The environment of child processes.

It holds only what Python, torch and CUDA read, since Ray writes parts of the environment to its logs. Imports never
come from the current folder, where a `random.py` would shadow the standard library.
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
    """Filter an environment for child processes, and drop relative folders from import paths.

    Ray's own token stays, since a cluster may require it. No other name that sounds like a secret does.
    """
    kept = {name: value for name, value in environment.items() if _is_passed_on(name, value)}
    return kept | safe_imports(kept)


def safe_imports(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that keep Python from importing from the current folder."""
    folders = environment.get("PYTHONPATH", "").split(os.pathsep)
    kept = os.pathsep.join(folder for folder in folders if os.path.isabs(folder))  # empty: the current folder
    return {"PYTHONSAFEPATH": "1", **({"PYTHONPATH": kept} if "PYTHONPATH" in environment else {})}


def _is_passed_on(name: str, value: str) -> bool:
    if name.startswith("RAY_AUTH_"):
        return True
    if name.upper() in _PROXIES:
        return "@" not in value  # an @ means that it holds credentials
    if any(word in name.upper() for word in _SECRET) and not name.endswith(("_PATH", "_FILE")):
        return False
    return name in _NAMES or name.startswith(_PREFIXES)
