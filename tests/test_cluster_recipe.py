"""The recipe of docs/cluster.md, word for word, on one machine: open, and with a token."""

import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from sweeping import DEADLINE, write_spec

from dsd_lab.home.home import Home
from dsd_lab.specs.loading import load_sweep

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "cluster.md").read_text()
NODES = Path(__file__).resolve().parents[1] / "experiments" / "slurm_nodes.sh"
PROGRAMS = {"ray": "from ray.scripts.scripts import main", "dsd-lab": "from dsd_lab.cli.main import main"}


def recipe(*words: str) -> list[str]:
    """The page's commands that begin with these words, in their order."""
    return [command for command in re.findall(r"^\$ (.+)$", PAGE, re.MULTILINE) if command.startswith(words)]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """What runs a command as the user of a machine with a home of its own; Ray's processes end afterwards."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 6379)) == 0:
            pytest.skip("port 6379 of this machine is in use")
    (tmp_path / "bin").mkdir()
    for name, program in PROGRAMS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!{sys.executable} -P\nimport sys\n{program}\nsys.exit(main())\n")
        path.chmod(0o755)
    (tmp_path / "user").mkdir()
    with tempfile.TemporaryDirectory(prefix="dsd-", dir="/tmp") as short:  # Ray's sockets lie there
        own = {"HOME": str(tmp_path / "user"), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "RAY_TMPDIR": short}
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            monkeypatch.delenv(name)

        def told(command: str) -> str:
            done = subprocess.run(
                shlex.split(command),
                env=os.environ | own,
                capture_output=True,
                text=True,
                cwd=tmp_path,
                timeout=DEADLINE,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            return done.stdout + done.stderr

        yield told
        mine = [p for p in psutil.process_iter() if short in " ".join(cmdline(p))]
        for process in mine:
            process.terminate()
        for process in psutil.wait_procs(mine, timeout=20)[1]:
            process.kill()


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.slow
@pytest.mark.parametrize("with_token", [False, True], ids=["open", "token"])
def test_the_recipe_for_a_cluster_works_as_it_is_written(cluster, tmp_path, monkeypatch, with_token):
    spec, home = write_spec(tmp_path, seeds=[0, 1]), Home(tmp_path / "shared runs")
    if with_token:
        (make,), (export,) = recipe("ray get-auth-token"), recipe("export RAY_AUTH_MODE")
        monkeypatch.setenv(*export.removeprefix("export ").split("="))
        cluster(make)
    head, node = recipe("ray start")
    (sweep,) = recipe("dsd-lab sweep")
    named = {"SPEC": shlex.quote(str(spec)), "HEAD": "127.0.0.1", "/shared/runs": shlex.quote(str(home.root))}
    printed = cluster(f"{head} --num-cpus=1")
    assert ("is disabled" in printed) != with_token
    for command in (f"{node} --num-cpus=1", sweep):
        for word, meant in named.items():
            command = command.replace(word, meant)
        printed = cluster(command)
    assert [home.trial(t.id).state() for t in load_sweep(spec).trials] == ["done"] * 2, printed
    token = tmp_path / "user" / ".ray" / "auth_token"
    assert token.exists() == with_token


@pytest.mark.slow
def test_the_slurm_script_for_several_nodes_sweeps_on_all_of_them_and_ends_them(cluster, tmp_path, monkeypatch):
    """Slurm's part is played by the test: `srun` runs here what it would run on a node, so that two nodes are one machine."""
    spec, home = write_spec(tmp_path, seeds=[0, 1]), Home(tmp_path / "home")
    for name, what in (
        ("srun", f'echo "$@" >> {tmp_path}/srun; while [[ $1 == --* ]]; do shift; done; exec "$@"'),
        ("scontrol", "echo 127.0.0.1"),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{what}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    for name, value in {**job, "SPEC": str(spec), "DSD_LAB_HOME": str(home.root)}.items():
        monkeypatch.setenv(name, value)
    printed = cluster(f"bash {NODES} --no-tracking --max-concurrent 2")
    assert [home.trial(t.id).state() for t in load_sweep(spec).trials] == ["done"] * 2, printed
    steps = (tmp_path / "srun").read_text().splitlines()
    assert len(steps) == 2 and all("--overlap --ntasks-per-node=1 --cpus-per-task=1 " in step for step in steps)
    assert not (tmp_path / "user" / ".ray" / "auth_token").exists()  # the token was the job's own
    assert not [p for p in psutil.process_iter() if f":{20000 + os.getpid() % 10000}" in " ".join(cmdline(p))]
