#!/usr/bin/env bash
# Makes .venv with the packages of requirements.lock and this checkout. Needs Python >= 3.11 with pip; a second call is instant.
# PYTHON=/path/to/python picks the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

if [ ! -x .venv/bin/python ]; then
  python=""
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
    if is_new_enough "$candidate"; then python=$candidate; break; fi
  done
  if [ -z "$python" ]; then
    echo "setup: no Python >= 3.11 found (tried ${PYTHON:-python3, python3.14 ... python3.11, python}); set PYTHON=/path/to/python" >&2
    exit 1
  fi
  echo "setup: making .venv with $("$python" --version)"
  if ! "$python" -m venv .venv; then
    rm -rf .venv
    echo "setup: '$python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
  fi
elif ! is_new_enough .venv/bin/python; then
  echo "setup: .venv does not hold a working Python >= 3.11; remove it and call again" >&2
  exit 1
fi

stamp=.venv/.mvg_jax-stamp
wanted=$(cat requirements.lock pyproject.toml | .venv/bin/python -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi
rm -f "$stamp"

# A venv whose making was cut short has a python but no pip.
.venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip --upgrade >/dev/null
pip() { .venv/bin/python -m pip --disable-pip-version-check --no-input "$@"; }

# Compiled now, once: where PYTHONDONTWRITEBYTECODE is set, every later process would compile 10,000 files again. pip compiles anyway.
# The system's certificates, where there are any: behind an inspecting proxy uv's own are not enough.
if .venv/bin/python -c 'import ssl, sys; sys.exit(not ssl.create_default_context().cert_store_stats()["x509_ca"])'; then
  export UV_SYSTEM_CERTS=1
fi
uv() { UV_COMPILE_BYTECODE=1 VIRTUAL_ENV="$PWD/.venv" .venv/bin/uv "$@"; }

echo "setup: installing requirements.lock into .venv (about a minute, 1 GB)"
if pip install -q uv && uv pip install -q --require-hashes -r requirements.lock && uv pip install -q --no-deps -e .; then
  :
else
  echo "setup: uv cannot be had or failed; installing with pip" >&2
  pip install -q --require-hashes -r requirements.lock
  pip install -q --no-deps -e .
fi
echo "$wanted" >"$stamp"
