"""The planner, in a process of its own: it decides how many devices JAX sees."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

from mvg_jax import plan
from mvg_jax.config import Config, Mesh
from mvg_jax.models.config import SHAPES
from mvg_jax.models.decoder import suffix_bytes
from tests.processes import LIMIT

ROOT = pathlib.Path(__file__).parent.parent
SMALL = ("--config.rollout.prompts=8", "--config.rollout.group=2", "--config.rollout.encode_batches=(32,)",
         "--config.grpo.learner.view_batches=(48,)", "--config.grpo.learner.suffix_lengths=(128,)")  # fmt: skip


def run(*arguments, config="tiny.py"):
    command = [sys.executable, "-m", "mvg_jax.plan", f"--config={ROOT}/configs/{config}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, cwd=ROOT)


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """The tiny experiment on one device, and on a mesh of four."""
    folder, found = tmp_path_factory.mktemp("plan"), {}
    for count, mesh in ((1, ()), (4, ("--config.mesh.fsdp=2", "--config.mesh.tensor=2"))):
        done = run(*SMALL, *mesh, f"--count={count}", f"--json={folder / str(count)}", "--device=a100-40g")
        assert done.returncode == 0, done.stderr[-2000:]
        assert "fits:" in done.stdout
        found[count] = json.loads((folder / str(count)).read_text())
    return found


def test_what_is_held_follows_from_shapes(figures):
    one = figures[1]
    size = (ROOT / "mvg_jax/assets/tiny_internvl/model.safetensors").stat().st_size
    assert abs(one["weights"] - size) < 0.02 * size  # the file has a header of names
    assert one["sampling_weights"] == one["reference"] == 0
    config = dataclasses.replace(SHAPES["tiny"]().text, vocab_size=1)
    assert one["kv_cache"] > suffix_bytes(config, rows=16, length=128, itemsize=4)
    assert one["update_program"] > 0 < one["rollout_program"]
    assert one["update"] == one["weights"] + one["optimiser"] + one["update_program"]


def test_a_mesh_shares_what_it_holds(figures):
    one, four = figures[1], figures[4]
    assert one["weights"] / 4 < four["weights"] < one["weights"] / 2
    assert one["optimiser"] / 4 < four["optimiser"] < one["optimiser"] / 1.5
    assert four["kv_cache"] < one["kv_cache"] / 2
    assert 0 < four["sampling_weights"] < one["weights"]
    assert four["update_program"] < one["update_program"]


def test_what_does_not_fit_is_said_with_a_change_that_does(monkeypatch):
    """On a device between what the config needs and what it needs with recomputed layers."""
    config = Config()
    need = {False: 100, True: 60}
    monkeypatch.setattr(plan, "estimate", lambda c, model, which: memory(need[c.grpo.learner.remat]))
    assert plan.nearest(config, None, memory(100), usable=80, count=1) == "--config.grpo.learner.remat=True"
    assert plan.nearest(config, None, memory(100), usable=50, count=1) is None


def memory(update: int) -> plan.Memory:
    return plan.Memory(0, 0, 0, 0, 0, 0, update)


def test_changes_are_options_that_the_config_takes():
    config = dataclasses.replace(Config(), mesh=Mesh(fsdp=2))
    options = dict(plan.changes(config, 8))
    assert options["--config.grpo.learner.logit_positions=64"].grpo.learner.logit_positions == 64
    assert options["--config.model.compute_dtype=bfloat16"].model.compute_dtype == "bfloat16"
    assert options["--config.mesh.data=1 --config.mesh.fsdp=4 --config.mesh.tensor=2"].mesh == Mesh(1, 4, 2)
    for name, changed in options.items():
        for option in name.split():
            path, value = option.removeprefix("--config.").split("=")
            found = changed
            for part in path.split("."):
                found = getattr(found, part)
            assert str(found) == value


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--count=2",), ("asks for 1 devices", "--count is 2")),
        (("--count=3", "--config.mesh.tensor=3"), ("config.mesh.tensor is 3",)),
        (("--device=abacus",), ("abacus",)),
    ],
)
def test_bad_input_is_one_clear_line(arguments, words):
    done = run(*arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert any(all(word in line for word in words) for line in done.stderr.splitlines()), done.stderr
