"""Several machines on this one: network namespaces behind a switch, in which Ray's nodes are started, cut off and killed."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweeping import DEADLINE, command

_RAY = "import sys\nfrom ray.scripts.scripts import main\nsys.exit(main())"
_QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "8",
}
"""Patience of Ray's nodes with others that do not answer, in seconds instead of minutes; a driver has the usual one."""
_PASSED_ON = ("PATH", "HOME", "PYTHONPATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "VIRTUAL_ENV")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=60)


class Machines:
    """So many machines; the first is the head of their Ray, and holds no trial.

    Args:
        number: of them.
        folder: short, for Ray's sockets.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self._folder, self._switch = folder, f"dsd-{os.getpid()}-switch"
        self.names = [f"dsd-{os.getpid()}-{i}" for i in range(number)]

    def connect(self) -> None:
        ip("netns", "add", self._switch)
        ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self._switch, "link", "set", "bridge", "up")
        for number, name in enumerate(self.names):
            ip("netns", "add", name)
            ip(
                "link",
                "add",
                "eth0",
                "netns",
                name,
                "type",
                "veth",
                "peer",
                "name",
                f"p{number}",
                "netns",
                self._switch,
            )
            ip("-n", self._switch, "link", "set", f"p{number}", "master", "bridge", "up")
            ip("-n", name, "address", "add", f"{self.address(number)}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                ip("-n", name, "link", "set", link, "up")
            ip(
                "-n", name, "route", "add", "default", "via", self.address(253)
            )  # nobody: Ray asks which address is ours

    def address(self, number: int) -> str:
        return f"10.77.0.{number + 1}"

    @property
    def ray(self) -> str:
        return f"{self.address(0)}:6379"

    def start(self, number: int, cpus: int = 1, hidden: Path | None = None) -> None:
        """Start Ray on a machine, which sees an empty folder in the place of a hidden one."""
        joins = [f"--address={self.ray}"] if number else ["--head", "--port=6379", "--include-dashboard=false"]
        joins += [] if number else [f"--temp-dir={self._folder / 'ray'}"]
        where = [f"--node-ip-address={self.address(number)}", f"--num-cpus={cpus}", "--object-store-memory=100000000"]
        covered = [] if hidden is None else ["sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden)]
        started = [*covered, sys.executable, "-P", "-c", _RAY, "start", *joins, *where, "--disable-usage-stats"]
        done = subprocess.run(
            self.on(number, *started),
            env=self._environment() | _QUICK,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def on(self, number: int, *words: str) -> list[str]:
        """The command line that runs something on a machine."""
        return ["ip", "netns", "exec", self.names[number], *words]

    def lab(self, number: int, *arguments: object) -> subprocess.Popen[str]:
        """A verb of ours on a machine, with its output in one pipe."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        return subprocess.Popen(self.on(number, *command(*arguments)), env=self._environment(), **pipes)

    def ask(self, program: str) -> str:
        """What a Python program prints that is connected to the Ray, on the head."""
        joined = f"import logging, ray\nray.init(address={self.ray!r}, logging_level=logging.ERROR)\n{program}"
        asked = self.on(0, sys.executable, "-P", "-c", joined)
        done = subprocess.run(asked, env=self._environment(), capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _environment(self) -> dict[str, str]:
        known = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        return known | {"HOME": str(self._folder)}  # the user may keep a token for Ray

    def of(self, process: int) -> int:
        """The machine on which a process runs; -1 where it is gone or runs on none."""
        with contextlib.suppress(OSError):
            space = os.stat(f"/proc/{process}/ns/net").st_ino
            for number, name in enumerate(self.names):
                place = Path("/run/netns", name)
                if place.exists() and place.stat().st_ino == space:
                    return number
        return -1

    def processes(self, number: int) -> list[int]:
        """The living processes of a machine."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state = (place / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and self.of(int(place.name)) == number:
                    found.append(int(place.name))
        return found

    def running(self, number: int, name: str) -> list[int]:
        """The processes of a machine with this in their command line."""
        found = []
        for process in self.processes(number):
            with contextlib.suppress(OSError):
                if name.encode() in Path(f"/proc/{process}/cmdline").read_bytes():
                    found.append(process)
        return found

    def kill(self, number: int) -> None:
        """Everything that runs on a machine dies at once."""
        until = time.monotonic() + 30
        while (left := self.processes(number)) and time.monotonic() < until:
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)
        assert not left

    def cut_off(self, number: int) -> None:
        """Nothing that a machine sends reaches another any more, and nobody is told."""
        ip("-n", self._switch, "link", "set", f"p{number}", "down")

    def end(self) -> None:
        for number in range(len(self.names)):
            self.kill(number)
        for name in (*self.names, self._switch):
            if Path("/run/netns", name).exists():
                ip("netns", "delete", name)


@contextlib.contextmanager
def machines(number: int) -> Iterator[Machines]:
    """Machines that end with the block; the test is skipped where this one allows no network namespaces."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces are made with `ip`, of the package iproute2")
    with tempfile.TemporaryDirectory(prefix="dsd-", dir="/tmp", ignore_cleanup_errors=True) as short:
        made = Machines(number, Path(short))
        try:
            try:
                made.connect()
            except subprocess.CalledProcessError as error:
                pytest.skip(f"this machine allows no network namespaces: {error.stderr.decode().strip()}")
            yield made
        finally:
            made.end()
