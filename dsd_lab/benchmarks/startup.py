"""What a user waits for before anything is computed: fresh processes, timed from outside."""

from __future__ import annotations

import subprocess
import sys
import time

from dsd_lab.benchmarks.clock import spread

_PROGRAMS = {
    "help": ("-m", "dsd_lab", "--help"),
    "imports": ("-c", "import dsd_lab.running"),
}


def start_up(repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of whole processes, by name, each run `repeats` times.

    `help` is `dsd-lab --help`; `imports` loads all that training takes, torch among it.
    """
    found: dict[str, list[float]] = {name: [] for name in _PROGRAMS}
    for _ in range(repeats):
        for name, program in _PROGRAMS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *program], stdout=subprocess.DEVNULL, check=True)
            found[name].append(time.perf_counter() - began)
    return {name: spread(values) for name, values in found.items()}
