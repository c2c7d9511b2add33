"""Workers of a real sweep, struck at exact moments of writing a checkpoint; `ambush/` is what strikes them."""

import os
import signal
import time
from pathlib import Path

import pytest
from leftovers import nothing_left
from sweeping import DEADLINE, outcome, spooled_steps, start, stored_steps, wait_until

from dsd_lab.errors import OK, TERMINATED
from dsd_lab.home.home import Home
from dsd_lab.runs.signals import _GRACE

AMBUSH = Path(__file__).parent / "ambush"
TO_END = 20.0
"""Seconds beyond the grace in which everything has ended, on a busy machine."""


class Orders:
    """What is to happen in processes that are started with `environment` added to their own.

    Args:
        folder: of the orders; it is made.
        moments: (trial, step, moment) each.
    """

    def __init__(self, folder: Path, *moments: tuple[str, int, str]) -> None:
        folder.mkdir()
        self._folder = folder
        for moment in moments:
            (folder / self._name(*moment)).touch()
        paths = [str(AMBUSH), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {"DSD_LAB_AMBUSH": str(folder), "PYTHONPATH": os.pathsep.join(paths)}

    def _name(self, trial: str, step: int, moment: str) -> str:
        return f"{trial}.{step}.{moment}"

    def carried_out(self, trial: str, step: int, moment: str) -> tuple[int, list[str]] | None:
        """The process that was struck, and what lay among its checkpoints then; None before."""
        done = self._folder / f"{self._name(trial, step, moment)}.done"
        lines = done.read_text().splitlines() if done.exists() else []
        return (int(lines[0]), lines[1:]) if lines else None


@pytest.mark.slow
def test_f1_workers_that_are_killed_before_during_and_after_a_checkpoint_lose_nothing(undisturbed, tmp_path):
    """Two trials: one dies before and while it writes, the other once what it wrote has its name."""
    home, (long, short) = Home(tmp_path / "home"), [t.id for t in undisturbed.plan.trials]
    moments = {
        (long, 40, "before"): ["step-000000020"],
        (long, 60, "during"): [".writing-000000060", "step-000000020", "step-000000040"],
        (short, 8, "after"): ["step-000000004", "step-000000008"],
    }
    orders = Orders(tmp_path / "orders", *moments)
    with nothing_left():
        sweep = start("sweep", undisturbed.spec, "--home", home.root, env=os.environ | orders.environment)
        output, _ = sweep.communicate(timeout=DEADLINE)
    assert sweep.returncode == OK, output
    struck = {moment: orders.carried_out(*moment) for moment in moments}
    assert {moment: found and found[1] for moment, found in struck.items()} == moments
    assert [home.trial(i).status().attempt for i in (long, short)] == [3, 2]
    assert {i: outcome(home, i) for i in (long, short)} == undisturbed.outcomes
    assert stored_steps(home) == spooled_steps(home, [long, short])


@pytest.mark.slow
def test_f16_a_trial_that_ignores_sigterm_and_makes_no_step_is_killed_after_the_grace(undisturbed, tmp_path):
    home, trial = Home(tmp_path / "home"), undisturbed.plan.trials[0].id
    moment = (trial, 20, "deaf")
    orders = Orders(tmp_path / "orders", moment)
    arguments = ("sweep", undisturbed.spec, "--home", home.root, "--no-tracking", "--only", "variant=dsd")
    with nothing_left():
        sweep = start(*arguments, env=os.environ | orders.environment)
        worker, _ = wait_until(lambda: orders.carried_out(*moment), "the trial has turned deaf", sweep)
        sweep.send_signal(signal.SIGTERM)
        began = time.monotonic()
        wait_until(lambda: list((home.root / "ray").glob("stop-*")), "the worker is asked to stop", sweep)
        os.kill(worker, signal.SIGTERM)
        output, _ = sweep.communicate(timeout=DEADLINE)
        took = time.monotonic() - began
    assert sweep.returncode == TERMINATED and "Traceback" not in output, output
    assert _GRACE <= took < _GRACE + TO_END
    assert home.trial(trial).state() == "interrupted" and not list((home.root / "ray").glob("stop-*"))
