"""The live table of a sweep: what it shows of a running trial, at every width, and the report's own verdict so far."""

import io
import json
import re

import numpy as np
import pytest
from rich.console import Console
from sweeping import VARIANTS, described, write_spec

from dsd_lab.cli import progress as progress_module
from dsd_lab.cli.console import LabConsole
from dsd_lab.cli.live_table import Row, Variant, clock, live_table, plain_row
from dsd_lab.cli.live_trials import LiveTrials, TrialSnapshot
from dsd_lab.cli.progress import SweepProgress
from dsd_lab.home.history import History, write_history
from dsd_lab.home.spool import SpoolTail
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.latent_state import MEASURES, PATCHES, LatentState
from dsd_lab.report.statistics.verdicts import judge, row_key
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.report import ReportSettings

SETTINGS = ReportSettings()
NAMES = (*MEASURES, *PATCHES)
HEALTHY = (1.0, 5.0, 12.0, 3.0, 16, 9.0, 13.0)
"""Variance, ranks, capacity, probe images, and the ranks of the images' patches."""


@pytest.fixture
def sweep(home, tmp_path):
    """A home and the trials of a control and a variant, neither of which has started."""
    spec = write_spec(tmp_path, {k: VARIANTS[k] for k in ("control", "naive")}, seeds=[0])
    return home, {t.variant: t for t in load_sweep(spec).trials}


def write(home, trial, entries, at=0, mode="w"):
    """Lines of a spool: ("probe", step, values of NAMES) or ("train", step, loss, seconds)."""
    folder = home.trial(trial.id)
    folder.root.mkdir(parents=True, exist_ok=True)
    with folder.spool.open(mode) as file:
        for n, (kind, step, *more) in enumerate(entries, at):
            entry = {"n": n, "time": 1.7e9 + 100 * at + n, "step": step, "kind": kind, "seconds": 1.0}
            if kind == "probe":
                entry |= {"metrics": dict(zip(NAMES, more[0], strict=False)), "spectra": {}}
            else:
                entry |= {"metrics": {"train/loss": more[0]}, "seconds": more[1]}
            file.write(json.dumps(entry) + "\n")


def test_a_running_trial_shows_speed_loss_and_latents_as_they_are_recorded(sweep):
    home, trials = sweep
    live, naive = LiveTrials(home, list(trials.values()), SETTINGS), trials["naive"]
    assert live.so_far(naive) == TrialSnapshot()
    write(home, naive, [("train", 10, 2.5, 2.0), ("train", 20, 1.5, 2.0)])
    assert live.so_far(naive) == TrialSnapshot(images_per_second=20 * 8 / 4.0, loss=1.5)
    write(home, naive, [("probe", 20, (4.0, *HEALTHY[1:]))], at=2, mode="a")
    found = live.so_far(naive)
    assert (found.state.std, found.state.rank_token, found.verdict, found.control) == (2.0, 5.0, "healthy", None)


def result(home, trial, folder, probes):
    write(home, trial, probes)
    path = folder / f"{trial.variant}.parquet"
    write_history(home.trial(trial.id).spool, path)
    return Result(
        trial.id, trial.variant, trial.point, trial.seed, trial.fields.network.size, "done", 12, 12, 1.0, None, {},
        History.read(path), description=described(trial.fields.model_dump()),
    )  # fmt: skip


@pytest.mark.parametrize("patches", [True, False])
@pytest.mark.parametrize("controlled", [True, False])
def test_the_verdict_so_far_is_the_reports_on_the_same_records(sweep, tmp_path, patches, controlled):
    """On trials that end in all four verdicts, after each of their probes."""
    home, trials = sweep
    random, seen = np.random.default_rng(0), set()
    kept = len(NAMES) if patches else len(MEASURES)

    def probes(length, scale):
        drawn = np.array(HEALTHY) * np.exp(random.normal(0, 0.2, (length, len(HEALTHY)))) * scale
        drawn[:, 4:] = HEALTHY[4:]
        return [("probe", 10 * i, row[:kept].tolist()) for i, row in enumerate(drawn)]

    for scale in (
        (1, 1, 1, 1),
        (60, 1, 1, 1),
        (400, 1, 1, 1),
        (0.005, 1, 1, 1),
        (1, 0.2, 1, 1),
        (1, 1, 0.2, 1),
        (1, 1, 1, 0.1),
    ):
        whole = {"control": probes(6, 1.0), "naive": probes(6, [*scale, 1, 1, 1])}
        for length in range(1, 7):
            chosen = [trials["control"], trials["naive"]] if controlled else [trials["naive"]]
            results = [result(home, t, tmp_path, whole[t.variant][:length]) for t in chosen]
            judged = judge(results, SETTINGS)
            live = LiveTrials(home, chosen, SETTINGS)
            for trial, one in zip(chosen, results, strict=True):
                found, wanted = live.so_far(trial), judged[row_key(one)]
                assert found.verdict == wanted.verdict
                if found.verdict is not None:
                    assert (found.control is not None) == wanted.by_control
                seen.add(found.verdict)
    unknown = not patches and not controlled
    assert seen == {"healthy", "shrunk", "scale-runaway", None if unknown else "rank-collapsed"}


def test_a_trial_is_judged_against_its_control_at_the_same_step(sweep):
    home, trials = sweep
    live = LiveTrials(home, list(trials.values()), SETTINGS)
    large = (100.0, *HEALTHY[1:])
    write(
        home,
        trials["control"],
        [("probe", 0, HEALTHY), ("probe", 50, large), ("probe", 60, large), ("probe", 70, large)],
    )
    write(home, trials["naive"], [("probe", 0, HEALTHY)])
    assert live.so_far(trials["naive"]).verdict == "healthy"
    assert live.so_far(trials["naive"]).control == "control s0"
    write(home, trials["naive"], [("probe", 70, HEALTHY)] * 3, at=1, mode="a")
    assert live.so_far(trials["naive"]).verdict == "shrunk"


def test_a_trial_that_is_resumed_forgets_what_was_cut_off(sweep):
    home, trials = sweep
    naive = trials["naive"]
    live = LiveTrials(home, list(trials.values()), SETTINGS)
    small = (1e-4, *HEALTHY[1:])
    write(home, naive, [("probe", 0, HEALTHY), ("train", 10, 2.0, 1.0), ("probe", 20, small), ("probe", 30, small)])
    assert live.so_far(naive).verdict == "shrunk"
    lines = home.trial(naive.id).spool.read_bytes().splitlines(keepends=True)
    home.trial(naive.id).spool.write_bytes(b"".join(lines[:2]))
    write(home, naive, [("probe", 20, HEALTHY), ("train", 30, 0.5, 1.0)], at=2, mode="a")
    found = live.so_far(naive)
    assert (found.verdict, found.loss, found.state.std) == ("healthy", 0.5, 1.0)


def test_the_tail_of_a_spool_is_read_once_without_a_torn_line_and_after_a_cut(sweep):
    home, trials = sweep
    naive = trials["naive"]
    tail = SpoolTail(home.trial(naive.id).spool)
    assert tail.read() == []
    write(home, naive, [("train", 10, 1.0, 1.0), ("train", 20, 1.0, 1.0)])
    assert [line.step for line in tail.read()] == [10, 20] and tail.read() == []
    with home.trial(naive.id).spool.open("a") as file:
        file.write('{"n": 2, "time"')
    assert tail.read() == []
    first = home.trial(naive.id).spool.read_bytes().splitlines(keepends=True)[0]
    home.trial(naive.id).spool.write_bytes(first)
    write(home, naive, [("train", step, 0.12345, 1.0) for step in (20, 30, 40, 50)], at=1, mode="a")
    assert [line.step for line in tail.read()] == [20, 30, 40, 50]  # longer than before: the cut shows in the numbers


# -- How it looks ---------------------------------------------------------------------------------------


def state(std=123.4567, token=127.9, image=1024.5, capacity=13.375):
    return LatentState(std, token, image, capacity, 128.0, 2048.0, True)


LONGEST = Row(
    "recipe_online_with_a_long_name lr=0.0016 width=1024 s11", 399_999, 400_000,
    TrialSnapshot(1_234_567.8, 0.000123456, state(), "rank-collapsed", None), 359_999,
)  # fmt: skip
ROWS = [
    LONGEST,
    Row("naive s0", 400, 800, TrialSnapshot(12_345.6, 0.1234, state(0.0319), "shrunk", "control s0"), 107.4),
    Row("dsd s0", 0, 800, TrialSnapshot(), None),
]
VARIANTS_SHOWN = [
    Variant("control", ["done", "done", "diverged"], "s2: the loss was not finite at step 12 " + "and so on " * 30),
    Variant("naive", ["running", "pending", "failed"], "s2: an error"),
    Variant(
        "a variant with a very long name, since its grid has many axes lr=0.001 width=1024", ["interrupted"] * 40, ""
    ),
]


def drawn(width, height=40, rows=ROWS, variants=VARIANTS_SHOWN):
    console = LabConsole(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(live_table("2 running, 3 done; 5 s spent, about 3 min left", rows, variants, width, height))
    return re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue()).splitlines()


@pytest.mark.parametrize("width", [80, 100, 139, 140, 200])
def test_it_fits_and_no_number_is_cut(width):
    lines = drawn(width)
    assert max(map(len, lines)) <= width
    head, longest, short = lines[1], lines[2], lines[3]
    assert "verdict so far" in head and head.rstrip().endswith("left")
    for shown in ("400k/400k", "1.23M", "0.000123", "rank-collapsed*", "99:59:59"):
        assert shown in longest, shown
    for shown in ("naive s0", "400/800", "12,346", "0.123", "0.0319", "shrunk", "1:47"):
        assert shown in short, shown
    assert lines[5].startswith("* by fixed bounds")
    assert "…" not in short and any(line.startswith("control") for line in lines)
    assert "◌ interrupted" in "".join(lines[-2:]) and "● done" in "".join(lines[-2:])


def test_a_wide_terminal_is_used():
    lines = drawn(200)
    assert len(lines[1].rstrip()) == 200 and "control s0" in lines[3] and "━" in lines[3]
    for column in ("images/s", "latent std", "effective rank", "of images", "bits/token", "against"):
        assert column in lines[1]
    assert LONGEST.name in lines[2]


def test_it_fits_the_height_and_counts_what_does_not():
    lines = drawn(100, height=12, rows=[ROWS[1]] * 30, variants=[Variant(f"v{i}", ["pending"], "") for i in range(50)])
    assert len(lines) <= 12
    assert any(re.fullmatch(r"and \d+ more running", line.rstrip()) for line in lines)
    assert any(re.fullmatch(r"and \d+ more variants", line.rstrip()) for line in lines)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0:00"), (42.4, "0:42"), (185, "3:05"), (7_800, "2:10:00"), (359_999, "99:59:59"), (360_000, "4d 04h")],
)
def test_a_time_left_takes_eight_columns_at_most(seconds, shown):
    assert clock(seconds) == shown and len(shown) <= 8


def test_without_a_terminal_a_running_trial_is_a_line(sweep, monkeypatch):
    assert plain_row(ROWS[1]) == (
        "naive s0: step 400 of 800, 12,346 images/s, loss 0.1234, latent std 0.0319, effective rank 128, "
        "shrunk so far compared with control s0, 1:47 left"
    )
    assert plain_row(ROWS[2]) == "dsd s0: step 0 of 800"
    home, trials = sweep
    monkeypatch.setattr(progress_module, "_PRINT_SECONDS", 0.0)
    told = io.StringIO()
    naive = trials["naive"]
    write(home, naive, [("train", 6, 1.5, 2.0), ("probe", 6, HEALTHY)])
    with home.trial(naive.id).lock():
        home.trial(naive.id).write_status(state="running", step=6, steps=12, seconds=3.0)
        with SweepProgress(home, list(trials.values()), Console(file=told, width=20), [], SETTINGS) as progress:
            progress._stop.wait(1.5)
    assert (
        "  naive s0: step 6 of 12, 24 images/s, loss 1.5, latent std 1, effective rank 5, healthy so far by fixed bounds, 0:03 left\n"
        in told.getvalue()
    )
