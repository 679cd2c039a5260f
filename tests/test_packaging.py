"""What a fresh machine relies on: dependencies, the lock, the scripts, rooms that import without heavy libraries."""

import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import mvg_jax

ROOT = pathlib.Path(mvg_jax.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
SCRIPTS = ["scripts/setup.sh", "scripts/quickstart.sh", "scripts/test.sh", ".ci/run"]
# Rooms of the loop itself: they must work on a bare accelerator image.
BARE = "config errors frames mesh metrics trajectory models tools env rollout rl data.phantom".split()


def test_no_dependency_has_a_ceiling():
    extras = [name for names in PROJECT["optional-dependencies"].values() for name in names]
    for dependency in [*PROJECT["dependencies"], *extras]:
        assert not re.search(r"<|==|~=|!=", dependency), dependency


def test_lock_names_every_dependency_once_a_python_and_hashes_everything():
    entries = re.findall(r"^([a-z0-9][a-z0-9.-]*)==(\S+)(.*(?:\n    --hash=.*)*)", LOCK, flags=re.MULTILINE)
    assert all("--hash=sha256:" in rest for _, _, rest in entries)
    names = {name for name, _, _ in entries}
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    assert {re.split(r"[>=\[]", name)[0].lower().replace("_", "-") for name in wanted} <= names
    jax = {rest.split("\\")[0].strip(" ;"): version for name, version, rest in entries if name == "jax"}
    assert jax.keys() == {"python_full_version < '3.12'", "python_full_version >= '3.12'"}
    assert jax["python_full_version < '3.12'"].startswith("0.10.")


def test_lock_holds_no_address_and_no_path():
    for line in LOCK.splitlines():
        assert "://" not in line, line
        assert " @ " not in line, line
        assert not re.search(r"(^|\s)(--index-url|--extra-index-url|--find-links|-f|-i) ", line), line
        assert not re.search(r"\s/\w", line), line


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse_stop_at_errors_and_can_be_called(script):
    path = ROOT / script
    assert "set -euo pipefail" in path.read_text()
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


def test_every_package_directory_is_a_package():
    directories = {path.parent for path in (ROOT / "mvg_jax").rglob("*.py")}
    assert [str(path) for path in directories if not (path / "__init__.py").is_file()] == []


def test_rooms_of_the_loop_import_without_grain_and_transformers():
    program = """
import importlib, pkgutil, sys
for heavy in ("grain", "transformers"):
    sys.modules[heavy] = None  # importing it raises
for room in sys.argv[1:]:
    module = importlib.import_module("mvg_jax." + room)
    for inner in pkgutil.walk_packages(getattr(module, "__path__", []), module.__name__ + "."):
        importlib.import_module(inner.name)
"""
    done = subprocess.run([sys.executable, "-c", program, *BARE], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
