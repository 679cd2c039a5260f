"""scripts/export_phantom.py, as a user runs it."""

import pathlib
import subprocess
import sys

import pytest

from mvg_jax.data import readers

SCRIPT = pathlib.Path(__file__).parents[1] / "scripts" / "export_phantom.py"


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120)


def test_it_says_how_to_read_back_what_it_wrote(tmp_path):
    done = run("--dataset=pmc_vqa", "--layout=v2", "--split=test_2", "--size=4", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert f"readers.read('pmc_vqa', '{tmp_path}', 'test_2')" in done.stdout
    assert len(readers.read("pmc_vqa", tmp_path, "test_2")) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=mmmu", "--split=train"], "error: mmmu has the splits dev"),
        (["--dataset=imagenet"], "imagenet"),
        (["--dataset=mmmu", "--split=dev", "--layout=v1"], "error: mmmu has the layouts hub, lmms"),
    ],
)
def test_what_there_is_not_is_one_line(tmp_path, arguments, message):
    done = run(*arguments, f"--out={tmp_path}")
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
