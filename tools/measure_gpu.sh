#!/usr/bin/env bash
# Everything that is to be measured on one GPU, in 15 minutes:
#     tools/measure_gpu.sh OUT [TEXT [TOKENIZER]]
# OUT gets rows.jsonl (each row when it is measured), profiler traces, what the parts printed, and
# of 60 real training steps metrics and summary. TEXT is JSON lines with a key `text` (the packaged
# sample corpus without it), TOKENIZER as in a training config. Needs what launch/train.py needs:
# pip install 'ipt-jax[cuda,tokenizers]', or its wheels on PYTHONPATH with their metadata.
# IPT_DRY=1 goes through the same on a CPU with tiny shapes; its figures mean nothing.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
[ $# -ge 1 ] || { sed -n 2,8p "$0"; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
text=$(realpath "${2:-$root/data_gen/sample_corpus/documents.jsonl}")
tokenizer=${3:-mistral-7b-v0.1}
cd "$root" || exit 1
rm -f "$out/rows.jsonl" "$out/bench.txt"
python=${PYTHON:-python}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dry=() model=(--config configs/train/ipt_500m_instruct.yaml --rows_per_device 32 --train_tokens 31457280)
if [ -n "${IPT_DRY:-}" ]; then
  dry=(--dry_run)
  model=(--config configs/train/quickstart.yaml --train_tokens 8192 --batch_tokens 4096)
fi

cp "$text" "$work/text.jsonl" || exit 1
cat >"$work/mixture.yaml" <<YAML
root: $work
by: tokens
rates: natural
tasks:
  text: {source: text.jsonl}
YAML

bench() { # seconds, parts…
  local seconds=$1
  shift
  $python tools/bench_gpu.py --rows "$out/rows.jsonl" --trace "$out/trace" --seconds "$seconds" "${dry[@]}" --parts "$@" \
    2>&1 | tee -a "$out/bench.txt"
}

if [ -n "${IPT_DRY:-}" ]; then
  bench 600 probe:pallas steps:ipt_500m
else
  nvidia-smi | tee "$out/nvidia-smi.txt"
  # Right or wrong first, each kernel in a watched process; then the whole step; attention alone,
  # which decides least, comes last.
  bench 255 probe:cudnn_packed probe:pallas_hopper probe:pallas steps:ipt_500m
fi

# What it has at the end of its time it says in its metrics.
timeout --signal=INT --kill-after=15 310 $python launch/train.py "${model[@]}" --run_folder "$work/run" \
  --data.root "$work" --data.mixture "$work/mixture.yaml" --data.tokenizer "$tokenizer" --metrics.every_steps 5 \
  --compilation_cache "$work/cache" 2>&1 | tee "$out/train.txt"
trained=$?
cp "$work"/run/{metrics.jsonl,summary.json,config.yaml} "$out/" 2>/dev/null

[ -n "${IPT_DRY:-}" ] || bench 240 steps:ipt_1_3b steps:llama3_8b case:packed:4096:128 case:packed:2048:64
exit "$trained"
