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
each=(--num-cpus "${SLURM_CPUS_PER_TASK:-1}" --block)

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --node-ip-address="$head" --port="${address##*:}" --include-dashboard=false "${each[@]}" &
nodes=($!)
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    others=$((SLURM_JOB_NUM_NODES - 1))
    until ray health-check --address "$address" >/dev/null 2>&1; do
        kill -0 "${nodes[0]}" 2>/dev/null || { echo "Ray does not start on $head"; exit 4; }
        sleep 1
    done
    srun --overlap --nodes="$others" --ntasks="$others" --ntasks-per-node=1 --exclude="$head" \
        ray start --address="$address" "${each[@]}" &
    nodes+=($!)
fi
trap 'kill "${nodes[@]}" 2>/dev/null; wait "${nodes[@]}" 2>/dev/null' EXIT
for ((waited = 0; ; waited++)); do
    here=$(ray status --address "$address" 2>/dev/null | grep -c '^ *1 node_')
    [ "$here" -ge "$SLURM_JOB_NUM_NODES" ] && break
    [ "$waited" -lt "${NODES_PATIENCE:-120}" ] || { echo "$here of $SLURM_JOB_NUM_NODES nodes have joined"; exit 4; }
    sleep 1
done

dsd-lab sweep "$SPEC" "$@" --address "$address" &
lab=$!
trap 'kill -USR1 "$lab" 2>/dev/null' USR1 TERM
while true; do  # `wait` returns as soon as a signal is trapped
    wait "$lab"
    code=$?
    kill -0 "$lab" 2>/dev/null || break
done

if [ "$code" -eq 143 ]; then
    echo "stopped in good order; queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
