#!/usr/bin/env bash
# Figures from a GPU machine, in one command. Never run on a GPU; see docs/gpu.md.
#
#   bench/gpu.sh [--dry-run] [FOLDER]
#
# For random models of 0.6 B and 7 B parameters: all front ends, ours and vLLM's, at 1, 64, 256 and 1024 concurrent
# requests. Then pushes of 0.5 B and 7 B over NCCL, CUDA IPC and gloo. Results go to FOLDER, by default
# bench/results/gpu. --dry-run prints the commands. PYTHON names the interpreter, by default .venv/bin/python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dry_run=0
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=1
  shift
fi
if (( $# > 1 )) || [[ "${1:-}" == -* ]]; then
  sed -n '4s/^# *//p' "$0" >&2
  exit 2
fi
out="${1:-bench/results/gpu}"
python="${PYTHON:-.venv/bin/python}"

run() {
  printf '+' && printf ' %q' "$@" && printf '\n'
  if (( ! dry_run )); then
    "$@"
  fi
}

# Later parts run when an earlier one fails, so that a failure costs its own figures only.
failed=0
attempt() {
  run "$@" || { failed=1; echo "FAILED: $*" >&2; }
}

if (( ! dry_run )); then
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
fi
run mkdir -p "$out"

# Three engines share the GPU: `vllm serve` twice and ours. Each gets a quarter, so 7 B needs 80 GB.
engine_args=()
for argument in --load-format=dummy --max-model-len=2048 --max-num-seqs=1024 --gpu-memory-utilization=0.25; do
  engine_args+=("--engine-arg=$argument")
done
concurrencies=(--concurrency 1 --concurrency 64 --concurrency 256 --concurrency 1024)
for size in 0.6b 7b; do
  run "$python" -m bench.random_checkpoint "$size" "$out/model-$size"
  attempt "$python" -m bench.front_ends --model "$out/model-$size" "${engine_args[@]}" "${concurrencies[@]}" \
    --only stream/ --repeats 2 --minutes 15 --out "$out/front_ends-$size.json"
done

# NCCL refuses two ranks on one GPU without it.
export NCCL_MULTI_RANK_GPU_ENABLE=1
attempt "$python" -m bench.gpu_push --sizes 0.5b 7b --backends nccl ipc gloo --repeats 5 --output "$out/push.md"
exit "$failed"
