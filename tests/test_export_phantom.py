"""scripts/export_phantom.py, as a user runs it."""

import pathlib
import subprocess
import sys

from mvg_jax.data import readers
from tests.processes import LIMIT

SCRIPT = pathlib.Path(__file__).parents[1] / "scripts" / "export_phantom.py"


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=LIMIT)


def test_it_says_how_to_read_back_what_it_wrote(tmp_path):
    done = run("--dataset=pmc_vqa", "--layout=v2", "--split=test_2", "--size=4", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "5 rows read, 5 kept" in done.stdout
    assert f"readers.read('pmc_vqa', '{tmp_path}', 'test_2')" in done.stdout
    assert len(readers.read("pmc_vqa", tmp_path, "test_2")) == 5


def test_what_there_is_not_is_one_line(tmp_path):
    done = run("--dataset=mmmu", "--split=train", f"--out={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: mmmu has the splits dev")
    assert len(done.stderr.splitlines()) == 1
