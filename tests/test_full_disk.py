"""A disk that fills up in mid-sweep: one line, exit code 3 or 4, and the same command goes on where there is room again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sweeping import DEADLINE, write_spec

from dsd_lab.errors import NO_RESOURCES, OK, TRIALS_FAILED, comes_from_full_disk

INSIDE = """
import json, subprocess, sys
from pathlib import Path
from sweeping import DEADLINE, command, wait_until
home, fill = Path("/mnt/home"), Path("/mnt/fill")
sweep = command("sweep", sys.argv[1], "--home", home)
first = subprocess.Popen(sweep, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
wait_until(lambda: list(home.glob("trials/*/checkpoints/step-*")), "a checkpoint is there", first)
try:
    with fill.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
except OSError:
    pass
try:
    output = first.communicate(timeout=DEADLINE)[0]
finally:
    first.kill()
fill.unlink()
again = subprocess.run(sweep, capture_output=True, text=True, timeout=DEADLINE)
print(json.dumps([first.returncode, output, again.returncode, again.stdout + again.stderr]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_f4_a_disk_that_fills_up_in_mid_sweep_is_told_of_and_the_same_command_goes_on(tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespace")
    spec = write_spec(tmp_path, base={"training": {"steps": 600}, "observation": {"checkpoint_every": 20}})
    mounted = 'mount -t tmpfs -o size=60m none /mnt && exec "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mounted, "sh", sys.executable, "-c", INSIDE, str(spec)],
        cwd=Path(__file__).parent, capture_output=True, text=True, timeout=3 * DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code, output, again, after = json.loads(done.stdout.splitlines()[-1])
    assert code in (TRIALS_FAILED, NO_RESOURCES) and "Traceback" not in output, output
    assert "the disk is full" in output
    assert again == OK and "1 done" in after, after


def test_a_full_disk_is_recognised_behind_an_error_of_a_library():
    full = OSError(28, os.strerror(28))
    behind = RuntimeError("Tune failed")
    behind.__cause__ = full
    assert comes_from_full_disk(behind)
    assert comes_from_full_disk(RuntimeError(f"worker: {full}"))
    assert not comes_from_full_disk(RuntimeError("another"))
