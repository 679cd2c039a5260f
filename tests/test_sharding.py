"""Several devices compute what one does: sampled tokens, loss, gradients and checkpoints, on every kind of mesh."""

import contextlib
import dataclasses
import functools
import math
import re
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mvg_jax.checkpoint import Checkpoints
from mvg_jax.compiles import CompileCount, compile_all
from mvg_jax.errors import RunError
from mvg_jax.mesh import make_mesh
from mvg_jax.models import hf
from mvg_jax.models.attention import Kernels
from mvg_jax.models.axes import check_tensor_axis, parameter_axes, place, place_array
from mvg_jax.models.config import TextConfig
from mvg_jax.models.internvl import InternVL
from mvg_jax.models.lora import add_lora
from mvg_jax.rl.learner import Learner, LearnerShapes, TrainState, make_batch
from mvg_jax.rl.logprobs import Forward
from mvg_jax.rl.objective import Objective
from mvg_jax.rollout.engine import Engine
from mvg_jax.tools import MAX_VIEWS
from mvg_jax.trajectory import Trajectories
from tests import tiny_world
from tests.tiny_world import ANSWER, LETTERS, ONE, SPECIAL, TWO, VIEW, flip

P, G = 8, 2
MESHES = {  # data, fsdp, tensor
    "fsdp=8": (1, 8, 1),
    "fsdp=4 tensor=2": (1, 4, 2),
    "data=2 fsdp=2 tensor=2": (2, 2, 2),
    "fsdp=2 tensor=4": (1, 2, 4),  # twice as many as key-value heads
}
TASKS = [tiny_world.task(i) for i in range(P)]
SCRIPT = [[TWO], [ONE], [flip(0)], [ANSWER], [TWO], [TWO], [ONE], []] * G  # shards differ in their number of views
REWARD = np.linspace(-1.0, 1.0, P * G).astype(np.float32) ** 2
SHAPES = LearnerShapes(microbatches=1, suffix_lengths=(120,), view_batches=(48,))


def on(name: str | None):
    """The mesh of that name as the current one; None: one device."""
    if name is None:
        return contextlib.nullcontext()
    return jax.set_mesh(make_mesh(dict(zip(("data", "fsdp", "tensor"), MESHES[name], strict=True))))


@functools.cache
def learner() -> Learner:
    """Plain descent at rate 1: what a step subtracts is the gradient. Momentum, so that there are moments."""
    return tiny_world.learner(SPECIAL, optax.sgd(1.0, momentum=0.9), freeze=("vision_tower",))


@functools.cache
def result(name: str | None) -> dict:
    """A rollout and an update: the ledger, and the state and metrics after an update."""
    with on(name):
        ledger, _, _ = tiny_world.play(TASKS, script=SCRIPT)
        # Ratios near 1: the scripted turns and the learner's distribution are not the sampler's.
        behaviour = np.where(ledger.loss_mask_BxL, -np.log(len(SPECIAL)), 0).astype(np.float32)
        ledger_ = dataclasses.replace(ledger, logprob_BxL=behaviour)
        batch = make_batch(ledger_, REWARD, np.ones(P * G), SHAPES)
        state, metrics = learner().update(learner().init(tiny_world.own_params()), batch)
        return {"ledger": ledger, "state": state, "metrics": jax.device_get(metrics)}


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_computes_what_one_device_does(name):
    """One test, so that one worker compiles a mesh's programs."""
    one, many = result(None), result(name)
    check_rollout(one["ledger"], many["ledger"])
    check_update(one, many)
    check_layout(many["state"], *MESHES[name][1:])


def test_a_kernel_of_our_own_takes_each_devices_rows():
    with on("fsdp=8"):
        ledger, _, _ = tiny_world.play(TASKS, script=SCRIPT, kernels=Kernels(decode_kernel="pallas"))
    check_rollout(result(None)["ledger"], ledger)


def test_lanes_on_a_mesh():
    with on("data=2 fsdp=2 tensor=2"):
        tiny_world.play(TASKS, script=SCRIPT)  # compiles what little runs outside of the engine
        engine, params = tiny_world.engine(P, LETTERS, lanes=2), place(tiny_world.model()[1])
        programs = engine.lower(engine.weights(params), (tiny_world.SIZE,) * 2, MAX_VIEWS)
        compile_all(programs + tiny_world.world(P, lanes=2).lower(), "compile")
        with CompileCount() as compiles:
            ledger, _, _ = tiny_world.play(TASKS, script=SCRIPT, lanes=2)
    check_rollout(result(None)["ledger"], ledger)
    assert compiles.count == 0


@functools.cache
def frugal(name: str | None) -> dict:
    """An update in two microbatches with recomputed layers, logits in parts and a reference policy."""
    made = tiny_world.learner(
        SPECIAL,
        optax.sgd(1.0),
        objective=Objective(kl=0.1),
        forward=Forward(remat=True, logit_positions=50),
    )
    shapes = LearnerShapes(microbatches=2, suffix_lengths=(120,), view_batches=(24,))
    ledger = result(None)["ledger"]
    behaviour = np.where(ledger.loss_mask_BxL, -np.log(len(SPECIAL)), 0).astype(np.float32)
    with on(name):
        batch = make_batch(dataclasses.replace(ledger, logprob_BxL=behaviour), REWARD, np.ones(P * G), shapes)
        reference = jax.tree.map(lambda x: x * 0.9, place(tiny_world.own_params()))
        batch = batch._replace(reference=made.score(reference, batch))
        state, metrics = made.update(made.init(tiny_world.own_params()), batch)
        return {"state": state, "metrics": jax.device_get(metrics)}


def test_microbatches_in_little_memory_on_a_mesh():
    one, many = frugal(None), frugal("fsdp=4 tensor=2")
    assert one["metrics"]["kl_reference"] > 1e-3
    check_update(one, many)


def check_rollout(one: Trajectories, many: Trajectories) -> None:
    turns = [len(np.unique(one.turn_BxL[b, : one.length_B[b]])) for b in range(P * G)]
    assert len(set(turns)) > 1, "rows must end at different times"
    np.testing.assert_array_equal(many.tokens_BxL, one.tokens_BxL)
    np.testing.assert_array_equal(many.views_BxNxSxSx3, one.views_BxNxSxSx3)
    np.testing.assert_array_equal(many.prompt_views_PxNxSxSx3, one.prompt_views_PxNxSxSx3)
    np.testing.assert_allclose(many.logprob_BxL, one.logprob_BxL, atol=1e-5)


def check_update(one: dict, many: dict) -> None:
    for key, value in one["metrics"].items():
        assert many["metrics"][key] == pytest.approx(value, abs=1e-5), key
    before = weights(tiny_world.model()[1])
    expected, got = weights(one["state"].params), weights(many["state"].params)
    assert max(np.abs(expected[path] - before[path]).max() for path in before) > 1e-2
    for path, value in expected.items():
        np.testing.assert_allclose(got[path], value, atol=1e-5, err_msg=str(path))


def weights(params: nnx.State) -> dict[tuple, np.ndarray]:
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(params)}


def check_layout(state: TrainState, fsdp: int, tensor: int) -> None:
    share = lambda x: x.sharding.shard_shape(x.shape)
    moments = state.opt_state[0].trace
    for tree in (state.params, moments):
        decoder = tree["language_model"]
        V, D, F = 1664, 32, 32
        assert share(decoder["embed_tokens"]["embedding"][...]) == (V // tensor, D // fsdp)
        layer = decoder["layers"][0]
        assert share(layer["gate_proj"]["kernel"][...]) == (D // fsdp, F // tensor)
        assert share(layer["down_proj"]["kernel"][...]) == (F // tensor, D // fsdp)
        assert share(layer["self_attn"]["q_proj"]["kernel"][...]) == (D // fsdp, 32 // tensor)
        assert share(layer["self_attn"]["q_proj"]["bias"][...]) == (32 // tensor,)
        assert share(layer["input_layernorm"]["scale"][...]) == (D,)
        assert share(tree["multi_modal_projector"]["linear_1"]["kernel"][...]) == (128 // fsdp, D)
    assert "vision_tower" not in moments
    assert state.step.sharding.is_fully_replicated
    assert len(state.step.sharding.device_set) == 8
    whole = sum(x.nbytes for x in jax.tree.leaves(state.params))
    one_device = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.params))
    assert one_device < 1.4 * whole / (fsdp * tensor) + 8192  # vectors are whole everywhere


@pytest.mark.parametrize("name", MESHES)
def test_a_token_costs_no_gather_of_weights(name):
    """The sampler's weights are whole but for tensor, and nothing is gathered inside the decode loop."""
    with on(name):
        engine = tiny_world.engine(P, LETTERS)
        params = engine.weights(place(tiny_world.model()[1]))
        for leaf in params:
            assert not {"data", "fsdp"} & set(jax.tree.leaves(tuple(leaf.sharding.spec)))
        decode = dict(engine.lower(params, VIEW[:2], MAX_VIEWS))["decode 16x120"].compile()
        state_out, _ = decode.output_shardings
        kv = tiny_world.CONFIG.text.num_key_value_heads
        heads = max(kv, MESHES[name][2])
        shape = (P * G, heads, tiny_world.CONFIG.text.head_dim, 120)
        rows = MESHES[name][0] * MESHES[name][1]
        local = (shape[0] // rows, heads // MESHES[name][2], *shape[2:])
        assert state_out.keys[0].shard_shape(shape) == local
        assert largest_gather(decode) <= P * G, "more than a number a row is gathered"
        # The same program on the learner's weights does gather them: the check above can fail.
        if MESHES[name][1] > 1:
            trained = dict(engine.lower(place(tiny_world.model()[1]), VIEW[:2], MAX_VIEWS))["decode 16x120"].compile()
            assert largest_gather(trained) >= 512


def largest_gather(program: jax.stages.Compiled) -> int:
    """Entries of the largest array that a program gathers from several devices."""
    found = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", program.as_text())
    return max((math.prod(int(n) for n in shape.split(",") if n) for shape in found), default=0)


def test_resharding_shares_what_needs_no_change():
    params = tiny_world.model()[1]
    engine = tiny_world.engine(P, LETTERS)
    same = engine.weights(params)
    assert all(a is b for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(params), strict=True))
    with on("fsdp=4 tensor=2"):
        placed = place(params)
        resharded = engine.weights(placed)
        for (path, a), b in zip(nnx.to_flat_state(placed), resharded, strict=True):
            assert (a[...] is b) == ("embed" not in parameter_axes(path)), path
            np.testing.assert_array_equal(a[...], b)


def test_sampling_weights_are_cast_once_if_asked_for():
    shapes = tiny_world.world(P).shapes
    engine = Engine(tiny_world.model()[0], shapes, 0, LETTERS, jnp.bfloat16)
    for name in (None, "data=2 fsdp=2 tensor=2"):
        with on(name):
            cast = engine.weights(place(tiny_world.model()[1]))
            for leaf, (_, whole) in zip(cast, nnx.to_flat_state(tiny_world.model()[1]), strict=True):
                np.testing.assert_array_equal(leaf, whole[...].astype(jnp.bfloat16))


def test_a_checkpoint_of_one_mesh_is_read_on_another(tmp_path):
    """Weights, moments and counter, bit for bit, laid out as the reading mesh says."""

    def fresh() -> TrainState:
        state = learner().init(tiny_world.own_params())
        return jax.tree.map(lambda x: x + 1, state)

    names = [None, *MESHES]
    expected = jax.tree.leaves(jax.device_get(fresh()))
    for name in names:
        with on(name):
            checkpoints = Checkpoints(tmp_path / str(name), keep=1)
            checkpoints.save(1, fresh(), {})
            checkpoints.close()
    for wrote, reads in zip(names, names[1:] + names[:1], strict=True):
        with on(reads):
            like = learner().init(tiny_world.own_params())
            checkpoints = Checkpoints(tmp_path / str(wrote), keep=None)
            state, _ = checkpoints.restore(None, like)
            checkpoints.close()
        for got, saved, wanted in zip(jax.tree.leaves(state), expected, jax.tree.leaves(like), strict=True):
            np.testing.assert_array_equal(got, saved)
            assert got.sharding.is_equivalent_to(wanted.sharding, got.ndim)


def test_weights_go_between_files_and_devices_a_tensor_at_a_time(tmp_path, monkeypatch):
    """Read into the training layout and saved from it bit for bit; the host never holds much more than the largest tensor."""
    config = dataclasses.replace(
        tiny_world.CONFIG,
        text=dataclasses.replace(tiny_world.CONFIG.text, hidden_size=512, intermediate_size=1024, vocab_size=1664 * 4),
    )
    whole = InternVL(config, nnx.Rngs(0))
    names = {"end_of_turn": 1, "pad": 0, "dtype": jnp.float32}
    hf.save(whole, tmp_path / "whole", **names)
    sizes = [leaf[...].nbytes for _, leaf in nnx.to_flat_state(nnx.state(whole, nnx.Param))]
    with on("data=2 fsdp=2 tensor=2"):
        tracemalloc.start()
        monkeypatch.setattr(hf, "PIECE_BYTES", 200_000)
        model = hf.load(tmp_path / "whole", jnp.float32, place_array)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        kernel = model.language_model.layers[0].gate_proj.kernel[...]
        assert kernel.sharding.shard_shape(kernel.shape) == (256, 512)
        hf.save(model, tmp_path / "again", **names)
    # One tensor as ours, and a piece of it as stored: no second copy, and none of the tensor before.
    assert sum(sizes) > 3 * max(sizes)
    assert peak < 1.2 * max(sizes) + 4e6
    weights_ = [(tmp_path / name / hf.WEIGHTS).read_bytes() for name in ("whole", "again")]
    assert weights_[0] == weights_[1]


def test_every_parameter_of_every_family_has_a_rule_and_others_are_refused():
    model = nnx.merge(*tiny_world.model())
    add_lora(model, ("language_model.*_proj", "*linear_1", "lm_head"), rank=2, alpha=1.0, rngs=nnx.Rngs(0))
    adapted = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    axes = {path: parameter_axes(path) for path in adapted}
    layer = ("language_model", "layers", 0)
    assert axes[*layer, "self_attn", "o_proj", "lora_a"] == ("heads", None)
    assert axes[*layer, "self_attn", "o_proj", "lora_b"] == (None, "embed")
    for family in hf.FAMILIES.values():
        for ours, _, kind in family.names:
            for leaf in kind:
                path = tuple(0 if part == "{i}" else part for part in f"{ours}.{leaf}".rstrip(".").split("."))
                assert len(parameter_axes(path)) in (0, 1, 2), path
    for path in (("language_model", "router", "kernel"), ("audio_tower", "fc1", "kernel"), ("lm_head", "gate")):
        with pytest.raises(KeyError, match=path[-1]):
            parameter_axes(path)


@pytest.mark.parametrize(("heads", "kv", "mlp", "tensor", "legal"), [
    (28, 4, 18944, 8, "1, 2, 4"), (14, 2, 4864, 4, "1, 2"), (16, 16, 48, 5, "1, 2, 4, 8, 16"),
])  # fmt: skip
def test_a_tensor_axis_that_does_not_fit_is_refused_by_name(heads, kv, mlp, tensor, legal):
    text = TextConfig(num_attention_heads=heads, num_key_value_heads=kv, intermediate_size=mlp)
    with pytest.raises(RunError, match=rf"config.mesh.tensor is {tensor}: {heads} query heads.*over {legal}$"):
        check_tensor_axis(tensor, text)
    for fits in map(int, legal.split(", ")):
        check_tensor_axis(fits, text)
