"""The soak: a sweep of many tiny trials that is struck every few seconds, and must end as if nothing had happened.

    python tests/soak.py --trials 100 --minutes 20 --seed 0        (make soak)

Strikes (`strikes.py`) come from a fixed seed: workers, the driver, the uploader, Ray's raylet and MLflow's server are
killed or suspended; files of trials, caches and records are cut short, emptied or removed; `gc`, `rm`, `report`,
`import`, the same sweep and another sweep of the same trials run in the same home. At the end the manifest, every
trial's weights, records and pictures, and the rows of the store have to be those of a sweep of the same spec that
nothing struck, and no trial that had ended, and whose files nobody touched since, may have been run again.
"""

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from comparing import record_of, stored_trials
from leftovers import nothing_left
from strikes import Strikes
from sweeping import DEADLINE, VARIANTS, free_port, mlflow_server, start, train_here, wait_until, write_spec

from dsd_lab.errors import BAD_INPUT, NO_RESOURCES, OK, TRIALS_FAILED
from dsd_lab.home.exporting import export_sweep
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
QUIET = 3
"""Times at most that the sweep is started once more when nothing strikes it."""
LEAST = 10
"""The long soak goes on until one strike in so many has hit something."""
MISSED = 0.1
"""Seconds to the next try where no trial was running that could be struck."""


class Soak(Strikes):
    """A sweep under fire.

    Args:
        spec: its file.
        second: file of a sweep that shares some of its trials.
        exported: folder of a third sweep's export.
        ids: of its trials.
        home: where it runs.
        served: folder of the MLflow server.
        seed: of the strikes.
    """

    def __init__(
        self, spec: Path, second: Path, exported: Path, ids: list[str], home: Home, served: Path, seed: int
    ) -> None:
        super().__init__(seed)
        self.spec, self.second, self.exported, self.ids, self.home, self.served = (
            spec, second, exported, ids, home, served,
        )  # fmt: skip
        self.port, self.server, self.back_at = free_port(), contextlib.ExitStack(), 0.0
        self.starts = 0
        self.store_was_away = False
        """Whether the store was away at any moment of the present driver's life, its start included."""
        self.serve()
        self.driver = self.drive()

    # -- What runs -----------------------------------------------------------------------------------

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self) -> None:
        self.server.enter_context(mlflow_server(self.served, self.port))
        self.back_at = 0.0

    def drive(self) -> subprocess.Popen[str]:
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

    # -- All of it -----------------------------------------------------------------------------------

    def run(self, every: float, most: float, strikes: int | None, striking: float, least: int) -> None:
        """Strike until every trial has ended, or so often or so long; then one more sweep, which nothing strikes.

        Args:
            every: seconds between strikes, on average.
            most: seconds after which it has failed.
            strikes: how many; None is as many as there is time for.
            striking: seconds for which it is struck.
            least: strikes before which it goes on longer: on a slow machine, a sweep takes most of that time to start.
        """
        began = time.monotonic()
        while not self.ended():
            now = time.monotonic()
            if now - began > most:
                states = Counter(self.home.trial(i).state() for i in self.ids)
                raise AssertionError(f"did not end in {most:g} s: {states}")
            if self.driver.poll() is not None:
                self._judge(self.driver.returncode)
                self.driver = self.drive()
            if self.back_at and now > self.back_at:
                self.serve()
            self.look_beside()
            count = sum(self.strikes.values())
            on = count < least or (now - began < striking and (strikes is None or count < strikes))
            missed = on and not self.strike()
            time.sleep(MISSED if missed else self.random.uniform(0.5, 1.5) * every)
        if self.back_at:
            self.serve()
        self.driver.wait(DEADLINE)
        self.look_beside(wait=True)
        self._judge(self.driver.returncode)
        for _ in range(QUIET):  # the last strikes may have left what a sweep refuses, or trials that have to end again
            self.driver = self.drive()
            self.driver.wait(DEADLINE)
            self._judge(self.driver.returncode)
            if self.driver.returncode == OK and self.ended():
                break
        assert self.driver.returncode == OK and self.ended(), self._said()
        wait_until(self._stored, "a store that is back takes what it missed")
        _judged(self.home, "--tracking-uri", self.uri)
        self.server.close()

    def _judge(self, code: int) -> None:
        """A sweep that ends has said why in a line, and that may be mended as the line says."""
        said = self._said()
        assert "Traceback" not in said, said[-5000:]
        history = self.home.sweep_folder("soak") / "revisions.json"
        if code == BAD_INPUT and f"{history}: is damaged" in said:
            history.unlink()
            return
        # While the store is away a sweep does not begin; it may be back before that driver's end is noticed. Without its
        # raylet a sweep has no workers. A command of the same spec may have come first.
        away = self.store_was_away or "Ray" in said
        ran_twice = code == BAD_INPUT and "is already running" in said
        if ran_twice:
            self.end_same_driver()
        assert code in (OK, TRIALS_FAILED) or ran_twice or (code == NO_RESOURCES and away), f"{code}: {said[-3000:]}"

    def _said(self) -> str:
        self.log.seek(0)
        return self.log.read().decode()

    def _stored(self) -> bool:
        """Bring the store up to the home folder; one that just came back, on a busy machine, may need to be asked again."""
        try:
            Store(self.home, self.uri).sync(self.home.manifests()["soak"])
        except StoreUnavailable:
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
    striking: float = math.inf,
    least: int = 0,
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
        striking: seconds for which it is struck.
        least: strikes before which it is struck for longer.

    Raises:
        AssertionError: something is not as if nothing had happened.
    """
    variants = {name: VARIANTS[name] for name in VARIANTS_HERE}
    base = TRIAL | {"training": TRIAL["training"] | {"steps": steps}}
    spec = write_spec(folder, variants, base=base, seeds=list(range(-(-trials // len(variants)))), name="soak")
    began = time.monotonic()
    whole, home = Home(folder / "whole"), Home(folder / "home")
    plan = train_here(whole, spec)
    sharing = write_spec(folder / "sharing", variants, base=base, seeds=[0], name="second")
    third = Home(folder / "third")
    train_here(third, write_spec(folder / "other", {"dsd": {}}, name="other"))
    export_sweep(third, third.manifests()["other"], folder / "exported", weights=True)
    ids, quiet = [t.id for t in plan.trials], time.monotonic() - began
    began = time.monotonic()
    with nothing_left():
        struck = Soak(spec, sharing, folder / "exported", ids, home, folder / "served", seed)
        try:
            struck.run(every, most, strikes, striking, least)
        finally:
            struck.driver.kill()
            struck.end_beside()
            struck.server.close()
        took = time.monotonic() - began
    manifest, expected = home.manifests()["soak"], whole.manifests()["soak"]
    assert manifest.ids == expected.ids
    different = [i for i in ids if record_of(home, i) != record_of(whole, i)]
    assert not different, f"these trials are not what they would have been: {different}"
    attempts = {i: home.trial(i).status().attempt for i in ids}
    assert attempts == struck.ended_in, "a trial that had ended was run again"
    Store(whole).sync(expected)
    _judged(whole)
    stored, undisturbed = stored_trials(folder / "served"), stored_trials(whole.root)
    stored = {i: runs for i, runs in stored.items() if i in ids}  # the third sweep's reports are nobody's concern
    assert stored.keys() == undisturbed.keys() == set(ids)
    differing = {i: _difference(stored[i], undisturbed[i]) for i in ids if stored[i] != undisturbed[i]}
    assert not differing, f"the store's runs of these trials are not what they would have been: {differing}"
    assert {len(runs) for runs in stored.values()} == {1}
    return {
        "trials": len(ids),
        "states": dict(Counter(home.trial(i).state() for i in ids)),
        "strikes": dict(struck.strikes),
        "files": dict(struck.files),
        "struck": sum(struck.strikes.values()),
        "attempts": sum(attempts.values()),
        "drivers": struck.starts,
        "seconds": round(took),
        "seconds_undisturbed_in_one_process": round(quiet),
        "metric_rows": sum(len(run["metrics"]) for (run,) in stored.values()),
    }


def _judged(home: Home, *store: str) -> None:
    """Write the report, which gives every run its verdict: reports that ran beside the sweep have given some theirs."""
    report = start("report", "soak", "--home", home.root, *store)
    said, _ = report.communicate(timeout=DEADLINE)
    assert report.returncode == OK, said[-3000:]


def _difference(found: list[dict], expected: list[dict]) -> str:
    """What of a trial's first run in a store is not as expected, shortly."""
    parts = [(key, found[0][key], expected[0][key]) for key in expected[0] if found[0][key] != expected[0][key]]
    return "; ".join(f"{key}: {_apart(a, b)} for {_apart(b, a)}" for key, a, b in parts) or f"{len(found)} runs"


def _apart(one: object, other: object) -> str:
    """What one has and the other has not."""
    if isinstance(one, dict) and isinstance(other, dict):
        one = {key: value for key, value in one.items() if other.get(key) != value}
    if isinstance(one, list) and isinstance(other, list):
        one = list((Counter(map(str, one)) - Counter(map(str, other))).elements())
    return str(one)[:300]


def main() -> int:
    parser = argparse.ArgumentParser(description="A sweep that is struck every few seconds.")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300, help="of each trial")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between strikes, on average")
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="for which it is struck; what is left then runs in peace"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        figures = soak(
            Path(folder),
            arguments.trials,
            arguments.seed,
            arguments.every,
            arguments.steps,
            striking=60 * arguments.minutes,
            least=round(60 * arguments.minutes / arguments.every / LEAST),
        )
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
