#!/usr/bin/env bash
# Installs everything into .venv and trains the tiny model on this machine's CPU. Usage: scripts/quickstart.sh [WORKDIR]
# Called again, it goes on from the last checkpoint in WORKDIR (default: workdir/tiny in the checkout).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
workdir=${1:-$root/workdir/tiny}
case $workdir in /*) ;; *) workdir=$PWD/$workdir ;; esac

bash "$root/scripts/setup.sh"
cd "$root"
resume=()
if [ -e "$workdir/config.json" ]; then resume=(--resume); fi
.venv/bin/python -m mvg_jax.train --config=configs/tiny.py --workdir="$workdir" ${resume[@]+"${resume[@]}"}

echo
echo "Everything lies in $workdir:"
for entry in "$workdir"/*; do echo "  $(basename "$entry")"; done
