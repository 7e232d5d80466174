#!/bin/bash
# SLURM starts one process per task, without torchrun: where one dies, the job ends, and SLURM may queue it again.
# `sbatch docs/scaling/slurm_tasks.sh`, in a checkout that all machines see, after `cargo xtask setup` and
# `cargo build -p support --example transfer_learning`.
#SBATCH --job-name=transfer-learning
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --requeue
# With GPUs: #SBATCH --gpus-per-node=8 and --ntasks-per-node=8. Not --gpus-per-task: a process takes the GPU of the number
# LOCAL_RANK, and would see only one.
set -euo pipefail

export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Jobs that share the first machine do not meet on one port.
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export WORLD_SIZE=$SLURM_NTASKS
# By it a process takes its share of the machine's memory and cores: --cpu-bind=none shows it all that the job has there.
export LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
# More than 0: the program goes on after its last whole epoch.
export TORCHELASTIC_RESTART_COUNT=${SLURM_RESTART_COUNT:-0}

export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
# As `cargo xtask` sets them: glibc keeps large blocks.
export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_TOP_PAD_=67108864

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --cpu-bind=none --kill-on-bad-exit=1 \
    bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec target/debug/examples/transfer_learning'
