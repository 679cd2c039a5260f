#!/usr/bin/env bash
# The paper's experiment in miniature, on phantoms: a model that looks once and answers (a) without tools, (b) given their list, (c) after SFT
# on collected trajectories, (d) after GRPO; the last two for three seeds. Usage: scripts/ablation.sh [FOLDER] (default: workdir/ablation).
# About an hour and a half on two cores; called again, it goes on where it was stopped.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:-$root/workdir/ablation}
case $out in /*) ;; *) out=$PWD/$out ;; esac
bash "$root/scripts/setup.sh"
cd "$root"
python=.venv/bin/python
source scripts/stages.sh
mkdir -p "$out"

config=configs/tiny_ablation.py
held_out=(--config.eval.split=test --config.eval.tasks=800)
train base configs/tiny_base.py
$python -m mvg_jax.collect --config=$config --expert --out="$out/trajectories" --config.model.checkpoint="$out/base"
judge judged_base $config "$out/base" off,on "${held_out[@]}"
sft='' grpo=''
for seed in 0 1 2; do
  train "sft$seed" $config:sft --config.seed=$seed --config.model.checkpoint="$out/base" --config.sft.trajectories="$out/trajectories"
  judge "judged_sft$seed" $config "$out/sft$seed" on "${held_out[@]}"
  train "grpo$seed" $config:grpo --config.seed=$seed --config.model.checkpoint="$out/sft$seed"
  judge "judged_grpo$seed" $config "$out/grpo$seed" on "${held_out[@]}"
  sft+=,$out/judged_sft$seed
  grpo+=,$out/judged_grpo$seed
done
$python scripts/compare_runs.py --out="$out/ablation.png" --title="PhantomVQA, tools learnt in stages" \
  "a base=$out/judged_base:off" "b base, tools listed=$out/judged_base:on" "c SFT=${sft#,}" "d GRPO=${grpo#,}"
