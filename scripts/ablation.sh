#!/usr/bin/env bash
# The paper's experiment in miniature, on phantoms: a model that looks once and answers (a) without tools, (b) given their list, (c) after SFT
# on collected trajectories, (d) after GRPO; the last two for three seeds. Usage: scripts/ablation.sh [FOLDER] (default: workdir/ablation).
# About an hour on two cores. What is done stays done: the same command goes on where it was stopped.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:-$root/workdir/ablation}
case $out in /*) ;; *) out=$PWD/$out ;; esac
bash "$root/scripts/setup.sh"
cd "$root"
python=.venv/bin/python
mkdir -p "$out"

train() { # NAME CONFIG [override ...]: a run in its own folder, unless it is done
  local folder=$out/$1 config=$2 resume=()
  shift 2
  if [ -f "$folder/summary.json" ]; then return; fi
  if [ -f "$folder/config.json" ]; then resume=(--resume); fi
  echo "== ${folder##*/}"
  $python -m mvg_jax.train --config="$config" --workdir="$folder" "${resume[@]}" "$@"
}

judge() { # NAME CHECKPOINT TOOLS: held-out accuracy on the test split, unless it is there
  if [ -f "$out/$1/evaluation.json" ]; then return; fi
  echo "== evaluate $1"
  $python -m mvg_jax.evaluate --config=configs/tiny_ablation.py --checkpoint="$2" --tools="$3" --out="$out/$1" \
    --config.eval.split=test --config.eval.tasks=800
}

train base configs/tiny_base.py
$python -m mvg_jax.collect --config=configs/tiny_ablation.py --expert --out="$out/trajectories" --config.model.checkpoint="$out/base"
judge judged_base "$out/base" off,on
sft='' grpo=''
for seed in 0 1 2; do
  train "sft$seed" configs/tiny_ablation.py:sft --config.seed=$seed --config.model.checkpoint="$out/base" --config.sft.trajectories="$out/trajectories"
  judge "judged_sft$seed" "$out/sft$seed" on
  train "grpo$seed" configs/tiny_ablation.py:grpo --config.seed=$seed --config.model.checkpoint="$out/sft$seed"
  judge "judged_grpo$seed" "$out/grpo$seed" on
  sft+=,$out/judged_sft$seed
  grpo+=,$out/judged_grpo$seed
done
$python scripts/compare_runs.py --out="$out/ablation.png" --title="PhantomVQA, tools learnt in stages" \
  "a base=$out/judged_base:off" "b base, tools listed=$out/judged_base:on" "c SFT=${sft#,}" "d GRPO=${grpo#,}"
