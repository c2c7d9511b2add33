#!/bin/bash
#SBATCH --job-name=dsd-lab
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
#
# A sweep over several nodes: Ray runs on all nodes of the job, trials run beside each other on them, and a trial of many
# processes (resources.gpus: 16) spans them. What follows the script's name goes to `dsd-lab sweep`:
#
#     export SPEC=experiments/imagenet256.yaml DSD_LAB_HOME=/shared/runs
#     sbatch --nodes=4 --gpus-per-node=8 experiments/slurm_nodes.sh --profile full
#
# DSD_LAB_HOME, the spec and the images lie on storage that all nodes see. Three minutes before the limit Slurm signals
# this shell alone (B:), which passes the signal on to dsd-lab. Trials then save a checkpoint, dsd-lab ends with 143, and
# the job is queued again to go on from there. For one node, and for arrays, there is slurm.sh.

set -u
: "${SPEC:?name a spec: SPEC=experiments/imagenet256.yaml sbatch experiments/slurm_nodes.sh}"
: "${DSD_LAB_HOME:?name a home folder that all nodes see: DSD_LAB_HOME=/shared/runs}"
export DSD_LAB_HOME OMP_NUM_THREADS=1
export RAY_AUTH_MODE=token  # of this job alone: Slurm hands the environment on to its nodes
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$head:$((20000 + SLURM_JOB_ID % 10000))
cpus=${SLURM_CPUS_PER_TASK:-1}
each=(--num-cpus "$cpus" --block)
step=(srun --overlap --ntasks-per-node=1 --cpus-per-task="$cpus")  # srun does not take it from sbatch since Slurm 22.05

nodes=()
lab=
stopped=
end() { [ ${#nodes[@]} -eq 0 ] || { kill "${nodes[@]}" 2>/dev/null || true; wait "${nodes[@]}" 2>/dev/null || true; }; }
trap end EXIT
trap 'stopped=1; [ -z "$lab" ] || kill -USR1 "$lab" 2>/dev/null || true' USR1 TERM  # also while nodes are waited for

requeue_if_stopped() {  # exit code
    if [ "$1" -eq 143 ]; then
        echo "stopped in good order; queued again"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$1"
}

patience=${NODES_PATIENCE:-600}  # seconds until all nodes have joined
SECONDS=0
wait_until() {  # what to say if it takes too long, command
    until "${@:2}"; do
        [ -z "$stopped" ] || requeue_if_stopped 143
        for node in "${nodes[@]}"; do
            kill -0 "$node" 2>/dev/null || { echo "Ray has ended on a node of $SLURM_JOB_NODELIST"; exit 4; }
        done
        [ "$SECONDS" -lt "$patience" ] || { echo "$1 within $patience s (NODES_PATIENCE)"; exit 4; }
        sleep 1
    done
}
answers() { timeout 30 ray health-check --address "$address" >/dev/null 2>&1; }
all_here() { [ "$(timeout 30 ray status --address "$address" 2>/dev/null | grep -c '^ *1 node_')" -ge "$SLURM_JOB_NUM_NODES" ]; }

"${step[@]}" --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --node-ip-address="$head" --port="${address##*:}" --include-dashboard=false "${each[@]}" &
nodes+=($!)
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    others=$((SLURM_JOB_NUM_NODES - 1))
    wait_until "Ray does not answer on $head" answers
    "${step[@]}" --nodes="$others" --ntasks="$others" --exclude="$head" ray start --address="$address" "${each[@]}" &
    nodes+=($!)
fi
wait_until "not all of $SLURM_JOB_NUM_NODES nodes have joined" all_here
[ -z "$stopped" ] || requeue_if_stopped 143

dsd-lab sweep "$SPEC" "$@" --address "$address" &
lab=$!
[ -z "$stopped" ] || kill -USR1 "$lab" 2>/dev/null || true  # the signal came before there was a process to pass it to
while kill -0 "$lab" 2>/dev/null; do wait "$lab" || true; done  # `wait` returns as soon as a signal is trapped
code=0
wait "$lab" || code=$?  # bash keeps the code of a process that has ended
requeue_if_stopped "$code"
