"""What the soak strikes with: processes are killed or suspended, files are damaged, and other commands run in the same home."""

import contextlib
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from sweeping import DEADLINE, start, wait_until

from dsd_lab.core.training.checkpoints import list_checkpoints
from dsd_lab.errors import OK
from dsd_lab.home.home import Home

AWAY = 8.0
"""Seconds for which the store is away."""
_AT_ONCE = 2
"""Commands that run in the home at once, the sweep and its second driver not among them."""


_NEED_A_WORKER = ("kill_worker", "stop_worker", "damage_checkpoint", "damage_trial")
"""Strikes that wait until a trial runs."""


class Strikes:
    """Strikes on a sweep, chosen at random from a seed; the sweep itself is driven by the class that inherits from this one.

    Attributes:
        spec: file of the sweep.
        second: file of a sweep of other name that shares some of its trials.
        exported: folder of a third sweep, which `import` brings and `rm` takes away again.
        ids: of the sweep's trials.
        home: where it runs.
        driver: its process.
        strikes: how many of each kind.
        files: how often files of each name were damaged.
        beside: commands that run in the same home, each with its name and its output.
        ended_in: the attempt in which each trial ended, as it was when that was first seen.
    """

    spec: Path
    second: Path
    exported: Path
    uri: str
    ids: list[str]
    home: Home
    driver: subprocess.Popen[str]
    store_was_away: bool
    back_at: float
    server: contextlib.ExitStack
    drive: Callable[[], subprocess.Popen[str]]

    def __init__(self, seed: int) -> None:
        self.random, self.strikes, self.files = random.Random(seed), Counter[str](), Counter[str]()
        self.beside: list[tuple[str, subprocess.Popen[str], Any]] = []
        self.ended_in: dict[str, int] = {}
        self.waiting: Callable[[], bool] | None = None
        """The strike that had nothing to strike."""

    def strike(self) -> bool:
        """Strike at random; False where nothing is there to be struck. A strike on a worker is tried again the next time.

        Else a sweep that only just starts, and has no workers, would be met by nothing but strikes on itself.
        """
        kinds: dict[Callable[[], bool], int] = {
            self.kill_worker: 4, self.kill_driver: 1, self.stop_worker: 2, self.stop_driver: 1, self.take_store: 1,
            self.damage_checkpoint: 3, self.damage_trial: 4, self.damage_ended: 1, self.damage_home: 2,
            self.kill_uploader: 1, self.kill_raylet: 1, self.second_driver: 1, self.same_driver: 1,
            self.gc: 1, self.report: 1, self.import_other: 1, self.remove_other: 1,
        }  # fmt: skip
        kind = self.waiting or self.random.choices(list(kinds), list(kinds.values()))[0]
        struck = kind()
        self.waiting = kind if not struck and kind.__name__ in _NEED_A_WORKER else None
        self.strikes[kind.__name__] += struck
        return struck

    # -- Processes -----------------------------------------------------------------------------------

    def workers(self) -> dict[str, int]:
        """Running trials and the processes that run them."""
        held = [i for i in self.ids if (self.home.trial(i).root / "lock").exists()]
        running = [i for i in held if self.home.trial(i).state() == "running"]
        return {i: self.home.trial(i).status().pid or 0 for i in running}

    def _victim(self, with_checkpoint: bool = False) -> tuple[str, int] | None:
        workers = {trial: process for trial, process in self.workers().items() if process}
        if with_checkpoint:
            workers = {trial: process for trial, process in workers.items() if self._checkpoints(trial)}
        return self.random.choice(sorted(workers.items())) if workers else None

    def _checkpoints(self, trial: str) -> list[Path]:
        return list_checkpoints(self.home.trial(trial).checkpoints)

    def kill_worker(self) -> bool:
        victim = self._victim()
        return victim is not None and send(victim[1], signal.SIGKILL)

    def stop_worker(self) -> bool:
        victim = self._victim()
        return victim is not None and self._suspend(victim[1])

    def stop_driver(self) -> bool:
        return self._suspend(self.driver.pid)

    def _suspend(self, process: int) -> bool:
        if not send(process, signal.SIGSTOP):
            return False
        time.sleep(self.random.uniform(0.5, 2.0))
        return send(process, signal.SIGCONT)

    def kill_driver(self) -> bool:
        """It is killed and started again."""
        descendants = self._descendants()
        self.driver.kill()
        self.driver.wait(DEADLINE)
        workers = [process for process in descendants if _name(process).startswith("ray::")]
        wait_until(lambda: not any(process.is_running() for process in workers), "its workers have died with it")
        self.driver = self.drive()
        return True

    def kill_uploader(self) -> bool:
        return self._kill(lambda process: "dsd_lab.store.uploader" in _called_with(process))

    def kill_raylet(self) -> bool:
        return self._kill(lambda process: _name(process) == "raylet")

    def _kill(self, wanted: Callable[[psutil.Process], bool]) -> bool:
        found = [process for process in self._descendants() if wanted(process)]
        return bool(found) and send(found[0].pid, signal.SIGKILL)

    def _descendants(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.driver.pid).children(recursive=True)
        return []

    def take_store(self) -> bool:
        """MLflow's server is killed, and started again later."""
        if self.back_at:
            return False
        self.server.close()
        self.back_at = time.monotonic() + AWAY
        self.store_was_away = True
        return True

    # -- Files ---------------------------------------------------------------------------------------

    def damage_checkpoint(self) -> bool:
        """The newest checkpoint of a trial whose worker has just died is cut short, or one of its bytes is another."""

        def damage(trial: str) -> bool:
            for newest in self._checkpoints(trial)[:1]:
                path = newest / "tensors.safetensors"
                raw = bytearray(path.read_bytes())
                raw[self.random.randrange(len(raw))] ^= 1
                path.write_bytes(raw[: len(raw) // 2] if self.random.random() < 0.5 else raw)
                return True
            return False

        return self._after_death(damage, with_checkpoint=True)

    def damage_trial(self) -> bool:
        """Any file of a trial whose worker has just died is cut short, emptied or removed."""

        def damage(trial: str) -> bool:
            root = self.home.trial(trial).root
            return self._damage([p for p in root.rglob("*") if p.is_file() and p.name != "lock"])

        return self._after_death(damage)

    def damage_ended(self) -> bool:
        """The status or the records of a trial that has ended are cut short, emptied or removed: it ends again."""
        ended = sorted(i for i in self.ended_in if self.home.trial(i).root.exists())
        if not ended:
            return False
        folder = self.home.trial(self.random.choice(ended))
        with folder.lock() as held:
            if not held or not self._damage([folder.root / "status.json", folder.spool]):
                return False
            del self.ended_in[folder.id]
        return True

    def damage_home(self) -> bool:
        """A record or a cache of the whole home is cut short, emptied or removed."""
        own = [self.home.root / "dsd-lab-home.json", self.home.root / "mlflow-runs.json"]
        own += list(self.home.sweep_folder("soak").glob("*.json*"))
        return self._damage([*own, *(p for p in self.home.cache.rglob("*") if p.is_file())])

    def _after_death(self, damage: Callable[[str], bool], with_checkpoint: bool = False) -> bool:
        """Kill a worker and damage its trial before the next one takes the trial up.

        A worker without a checkpoint is left alone where one is to be damaged: else the next try would kill it again.
        """
        victim = self._victim(with_checkpoint)
        if victim is None or not send(victim[1], signal.SIGKILL):
            return False
        with contextlib.suppress(psutil.Error):
            psutil.Process(victim[1]).wait(5)
        with self.home.trial(victim[0]).lock() as held:
            return held and damage(victim[0])

    def _damage(self, files: list[Path]) -> bool:
        files = sorted(path for path in files if path.exists())
        if not files:
            return False
        path, how = self.random.choice(files), self.random.choice(("cut", "empty", "remove"))
        if how == "remove" and path.suffix != ".png":  # a picture that is not there is one that somebody did not want
            path.unlink()
        else:
            os.truncate(path, path.stat().st_size // 2 if how == "cut" else 0)
        self.files[path.name if path.suffix not in (".png", ".safetensors") else f"*{path.suffix}"] += 1
        return True

    # -- Commands in the same home ---------------------------------------------------------------------

    def gc(self) -> bool:
        return self._run("gc", "--yes")

    def report(self) -> bool:
        return self._run("report", "soak", "--tracking-uri", self.uri)

    def import_other(self) -> bool:
        return self._run("import", self.exported)

    def remove_other(self) -> bool:
        return self._run("rm", "other", "--yes")

    def same_driver(self) -> bool:
        """The same command once more. It is refused, as the sweep has trials that run."""
        return bool(self.workers()) and self.driver.poll() is None and self._run("sweep", self.spec, "--no-tracking")

    def end_same_driver(self) -> None:
        """Kill the other driver of the sweep, which has come first: strikes are for the driver that is watched."""
        for name, process, _ in self.beside:
            if name == "sweep":
                process.kill()

    def second_driver(self) -> bool:
        """Another sweep that shares trials with this one; killed at the next such strike if it still runs."""
        for name, process, _ in self.beside:
            if name == "second":
                process.kill()
                return True
        return self._run("sweep", self.second, "--no-tracking", "--retry-failed", name="second")

    def _run(self, verb: str, *arguments: object, name: str | None = None) -> bool:
        if name is None and sum(known != "second" for known, _, _ in self.beside) >= _AT_ONCE:
            return False
        output = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the command)
        self.beside.append((name or verb, start(verb, *arguments, "--home", self.home.root, output=output), output))
        return True

    def look_beside(self, wait: bool = False) -> None:
        """Every command that has ended has done its work, or has said in one line why not.

        Args:
            wait: until they have all ended.
        """
        for entry in list(self.beside):
            name, process, output = entry
            if wait:
                process.wait(DEADLINE)
            if (code := process.poll()) is None:
                continue
            self.beside.remove(entry)
            output.seek(0)
            said = output.read().decode()
            output.close()
            if name in ("second", "sweep") and code in (-signal.SIGKILL, 3):  # 3: a worker was killed three times
                continue
            lines = [line for line in said.splitlines() if line.startswith("dsd-lab: ")]
            assert "Traceback" not in said, f"{name} ended with {code}:\n{said[-3000:]}"
            assert code == OK or lines, f"{name} ended with {code} and no word:\n{said[-3000:]}"

    def end_beside(self) -> None:
        """Kill what still runs."""
        for _, process, output in self.beside:
            process.kill()
            process.wait(DEADLINE)
            output.close()


def send(process: int, number: int) -> bool:
    """Send a signal; False where the process is gone."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""


def _called_with(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []
