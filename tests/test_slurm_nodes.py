"""`experiments/slurm_nodes.sh` with a scheduler, a Ray and a dsd-lab that are played by small scripts, which note how they were called."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
NODES = EXPERIMENTS / "slurm_nodes.sh"
PLAYED = {
    # Every option must be one that Slurm has; what follows them is run, as on a node.
    "srun": """while [[ $1 == --* ]]; do
    case $1 in
        --overlap|--nodes=*|--ntasks=*|--ntasks-per-node=*|--cpus-per-task=*|--nodelist=*|--exclude=*) shift;;
        *) echo "srun: unrecognized option $1" >&2; exit 1;;
    esac
done
exec "$@" """,
    "scontrol": '[ "$1" = show ] && printf "n1\\nn2\\n" || true',
    "ray": """case $1 in
    start) exec sleep 60;;
    health-check) exit "${HEALTH:-0}";;
    status) for ((i = 0; i < ${HERE:-2}; i++)); do echo " 1 node_$i"; done;;
esac""",
    "dsd-lab": """trap 'kill $!; exit 143' USR1
[ -n "${ENDS:-}" ] && exit "$ENDS"
sleep 60 & wait $!""",
}


@pytest.fixture
def submit(tmp_path):
    """Starts the batch script; `calls` gives what was called, with all options."""
    for name, what in PLAYED.items():
        path = tmp_path / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/calls\n{what}\n')
        path.chmod(0o755)
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SPEC": "spec.yaml", "DSD_LAB_HOME": str(tmp_path)}
    own |= {"SLURM_JOB_ID": "8", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    begun = []

    def start(*shell, **more):
        words = ["bash", *shell, str(NODES), "--profile", "full"]
        done = subprocess.Popen(
            words, env=os.environ | own | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        begun.append(done)
        return done

    yield start
    for batch in begun:
        batch.kill()
        batch.wait()


def calls(tmp_path):
    path = tmp_path / "calls"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(tmp_path, word):
    end = time.monotonic() + 60
    while not any(line.startswith(word) for line in calls(tmp_path)):
        assert time.monotonic() < end, calls(tmp_path)
        time.sleep(0.05)


def test_ray_gets_the_processors_of_a_task_and_slurm_hears_of_them(submit, tmp_path):
    batch = submit(SLURM_CPUS_PER_TASK="3", ENDS="0")
    assert batch.wait(60) == 0, batch.stdout.read()
    head, other = (line for line in calls(tmp_path) if line.startswith("srun"))
    assert "--nodelist=n1" in head and "--exclude=n1" in other
    assert all("--cpus-per-task=3" in line and "--num-cpus 3" in line for line in (head, other))
    assert "dsd-lab sweep spec.yaml --profile full --address n1:20008" in calls(tmp_path)


@pytest.mark.parametrize("shell", [[], ["-e"]])
def test_the_code_of_the_sweep_is_the_job_s(submit, tmp_path, shell):
    batch = submit(*shell, ENDS="3")
    assert batch.wait(60) == 3, batch.stdout.read()
    assert "scontrol requeue 8" not in calls(tmp_path)


@pytest.mark.parametrize("shell", [[], ["-e"]])
def test_a_signal_goes_to_the_sweep_and_the_job_is_queued_again(submit, tmp_path, shell):
    batch = submit(*shell)
    wait_for(tmp_path, "dsd-lab")
    time.sleep(0.5)  # until its trap is set
    batch.send_signal(signal.SIGUSR1)
    assert batch.wait(60) == 143, batch.stdout.read()
    assert calls(tmp_path)[-1] == "scontrol requeue 8"


@pytest.mark.parametrize("lacks", [{"HEALTH": "1"}, {"HERE": "1"}])
def test_a_signal_while_nodes_are_waited_for_queues_the_job_again(submit, tmp_path, lacks):
    batch = submit(**lacks)
    wait_for(tmp_path, "ray health-check")
    batch.send_signal(signal.SIGUSR1)
    assert batch.wait(60) == 143, batch.stdout.read()
    assert calls(tmp_path)[-1] == "scontrol requeue 8" and not any(
        line.startswith("dsd-lab") for line in calls(tmp_path)
    )


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ({"HEALTH": "1"}, "Ray does not answer on n1 within 2 s"),
        ({"HERE": "1"}, "not all of 2 nodes have joined within 2 s"),
    ],
)
def test_nodes_that_do_not_come_are_waited_for_some_seconds(submit, lacks, said):
    batch = submit(NODES_PATIENCE="2", **lacks)
    assert batch.wait(60) == 4 and said in batch.stdout.read()


def test_both_scripts_wait_for_dsd_lab_in_the_same_words():
    """`sbatch` copies one script to a node: it cannot read a neighbour."""
    first, second = (path.read_text() for path in (EXPERIMENTS / "slurm.sh", NODES))
    begin = first.index('while kill -0 "$lab"')
    loop = first[begin : first.index("\n\n", begin)]
    assert loop.endswith("has ended") and loop in second
