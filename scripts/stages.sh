# Sourced by scripts that run several programs one after the other: what is done stays done, so the same command goes on where it was
# stopped. Needs: python, out.

train() { # NAME CONFIG [override ...]: a run in its own folder
  local folder=$out/$1 config=$2 resume=()
  shift 2
  if [ -f "$folder/summary.json" ]; then return; fi
  if [ -f "$folder/config.json" ]; then resume=(--resume); fi
  echo "== train ${folder##*/}"
  $python -m mvg_jax.train --config="$config" --workdir="$folder" ${resume[@]+"${resume[@]}"} "$@"
}

judge() { # NAME CONFIG CHECKPOINT TOOLS [override ...]: held-out accuracy
  local folder=$out/$1 config=$2 checkpoint=$3 tools=$4
  shift 4
  if [ -f "$folder/evaluation.json" ]; then return; fi
  echo "== evaluate ${folder##*/}"
  $python -m mvg_jax.evaluate --config="$config" --checkpoint="$checkpoint" --tools="$tools" --out="$folder" "$@"
}
