#!/bin/bash
# Trains on nodes of a SLURM cluster, and goes on after preemptions and time limits.
#
#     sbatch recipes/slurm.sh                                # in the project's folder
#     sbatch recipes/slurm.sh --config.train.steps=800000    # with fields of the config
#
# Change what the job may take, the config (stages behind a colon), the workdir, which
# all nodes must see, and how Python is found.
#SBATCH --job-name=vdiff_jax
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=vdiff_jax.%j.log
# A signal two minutes before the time ends: as long as a save may take.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

config=${CONFIG:-configs/imagenet64.py}
workdir=${WORKDIR:-/shared/imagenet64}
python=${PYTHON:-python}

# A process that is alone on its node takes all its GPUs. JAX on SLURM would take one.
if [[ ${SLURM_NTASKS_PER_NODE:-1} == 1 && -n ${SLURM_GPUS_ON_NODE:-} ]]; then
    JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
    export JAX_LOCAL_DEVICE_IDS
fi

# The first process to end must not take the others, which still save, with it. Nor must
# this shell end before them, if the signal reaches it too.
trap : TERM
srun --kill-on-bad-exit=0 "$python" launch.py --config "$config" --workdir "$workdir" \
    --distributed "$@" &
while wait $!; status=$?; kill -0 $! 2>/dev/null; do :; done

# 143: ended by SIGTERM, everything saved. The same command goes on, in a new job.
if [[ $status == 143 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
