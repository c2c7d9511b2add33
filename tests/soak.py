"""The soak: a sweep of hundreds of tiny trials that is struck every few seconds, and must end as if nothing had happened.

    python tests/soak.py --trials 200 --seed 0        (make soak)

Strikes come from a fixed seed: a worker is killed; the driver is killed and started again; a worker or the driver is
stopped and continued; a worker is killed and the newest checkpoint of its trial damaged; MLflow's server is killed and
started again later. At the end the manifest, every trial's weights, records and pictures, and the rows of the store
have to be those of a sweep of the same spec that nothing struck, and no trial that had ended may have been run again.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from comparing import record_of, stored_trials
from leftovers import nothing_left
from sweeping import (
    DEADLINE,
    VARIANTS,
    free_port,
    mlflow_server,
    start,
    train_here,
    wait_until,
    write_spec,
)

from dsd_lab.core.training.checkpoints import list_checkpoints
from dsd_lab.errors import NO_RESOURCES, OK, TRIALS_FAILED
from dsd_lab.home.home import Home
from dsd_lab.home.trial_folder import ENDED
from dsd_lab.store.faults import StoreUnavailable
from dsd_lab.store.mlflow_store import Store

TRIAL = {
    "training": {"steps": 60, "batch_size": 8},
    "probe": {"every": 30, "images": 16, "t_bins": 2, "gradient_images": 4},
    "observation": {"log_every": 10, "checkpoint_every": 10, "images_every": 60, "images": 2},
}
VARIANTS_HERE = ("dsd", "control", "naive", "wild")
AWAY = 8.0
"""Seconds for which the store is away."""
MISSED = 0.1
"""Seconds to the next try where no trial was running that could be struck."""


class Soak:
    """A sweep under fire.

    Args:
        spec: its file.
        ids: of its trials.
        home: where it runs.
        served: folder of the MLflow server.
        seed: of the strikes.
    """

    def __init__(self, spec: Path, ids: list[str], home: Home, served: Path, seed: int) -> None:
        self.spec, self.ids, self.home, self.served = spec, ids, home, served
        self.random, self.strikes = random.Random(seed), Counter()
        self.port, self.server, self.back_at = free_port(), contextlib.ExitStack(), 0.0
        self.starts = 0
        self.store_was_away = False
        """Whether the store was away at any moment of the present driver's life, its start included."""
        self.ended_in: dict[str, int] = {}
        """The attempt in which each trial ended, as it was when that was first seen."""
        self.serve()
        self.driver = self.drive()

    # -- What runs -----------------------------------------------------------------------------------

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self) -> None:
        self.server.enter_context(mlflow_server(self.served, self.port))
        self.back_at = 0.0

    def drive(self):
        self.starts += 1
        self.store_was_away = bool(self.back_at)
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        return start(
            "sweep", self.spec, "--home", self.home.root, "--retry-failed", "--tracking-uri", self.uri, output=self.log
        )

    def ended(self) -> bool:
        for trial in self.ids:
            if trial not in self.ended_in and self.home.trial(trial).state() in ENDED:
                self.ended_in[trial] = self.home.trial(trial).status().attempt
        return len(self.ended_in) == len(self.ids)

    def workers(self) -> dict[str, int]:
        """Running trials and the processes that run them."""
        held = [i for i in self.ids if (self.home.trial(i).root / "lock").exists()]
        running = [i for i in held if self.home.trial(i).state() == "running"]
        return {i: int(self.home.trial(i).status().pid) for i in running}

    # -- Strikes -------------------------------------------------------------------------------------

    def strike(self) -> bool:
        """Strike at random; False where nothing was there to be struck."""
        kinds = (self.kill_worker, self.kill_driver, self.stop_worker, self.stop_driver, self.damage, self.take_store)
        kind = self.random.choices(kinds, (4, 1, 2, 1, 3, 1))[0]
        if struck := kind():
            self.strikes[kind.__name__] += 1
        return struck

    def _victim(self) -> tuple[str, int] | None:
        workers = self.workers()
        return self.random.choice(sorted(workers.items())) if workers else None

    def kill_worker(self) -> bool:
        victim = self._victim()
        return victim is not None and _send(victim[1], signal.SIGKILL)

    def damage(self) -> bool:
        """The newest checkpoint of a trial whose worker has just died is cut short, or one of its bytes is another."""
        victim = self._victim()
        if victim is None or not _send(victim[1], signal.SIGKILL):
            return False
        for newest in list_checkpoints(self.home.trial(victim[0]).checkpoints)[:1]:
            path = newest / "tensors.safetensors"
            with contextlib.suppress(FileNotFoundError):
                raw = bytearray(path.read_bytes())
                raw[self.random.randrange(len(raw))] ^= 1
                path.write_bytes(raw[: len(raw) // 2] if self.random.random() < 0.5 else raw)
                return True
        return False

    def stop_worker(self) -> bool:
        victim = self._victim()
        return victim is not None and self._suspend(victim[1])

    def stop_driver(self) -> bool:
        return self._suspend(self.driver.pid)

    def _suspend(self, process: int) -> bool:
        if not _send(process, signal.SIGSTOP):
            return False
        time.sleep(self.random.uniform(0.5, 2.0))
        return _send(process, signal.SIGCONT)

    def kill_driver(self) -> bool:
        self.driver.kill()
        self.driver.wait(DEADLINE)
        wait_until(lambda: not self.workers(), "its workers have died with it")
        self.driver = self.drive()
        return True

    def take_store(self) -> bool:
        if self.back_at:
            return False
        self.server.close()
        self.back_at = time.monotonic() + AWAY
        self.store_was_away = True
        return True

    # -- All of it -----------------------------------------------------------------------------------

    def run(self, every: float, most: float, strikes: int | None) -> None:
        """Strike until every trial has ended (or so often), then bring the store up to it."""
        until = time.monotonic() + most
        while not self.ended():
            if time.monotonic() > until:
                raise AssertionError(
                    f"did not end in {most:g} s: {Counter(self.home.trial(i).state() for i in self.ids)}"
                )
            code = self.driver.poll()
            if code is not None:
                # While the store is away a sweep does not begin. It may be back before that driver's end is noticed.
                if code not in (OK, TRIALS_FAILED, *((NO_RESOURCES,) if self.store_was_away else ())):
                    self.log.seek(0)
                    raise AssertionError(f"the sweep ended with {code}:\n{self.log.read().decode()[-3000:]}")
                self.driver = self.drive()  # a trial whose workers were killed three times has failed
            if self.back_at and time.monotonic() > self.back_at:
                self.serve()
            missed = (strikes is None or sum(self.strikes.values()) < strikes) and not self.strike()
            time.sleep(MISSED if missed else self.random.uniform(0.5, 1.5) * every)
        if self.back_at:
            self.serve()
        self.driver.wait(DEADLINE)
        wait_until(self._stored, "a store that is back takes what it missed")
        self.server.close()

    def _stored(self) -> bool:
        """Bring the store up to the home folder; one that just came back, on a busy machine, may need to be asked again."""
        try:
            Store(self.home, self.uri).sync(next(iter(self.home.manifests().values())))
        except StoreUnavailable:
            return False
        return True


def _send(process: int, number: int) -> bool:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True


def soak(
    folder: Path,
    trials: int,
    seed: int,
    every: float,
    steps: int = 60,
    most: float = 7200.0,
    strikes: int | None = None,
) -> dict:
    """Run it; returns figures.

    Args:
        folder: for both sweeps.
        trials: at least.
        seed: of the strikes.
        every: seconds between strikes, on average.
        steps: of a trial.
        most: seconds after which it has failed.
        strikes: how many; None strikes to the end.

    Raises:
        AssertionError: something is not as if nothing had happened.
    """
    variants = {name: VARIANTS[name] for name in VARIANTS_HERE}
    base = TRIAL | {"training": TRIAL["training"] | {"steps": steps}}
    spec = write_spec(folder, variants, base=base, seeds=list(range(-(-trials // len(variants)))), name="soak")
    began = time.monotonic()
    whole, home = Home(folder / "whole"), Home(folder / "home")
    plan = train_here(whole, spec)
    ids, quiet = [t.id for t in plan.trials], time.monotonic() - began
    began = time.monotonic()
    with nothing_left():
        struck = Soak(spec, ids, home, folder / "served", seed)
        try:
            struck.run(every, most, strikes)
        finally:
            struck.driver.kill()
            struck.server.close()
        took = time.monotonic() - began
    (manifest,), (expected,) = home.manifests().values(), whole.manifests().values()
    assert manifest.ids == expected.ids
    different = [i for i in ids if record_of(home, i) != record_of(whole, i)]
    assert not different, f"these trials are not what they would have been: {different}"
    attempts = {i: home.trial(i).status().attempt for i in ids}
    assert attempts == struck.ended_in, "a trial that had ended was run again"
    Store(whole).sync(expected)
    stored, undisturbed = stored_trials(folder / "served"), stored_trials(whole.root)
    assert stored.keys() == undisturbed.keys() == set(ids)
    differing = [i for i in ids if stored[i] != undisturbed[i]]
    assert not differing, f"the store's runs of these trials are not what they would have been: {differing}"
    assert {len(runs) for runs in stored.values()} == {1}
    return {
        "trials": len(ids),
        "states": dict(Counter(home.trial(i).state() for i in ids)),
        "strikes": dict(struck.strikes),
        "struck": sum(struck.strikes.values()),
        "attempts": sum(attempts.values()),
        "drivers": struck.starts,
        "seconds": round(took),
        "seconds_undisturbed_in_one_process": round(quiet),
        "metric_rows": sum(len(run["metrics"]) for (run,) in stored.values()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="A sweep that is struck every few seconds.")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300, help="of each trial")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between strikes, on average")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        figures = soak(Path(folder), arguments.trials, arguments.seed, arguments.every, arguments.steps)
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
