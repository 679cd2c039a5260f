#!/usr/bin/env bash
# Installs everything into .venv and runs the tests on CPU, without network. Usage: scripts/test.sh [pytest arguments]
# Arguments come last, so they win: scripts/test.sh -n0 -k checkpoint
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
# Two workers at least (compiling waits on memory, too), eight at most (each holds a copy of JAX). tests/conftest.py sets up JAX.
workers=$(.venv/bin/python -c 'import os; print(min(8, max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())))')
export HF_HUB_OFFLINE=1 JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
exec .venv/bin/python -m pytest -n "$workers" --dist worksteal "$@"
