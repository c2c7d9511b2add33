"""`dsd-lab logs`: a trial's story from its files, whatever became of the trial."""

import json
from pathlib import Path

import pytest
from sweeping import VARIANTS, run, train_here, write_spec

from dsd_lab.cli.logs import event_line
from dsd_lab.cli.main import main
from dsd_lab.errors import BAD_INPUT, INTERRUPTED, OK
from dsd_lab.home.home import Home
from dsd_lab.home.trial_records import SpoolLine


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    home = Home(folder / "home")
    plan = train_here(home, write_spec(folder, {k: VARIANTS[k] for k in ("dsd", "wild", "broken")}))
    return home, {t.variant: t.id for t in plan.trials}


def logs(trained, variant, *more):
    home, ids = trained
    code, answer = run("logs", ids[variant][:7], *more, "--home", home.root)
    assert code == OK
    return answer


def test_a_finished_trial_shows_its_last_metrics_and_the_tail_of_its_events(trained):
    home, ids = trained
    answer = logs(trained, "dsd", "--lines", 3)
    lines = [json.loads(line) for line in home.trial(ids["dsd"]).spool.read_text().splitlines()]
    assert answer["events"] == lines[-3:]
    probes = [line for line in lines if line["kind"] == "probe"]
    wanted = {"step": probes[-1]["step"], "value": probes[-1]["metrics"]["latent/variance"]}
    assert answer["metrics"]["latent/variance"] == wanted
    assert (answer["state"], answer["step"], answer["steps"], answer["attempts"]) == ("done", 12, 12, 1)
    assert answer["error"] is None and answer["traceback"] is None and answer["sweeps"] == ["tiny"]


def test_a_failed_trial_names_its_error_and_the_file_of_its_traceback(trained):
    answer = logs(trained, "broken")
    assert answer["state"] == "failed" and "not an idx file" in answer["error"]
    assert "Traceback" in Path(answer["traceback"]).read_text()
    assert answer["events"] == [] and answer["metrics"] == {}


def test_a_diverged_trial_has_a_reason_and_no_traceback(trained):
    answer = logs(trained, "wild")
    assert answer["state"] == "diverged" and answer["traceback"] is None
    assert answer["events"][-1]["reason"] == answer["error"]


def test_plain_output_is_one_line_an_event_and_a_terminal_acts_on_none_of_it(trained, capsys):
    home, ids = trained
    folder = home.trial(ids["broken"])
    error = folder.status().error
    folder.write_status(error="bad \x1b[2J name\nsecond")
    try:
        assert main(["logs", ids["broken"], "--home", str(home.root)]) == OK
    finally:
        folder.write_status(error=error)
    shown = capsys.readouterr().out
    assert r"error: bad \x1b[2J name\nsecond" in shown and "error.txt" in shown
    assert main(["logs", ids["dsd"], "--lines", "4", "--home", str(home.root)]) == OK
    tail = capsys.readouterr().out.splitlines()[-4:]
    assert all("step      12" in line for line in tail) and "finished" in tail[-1] and "96 images seen" in tail[-1]


def test_a_damaged_spool_is_one_line_that_says_how_far_it_can_be_read(trained, tmp_path, capsys):
    home, ids = trained
    spool = home.trial(ids["dsd"]).spool
    whole = spool.read_bytes()
    lines = whole.splitlines(keepends=True)
    spool.write_bytes(b"".join([*lines[:2], b"{torn\n", *lines[3:]]))
    try:
        assert main(["logs", ids["dsd"], "--home", str(home.root)]) == BAD_INPUT
    finally:
        spool.write_bytes(whole)
    assert "spool.jsonl:3: is damaged" in capsys.readouterr().err


def test_a_trial_that_is_not_there_is_exit_code_2(trained, capsys):
    assert main(["logs", "ffff", "--home", str(trained[0].root)]) == BAD_INPUT
    assert "no such trial" in capsys.readouterr().err


def test_following_prints_what_is_recorded_meanwhile_and_ends_with_the_trial(trained, capsys, monkeypatch):
    """Half of a finished trial's records are there when it begins; the rest comes while it waits."""
    home, ids = trained
    folder = home.trial(ids["dsd"])
    lines = folder.spool.read_bytes().splitlines(keepends=True)
    whole = [event_line(SpoolLine.model_validate_json(line)) for line in lines]
    half, rest = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    status = folder.status()
    folder.spool.write_bytes(b"".join(half))
    folder.write_status(state="running")
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if rest:
            with folder.spool.open("ab") as file:
                file.write(rest.pop(0))
        else:
            folder.write_status(state="done", step=12)

    monkeypatch.setattr("dsd_lab.cli.logs.time.sleep", sleep)
    try:
        with folder.lock():
            monkeypatch.setattr(
                "dsd_lab.home.trial_folder.TrialFolder.is_locked", lambda self: self.status().state == "running"
            )
            assert main(["logs", "dsd", "--lines", "3", "--follow", "--home", str(home.root)]) == OK
    finally:
        folder.spool.write_bytes(b"".join(lines))
        folder.write_status(**status.model_dump(exclude_unset=True))
    printed = capsys.readouterr().out.splitlines()
    start = printed.index(whole[len(half) - 3])
    assert printed[start:] == [*whole[len(half) - 3 :], "done at step 12"]
    assert len(waits) == len(lines) - len(half) + 1 and max(waits) <= 0.5


def test_following_ends_with_ctrl_c_and_refuses_json(trained, capsys, monkeypatch):
    home, ids = trained

    def interrupted(seconds):
        raise KeyboardInterrupt

    folder = home.trial(ids["dsd"])
    monkeypatch.setattr("dsd_lab.cli.logs.time.sleep", interrupted)
    monkeypatch.setattr("dsd_lab.home.trial_folder.TrialFolder.is_locked", lambda self: True)
    assert main(["logs", folder.id, "--follow", "--home", str(home.root)]) == INTERRUPTED
    assert not capsys.readouterr().err
    assert main(["logs", folder.id, "--follow", "--json", "--home", str(home.root)]) == BAD_INPUT
    assert capsys.readouterr().err == "dsd-lab: --follow: cannot be combined with --json\n"
