"""What the table of kernels says, by hand; and the real programs of a small config, which all run to their end."""

import bench_kernels
import numpy as np
import pytest
from bench_kernels import Case, Timed

from configs import tiny
from mvg_jax import config as configs
from mvg_jax.models.attention import DECODE, VISION, Kernels
from mvg_jax.rollout.engine import Drawn

FEATURES = np.array([1.0, -4.0], np.float32)


def broken():
    raise NotImplementedError("no such shape\nand more lines")


def test_a_kernel_that_does_not_run_is_named_with_its_reason():
    runs = {"plain": lambda: FEATURES, "cudnn": broken, "other": lambda: FEATURES + np.float32(0.5)}
    plain, cudnn, other = bench_kernels.timed(Case("encode", "2 views", runs, 4), 3)
    assert (cudnn.milliseconds, cudnn.off, cudnn.reason) == (None, None, "no such shape")
    assert (plain.off, other.off) == (0.0, 0.125)
    assert min(plain.milliseconds, other.milliseconds) > 0
    with pytest.raises(NotImplementedError):  # there is nothing to compare with
        bench_kernels.timed(Case("encode", "2 views", {"plain": broken}, 1), 1)


def test_draws_are_compared_up_to_the_first_other_token():
    tokens, logprobs = np.array([[1, 2, 3]]), np.array([[-1.0, -2.0, -3.0]], np.float32)
    plain = Drawn(tokens, logprobs, np.array([3]), np.array([False]))
    far = plain._replace(tokens=np.array([[1, 9, 3]]), logprobs=logprobs + np.array([[0.25, 5.0, 5.0]], np.float32))
    assert bench_kernels.distance(plain, far) == 0.25
    assert bench_kernels.distance(plain, far._replace(tokens=tokens + 1)) == np.inf


def test_the_fastest_runs_in_every_shape():
    row = lambda program, shape, kernel, ms: Timed(program, shape, kernel, ms, 0.0)
    found = [row("encode", "2", "plain", 3.0), row("encode", "2", "cudnn", 2.0)]
    found += [row("decode", "4 x 8", "plain", 1.0), row("decode", "4 x 16", "plain", 9.0)]
    found += [row("decode", "4 x 8", "pallas", 2.0), row("decode", "4 x 16", "pallas", 2.0)]
    found += [row("decode", "4 x 8", "cudnn", 0.1), row("decode", "4 x 16", "cudnn", None)]
    assert bench_kernels.fastest(found) == {"encode": "cudnn", "decode": "pallas"}


def test_programs_of_a_config(monkeypatch, capsys):
    values = tiny.get_config().to_dict()
    values["rollout"] |= {"prompts": 2, "group": 2, "prefill_prompts": 2, "extend_rows": (4,), "encode_batches": (8,)}
    values["rollout"] |= {"decode_slots": (), "decode_lengths": (64,), "lanes": 1}
    monkeypatch.setattr(bench_kernels, "interpreted", lambda: False)  # let it be measured, slow as it is
    drawn = []
    distance = bench_kernels.distance
    monkeypatch.setattr(bench_kernels, "distance", lambda *both: drawn.append(both) or distance(*both))
    found = bench_kernels.measure(configs.from_dict(values), 1)
    names = [("encode", "8 views", kernel) for kernel in VISION]
    names += [("decode", f"4 x {length}", kernel) for length in (64, 128) for kernel in DECODE]
    assert [row[:3] for row in found] == names
    by = {row[1:3]: row for row in found}
    for length in (64, 128):
        assert by[f"4 x {length}", "pallas"].off < 1e-5
        assert by[f"4 x {length}", "cudnn"].reason
    for plain, other in drawn[1:]:
        for one in (plain, other):
            assert (one.count == 28).all()  # every slot draws to the end of what is left
    assert len(drawn) == 1 + 2 * 2
    bench_kernels.show(found)
    assert "fastest here: --config.rollout.vision_kernel=plain" in capsys.readouterr().out
    assert Kernels() == ("plain", "plain")
