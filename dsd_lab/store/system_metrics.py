"""Sample the machine's load while a sweep runs, under MLflow's names of system metrics.

The uploader samples, so that no trial waits; MLflow's own sampler is a thread in the training process. The numbers
are of the machine, not of a trial, and belong to the sweep. On a cluster they are of the machine that runs `sweep`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from dsd_lab.errors import BadInput
from dsd_lab.files.atomic import write_atomic
from dsd_lab.home.spool import complete_lines

EVERY = 10.0
"""Seconds between samples, MLflow's default."""
_TIMEOUT = 5.0
_GPU = ("memory_usage_megabytes", "memory_total", "utilization_percentage", "power_usage_watts", "power_limit")
_QUERY = "index,memory.used,memory.total,utilization.gpu,power.draw,enforced.power.limit"
_MIB = 2**20 / 1e6


class Sampler:
    """Appends samples to a file in the sweep's folder."""

    def __init__(self, sweep: Path) -> None:
        self._sweep, self._due, self._net = sweep, time.monotonic() + EVERY, psutil.net_io_counters()
        psutil.cpu_percent()  # the next call returns the load since this one
        self._file = sweep / "machine.jsonl"
        if self._file.exists():  # a killed sampler may have left half a line
            write_atomic(self._file, b"".join(complete_lines(self._file)))

    def sample_when_due(self) -> bool:
        """Append a sample if the last one is old enough. Returns whether it did."""
        if time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + EVERY
        line = json.dumps({"time": time.time(), "metrics": {f"system/{k}": round(v, 1) for k, v in self.now().items()}})
        with self._file.open("a") as file:
            file.write(line + "\n")
        return True

    def now(self) -> dict[str, float]:
        """Load since the last call and traffic since the first; unknown values are left out."""
        memory, net = psutil.virtual_memory(), psutil.net_io_counters()
        disk = psutil.disk_usage(str(self._sweep))  # the home folder's disk
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": (memory.total - memory.available) / 1e6,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / 1e6,
            "disk_available_megabytes": disk.free / 1e6,
        }
        if net is not None and self._net is not None:  # a machine without network interfaces
            found["network_receive_megabytes"] = (net.bytes_recv - self._net.bytes_recv) / 1e6
            found["network_transmit_megabytes"] = (net.bytes_sent - self._net.bytes_sent) / 1e6
        return found | gpus()


def gpus() -> dict[str, float]:
    """Memory, load and power of every NVIDIA GPU; empty without a GPU or if the driver does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    try:
        command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
        output = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return {}
    return gpu_metrics(output)


def gpu_metrics(output: str) -> dict[str, float]:
    """Output of `nvidia-smi` by MLflow's names; unsupported columns are left out."""
    found: dict[str, float] = {}
    for line in output.splitlines():
        index, *texts = (part.strip() for part in line.split(","))
        if len(texts) != len(_GPU):  # an error message instead of values
            continue
        known = {name: float(text) for name, text in zip(_GPU, texts, strict=True) if text[:1].isdigit()}
        total, limit = known.pop("memory_total", None), known.pop("power_limit", None)
        if total and "memory_usage_megabytes" in known:
            known["memory_usage_percentage"] = 100 * known["memory_usage_megabytes"] / total
            known["memory_usage_megabytes"] *= _MIB
        if limit and "power_usage_watts" in known:
            known["power_usage_percentage"] = 100 * known["power_usage_watts"] / limit
        found |= {f"gpu_{index}_{name}": value for name, value in known.items()}
    return found


def read_samples(sweep: Path) -> list[dict[str, Any]]:
    """All samples of a sweep in order; a partly written last line is left out.

    Raises:
        BadInput: a line is damaged.
    """
    path, found = sweep / "machine.jsonl", []
    for number, line in enumerate(complete_lines(path), 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise BadInput(
                f"{path}:{number}: is damaged; remove the file, which only holds the load of the machine"
            ) from None
    return found
