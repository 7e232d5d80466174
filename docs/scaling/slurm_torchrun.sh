#!/bin/bash
# SLURM starts torchrun once on each machine, and torchrun the processes: it starts all of them again, up to three times,
# when one has died. `sbatch docs/scaling/slurm_torchrun.sh`, in a checkout that all machines see, after `cargo xtask setup`
# and `cargo build -p support --example transfer_learning`.
#SBATCH --job-name=transfer-learning
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
# With GPUs: #SBATCH --gpus-per-node=8, and PROCESSES=8.
set -euo pipefail
PROCESSES=1

source .venv/bin/activate
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Jobs that share the first machine do not meet on one port.
port=$((20000 + SLURM_JOB_ID % 10000))

export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / PROCESSES))
# As `cargo xtask` sets them: glibc keeps large blocks.
export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_TOP_PAD_=67108864

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="$PROCESSES" --max-restarts=3 \
    --rdzv-backend=c10d --rdzv-endpoint="$first:$port" --rdzv-id="$SLURM_JOB_ID" \
    --no-python target/debug/examples/transfer_learning
