"""What a user waits for before anything is computed: fresh processes, timed from outside."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dsd_lab.bench.clock import spread
from dsd_lab.errors import BAD_INPUT, OK
from dsd_lab.home.home import Home

_PROGRAM = ("-m", "dsd_lab")


def start_up(repeats: int, spec: str | None, options: list[str], home: Home) -> dict[str, dict[str, float]]:
    """Seconds of whole processes, by name, each run `repeats` times.

    `help` is `dsd-lab --help`; `error` a spec with an unknown key; `plan` that of a spec, its shapes
    counted before; `imports` loads all that training takes, torch among it.

    Args:
        repeats: of each.
        spec: file of the spec that is planned; None: none is.
        options: of the spec, such as `--profile quick`.
        home: where counts are kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        wrong = Path(folder) / "wrong.yaml"
        wrong.write_text("name: wrong\nvariants: {dsd: {}}\nbase: {training: {stpes: 1}}\n")
        programs = {
            "help": ((*_PROGRAM, "--help"), OK),
            "error": ((*_PROGRAM, "plan", str(wrong), "--home", folder), BAD_INPUT),
            "imports": (("-c", "import dsd_lab.runs.run_trial"), OK),
        }
        if spec is not None:
            planned = (*_PROGRAM, "plan", spec, *options, "--home", str(home.root))
            _run(planned, OK)
            programs["plan"] = planned, OK
        found: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(repeats):
            for name, program in programs.items():
                began = time.perf_counter()
                _run(*program)
                found[name].append(time.perf_counter() - began)
    return {name: spread(values) for name, values in found.items()}


def _run(program: tuple[str, ...], expected: int) -> None:
    done = subprocess.run([sys.executable, "-P", *program], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode != expected:
        raise subprocess.CalledProcessError(done.returncode, program, stderr=done.stderr)
