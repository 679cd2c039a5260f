"""Qwen-VL beyond its goldens: the parts by themselves, the engine over several turns, the learner's log-probs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mvg_jax.mesh import make_mesh
from mvg_jax.models.axes import place
from mvg_jax.models.config import QwenVisionConfig, QwenVLConfig, TextConfig
from mvg_jax.models.layers import mrope_axes
from mvg_jax.models.qwen_vl import Projector, QwenVL, interpolation, make_slots
from mvg_jax.positions import token_positions
from mvg_jax.rl.learner import LearnerShapes, make_batch
from mvg_jax.rollout.engine import Engine, Going, Opening, Shapes, Told
from mvg_jax.rollout.sampling import Sampling
from mvg_jax.trajectory import ENVIRONMENT, MODEL, Ledger
from tests import tiny_world
from tests.tiny_world import packed

VOCAB, IMAGE, END, D = 40, 39, 38, 32
BANNED = np.arange(VOCAB) == IMAGE
TEXT = TextConfig(
    vocab_size=VOCAB,
    hidden_size=D,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=32,
    head_dim=8,
    mrope_section=(2, 1, 1),
)
SMALL = {"depth": 3, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "patch_size": 4}
CONFIGS = {
    "qwen2_5_vl": QwenVLConfig(
        vision=QwenVisionConfig(**SMALL, window_size=16, fullatt_block_indexes=(1,)),
        text=TEXT,
        image_token_id=IMAGE,
        view_size=(16, 24),
    ),
    "qwen3_vl": QwenVLConfig(
        vision=QwenVisionConfig(
            **SMALL,
            hidden_act="gelu_pytorch_tanh",
            gated=False,
            window_size=None,
            fullatt_block_indexes=(),
            num_position_embeddings=25,
            deepstack_visual_indexes=(0, 2),
        ),
        text=dataclasses.replace(TEXT, attention_bias=False, qk_norm=True, mrope_interleaved=True),
        image_token_id=IMAGE,
        view_size=(16, 24),
    ),
}
E = 6  # views of 16 x 24: a grid of 2 x 3


@functools.cache
def model(family: str) -> tuple[nnx.GraphDef, nnx.State]:
    """(graph, params), untrained; embeddings large enough that tokens differ."""
    made = QwenVL(CONFIGS[family], nnx.Rngs(0))
    made.language_model.embed_tokens.embedding[...] *= 50
    return nnx.split(made)


@functools.cache
def whole(family: str):
    """Jitted: logits [B, L, V] of whole conversations, without prefix or cache."""

    def logits(params, tokens_BxL, views_BxNxHxWx3):
        model_ = nnx.merge(model(family)[0], params)
        B, N = views_BxNxHxWx3.shape[:2]
        features = model_.encode_images(views_BxNxHxWx3.reshape(B * N, 16, 24, 3))
        x = model_.embed(tokens_BxL, features.reshape(B, N, *features.shape[1:]))
        length_B = jnp.full(B, tokens_BxL.shape[1])
        return model_.logits(model_.decode(x, model_.positions(tokens_BxL, length_B, jnp.zeros_like(length_B))[0])[0])

    return jax.jit(logits)


# ---- the parts -------------------------------------------------------------------------------------------------------


def test_mrope_axes_are_in_runs_or_interleaved():
    assert mrope_axes((2, 1, 3), interleaved=False).tolist() == [0, 0, 1, 2, 2, 2]
    assert mrope_axes((4, 2, 1), interleaved=True).tolist() == [0, 1, 2, 0, 1, 0, 0]
    assert np.bincount(mrope_axes((24, 20, 20), interleaved=True)).tolist() == [24, 20, 20]
    # As transformers does: what the sections have too much is cut off, what they lack turns with time.
    assert mrope_axes((24, 20, 20), interleaved=True, angles=5).tolist() == [0, 1, 2, 0, 1]
    assert mrope_axes((1, 1, 1), interleaved=True, angles=5).tolist() == [0, 1, 2, 0, 0]


@pytest.mark.parametrize(("rows", "columns", "window"), [(8, 8, 2), (6, 10, 2), (4, 6, None), (2, 2, 3)])
def test_slots_hold_every_patch_once_near_its_neighbours(rows, columns, window):
    slots = make_slots(rows, columns, 2, window)
    real = slots.patch_WxS >= 0
    assert sorted(slots.patch_WxS[real]) == list(range(rows * columns))
    assert real.any(axis=1).all()
    for patches, there in zip(slots.patch_WxS, real, strict=True):
        for side, at in (
            (2 * (window or rows), patches[there] // columns),
            (2 * (window or columns), patches[there] % columns),
        ):
            assert len(set(at // side)) == 1
    # Token e of the merged grid is made of the four patches below it.
    four = slots.patch_WxS.reshape(-1, 4)[slots.token_E]
    corner = np.arange(0, rows, 2)[:, None] * columns + np.arange(0, columns, 2)[None]
    np.testing.assert_array_equal(four, corner.reshape(-1, 1) + [0, 1, columns, columns + 1])


def test_interpolation_meets_the_corners_and_is_linear():
    index, weight = interpolation(4, 7, side=5)
    y, x = np.meshgrid(np.arange(5), np.arange(5), indexing="ij")
    for table, expected in ((y, np.linspace(0, 4, 4)[:, None]), (x, np.linspace(0, 4, 7)[None])):
        found = (table.reshape(-1)[index] * weight).sum(axis=1).reshape(4, 7)
        np.testing.assert_allclose(found, np.broadcast_to(expected, (4, 7)), atol=1e-6)
    index, weight = interpolation(1, 1, side=5)
    assert (index[0, 0], weight[0].tolist()) == (0, [1, 0, 0, 0])


def test_a_view_size_off_the_grid_is_refused():
    with pytest.raises(ValueError, match=r"view_size \(16, 20\): both sides must be multiples of 8"):
        dataclasses.replace(CONFIGS["qwen2_5_vl"], view_size=(16, 20))


@pytest.mark.parametrize("family", CONFIGS)
def test_features_carry_deepstack_beside_the_embedding(family):
    graph, params = model(family)
    views = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3)).astype(np.uint8)
    features = jax.jit(lambda views: nnx.merge(graph, params).encode_images(views))(views)
    deep = len(CONFIGS[family].vision.deepstack_visual_indexes)
    assert features.shape == (3, CONFIGS[family].tokens_per_image, (1 + deep) * D) == (3, E, (1 + deep) * D)
    parts = np.asarray(features).reshape(3, E, 1 + deep, D)
    assert np.abs(np.diff(parts, axis=2)).max(initial=1.0) > 0.01


def test_deepstack_mergers_follow_the_order_of_their_list():
    """Features come in the order of the layers; the i-th merger belongs to the i-th layer of the list."""
    config = CONFIGS["qwen3_vl"]
    turned = dataclasses.replace(config, vision=dataclasses.replace(config.vision, deepstack_visual_indexes=(2, 0)))
    taken = [np.random.default_rng(i).normal(size=(1, 2, 4, 16)).astype(np.float32) for i in range(3)]
    one, other = Projector(config, nnx.Rngs(0)), Projector(turned, nnx.Rngs(0))
    parts, swapped = (np.split(np.asarray(projector(taken)), 3, axis=-1) for projector in (one, other))
    np.testing.assert_array_equal(swapped[0], parts[0])
    np.testing.assert_array_equal(swapped[1], one.deepstack[1](taken[0]))
    np.testing.assert_array_equal(swapped[2], one.deepstack[0](taken[1]))
    assert np.abs(swapped[1] - parts[1]).max() > 0.01


# ---- the engine and the learner --------------------------------------------------------------------------------------

P, G, B, T = 2, 2, 4, 5
SPAN = [IMAGE] * E
PROMPTS = [[1, 2, *SPAN, 3], [*SPAN, 4, 5, 6]]
OBSERVATIONS = [  # of each turn, each row: with no, one or two views
    [[7, *SPAN, 8], [9], [*SPAN, *SPAN, 10], [11, 12, *SPAN, 14]],
    [[*SPAN, 13], [14, *SPAN, *SPAN, 15], [16], [17, *SPAN, 18]],
]
SHAPES = Shapes(
    prompts=P,
    group=G,
    slots=B,
    pool=P,
    prompt_length=11,
    turn_tokens=T,
    suffix_length=48,
    prompt_images=1,
    views=4,
    prefill_prompts=P,
    extend_rows=(B,),
    observation_lengths=(16,),
    encode_batches=(8,),
    decode_slots=(B,),
    decode_lengths=(48,),
    decode_tokens=T,
)


def padded(lists, length):
    tokens = [[*ids, *[0] * (length - len(ids))] for ids in lists]
    return np.array(tokens, np.int32), np.array([len(ids) for ids in lists], np.int32)


@functools.cache
def played(family: str):
    """The ledger of three turns of every row, views in the middle, driven by hand."""
    graph, params = model(family)
    engine = Engine(graph, SHAPES, END, BANNED)
    rng = np.random.default_rng(1)
    pixels = lambda *shape: rng.integers(0, 256, (*shape, 16, 24, 3)).astype(np.uint8)
    prompt_views = pixels(P, 1)
    tokens_PxL, length_P = padded(PROMPTS, SHAPES.prompt_length)
    grids = CONFIGS[family].position_grids
    ledger = Ledger(tokens_PxL, length_P, B, SHAPES.suffix_length, (SHAPES.views, 16, 24, 3), IMAGE, E, grids)
    every, prompt_B, seat_B = np.arange(B), np.arange(B) // G, np.arange(B)
    features = engine.encode(params, prompt_views, np.arange(P))
    opening = Opening(np.arange(P), tokens_PxL, length_P - 1, np.arange(P)[:, None])
    state = engine.prefill(params, engine.start(params), packed(opening), features)
    pending_B, held_B = tokens_PxL[np.arange(P), length_P - 1][prompt_B], np.zeros(B, np.int32)
    after = lambda tokens, count, start: token_positions(tokens, count, start, IMAGE, grids)[1].astype(np.int32)
    position_B = after(tokens_PxL, length_P - 1, np.zeros(P, np.int32))[prompt_B]
    names, sampling = np.zeros((B, 4), np.uint32), Sampling.of(np.ones(B))
    for turn in range(3):
        going = Going(seat_B, pending_B, held_B, position_B, np.full(B, T), np.full(B, 1), names, sampling)
        state, drawn = engine.decode(params, state, packed(going), length_P - 1, engine.banned_V, length=48)
        drawn = jax.device_get(drawn)
        ledger.append(every, drawn.tokens, drawn.count, MODEL, np.full(B, turn), drawn.logprobs)
        pending_B = drawn.tokens[every, drawn.count - 1]
        held_B, position_B = held_B + drawn.count, position_B + drawn.count
        if turn < len(OBSERVATIONS):
            tokens_BxT, count_B = padded(OBSERVATIONS[turn], 16)
            views = pixels(B, 2)
            features = engine.encode(params, views, np.arange(2 * B))
            fed_BxT = np.concatenate([pending_B[:, None], tokens_BxT[:, :-1]], axis=1)
            told = Told(
                every, prompt_B, length_P[prompt_B] - 1, fed_BxT, count_B, held_B, position_B,
                np.arange(2 * B).reshape(B, 2),
            )  # fmt: skip
            state = engine.extend(params, state, packed(told), features)
            pending_B, held_B = tokens_BxT[every, count_B - 1], held_B + count_B
            position_B = after(fed_BxT, count_B, position_B)
            ledger.append(every, tokens_BxT, count_B, ENVIRONMENT, np.full(B, turn))
            ledger.append_views(every, views, (tokens_BxT == IMAGE).sum(axis=1) // E)
    return ledger.close(prompt_views)


@pytest.mark.parametrize("family", CONFIGS)
def test_turns_with_images_between_equal_one_pass_over_the_whole(family):
    t = played(family)
    start_B = np.repeat(t.prompt_length_P, G)
    tokens = np.zeros((B, SHAPES.prompt_length + SHAPES.suffix_length), np.int32)
    for b in range(B):
        row = [*PROMPTS[b // G], *t.tokens_BxL[b, : t.length_B[b]]]
        tokens[b, : len(row)] = row
    views = np.concatenate([np.repeat(t.prompt_views_PxNxSxSx3, G, axis=0), t.views_BxNxSxSx3], axis=1)
    expected = np.asarray(whole(family)(model(family)[1], tokens, views))
    expected = np.where(BANNED, -np.inf, expected)
    expected -= np.log(
        np.exp(expected - expected.max(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True)
    ) + expected.max(axis=-1, keepdims=True)
    before = start_B[:, None] - 1 + np.arange(t.tokens_BxL.shape[1])[None]
    found = np.take_along_axis(expected[np.arange(B)[:, None], before], t.tokens_BxL[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(t.logprob_BxL[t.loss_mask_BxL], found[t.loss_mask_BxL], atol=1e-4)
    assert t.loss_mask_BxL.sum() > 3 * B
    # The ledger gives the suffix the positions that it has in the whole.
    positions, _ = token_positions(tokens, start_B + t.length_B, np.zeros(B), IMAGE, t.position_grids)
    for b in range(B):
        end = t.length_B[b]
        np.testing.assert_array_equal(t.positions_BxL[b, :end], positions[b, start_B[b] : start_B[b] + end])
    assert (positions[..., 1] != positions[..., 2]).any()


@pytest.mark.parametrize("family", CONFIGS)
def test_the_learner_finds_the_sampled_log_probs(family):
    t = played(family)
    graph, params = model(family)
    learner = tiny_world.learner(BANNED, optax.sgd(0.1), graph=graph)
    shapes = LearnerShapes(microbatches=2, suffix_lengths=(SHAPES.suffix_length,), view_batches=(8,))
    batch = make_batch(t, np.zeros(B), np.ones(B), shapes)
    assert batch.positions.shape == (2, B // 2, SHAPES.suffix_length, 3)
    found = np.asarray(learner.score(params, batch)).reshape(B, -1)
    np.testing.assert_allclose(found, t.logprob_BxL, atol=2e-5)
    assert (found < 0).sum() == t.loss_mask_BxL.sum() > 3 * B


@pytest.mark.parametrize("family", CONFIGS)
def test_a_mesh_scores_what_one_device_does(family):
    """Rows over data, heads over tensor; positions on three axes, DeepStack features and windows among them."""
    t = played(family)
    graph, params = model(family)
    shapes = LearnerShapes(microbatches=1, suffix_lengths=(SHAPES.suffix_length,), view_batches=(16,))
    with jax.set_mesh(make_mesh({"data": 2, "fsdp": 1, "tensor": 2})):
        made = tiny_world.learner(BANNED, optax.sgd(0.1), graph=graph)
        found = made.score(place(params), make_batch(t, np.zeros(B), np.ones(B), shapes))
        assert len(found.sharding.device_set) == 4
        found = np.asarray(found).reshape(B, -1)
    np.testing.assert_allclose(found, t.logprob_BxL, atol=2e-5)
