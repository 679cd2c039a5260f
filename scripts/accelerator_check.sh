#!/usr/bin/env bash
# All that needs an accelerator, in at most 8 minutes on one GPU and without a network; a table of results comes last.
#
#   bash scripts/accelerator_check.sh [WHEELS [--only=STEP,...]]
#
# Runs under PYTHON (python3) as it is found: Python 3.12 with jax for the accelerator, flax, optax, orbax-checkpoint, transformers,
# torch, pillow, matplotlib and tqdm. WHEELS: a folder of wheels to be used beside it, unpacked into a temporary folder; jsonschema with
# its dependencies (attrs, referencing, rpds-py, jsonschema-specifications) must be there if the interpreter lacks it. grain and
# ml_collections are not needed. Exit status: 0 all passed, 1 something failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
if [ $# -gt 0 ]; then
  "$python" - "$1" "$packages" <<'UNPACK'
import pathlib, sys, zipfile
for wheel in sorted(pathlib.Path(sys.argv[1]).glob("*.whl")):
    zipfile.ZipFile(wheel).extractall(sys.argv[2])
UNPACK
fi
export PYTHONPATH="$PWD:$PWD/scripts:$packages${PYTHONPATH:+:$PYTHONPATH}"
if ! "$python" -c "import jsonschema" 2>/dev/null; then
  echo "accelerator_check: $python lacks jsonschema. Elsewhere: pip download --only-binary=:all: -d wheels jsonschema (for this Python); then pass the folder" >&2
  exit 1
fi
"$python" scripts/accelerator_check.py "${@:2}"
