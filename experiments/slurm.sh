#!/bin/bash
#SBATCH --job-name=dsd-lab
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#
# A sweep that outlives time limits and pre-emption. What follows the script's name goes to dsd-lab:
#
#     export SPEC=experiments/collapse_ablation.yaml DSD_LAB_HOME=/shared/runs
#     sbatch experiments/slurm.sh --profile full                       one job, a sweep on its node
#     sbatch --array=0-41%8 experiments/slurm.sh --profile full        a task a trial, in the order of `dsd-lab plan`
#
# Two minutes before the limit Slurm signals this shell alone (B:), which passes the signal on to dsd-lab alone.
# Trials then save a checkpoint, dsd-lab ends with 143, and the job is queued again to go on from there. After an
# array, `dsd-lab sweep` with the same arguments finds every trial done and stores them. A grid needs the one job.

set -u
: "${SPEC:?name a spec: SPEC=experiments/collapse_ablation.yaml sbatch experiments/slurm.sh}"
export DSD_LAB_HOME="${DSD_LAB_HOME:-runs}"
export OMP_NUM_THREADS=1

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    read -r variant seed < <(dsd-lab plan "$SPEC" "$@" --json | python3 -c '
import json, sys
trial = json.load(sys.stdin)["trials"][int(sys.argv[1])]
print(trial["variant"], trial["seed"])' "$SLURM_ARRAY_TASK_ID")
    dsd-lab train "$SPEC" "$@" --variant "$variant" --seed "$seed" --no-tracking &
else
    dsd-lab sweep "$SPEC" "$@" &
fi
lab=$!
trap 'kill -USR1 "$lab" 2>/dev/null' USR1 TERM

while kill -0 "$lab" 2>/dev/null; do wait "$lab" || true; done  # `wait` returns as soon as a signal is trapped
code=0
wait "$lab" || code=$?  # bash keeps the code of a process that has ended

if [ "$code" -eq 143 ]; then
    echo "stopped in good order; queued again"
    scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
fi
exit "$code"
