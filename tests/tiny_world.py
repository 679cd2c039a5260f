"""A model and a world that compile in seconds: 2 decoder layers, width 32, views of 16 px, E = 4 tokens an image.

The tokenizer is the embedded one. `LETTERS` leaves the model eight tokens, one of which ends the turn: an untrained
model then speaks several turns of different lengths, none of them well-formed. Calls come from scripts.
"""

import copy
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mvg_jax.data.task import Box, NativeImage, Task, Turn
from mvg_jax.env.chat import make_vocabulary
from mvg_jax.env.episode import Episodes, Limits
from mvg_jax.env.protocol import Protocol
from mvg_jax.experiment import folder
from mvg_jax.models.attention import PLAIN, Kernels
from mvg_jax.models.axes import place
from mvg_jax.models.config import ModelConfig, TextConfig, VisionConfig
from mvg_jax.models.internvl import InternVL
from mvg_jax.models.tokenizer import load_tokenizer
from mvg_jax.packed import Packed, pack
from mvg_jax.rl.learner import Learner
from mvg_jax.rl.logprobs import Forward
from mvg_jax.rl.objective import Objective
from mvg_jax.rollout.engine import Engine, Shapes
from mvg_jax.rollout.policies import GuidedPolicy, SampledPolicy, ScriptedPolicy
from mvg_jax.rollout.scheduler import Phases, World, rollout
from mvg_jax.tools import ToolCall, ViewFormat, default_registry
from mvg_jax.trajectory import ENVIRONMENT, MODEL, Ledger, Trajectories

SIZE, E = 16, 4
VIEW = ViewFormat(SIZE, SIZE, "linear")
TOKENIZER = load_tokenizer(folder("asset:tiny_internvl"))
VOCABULARY = make_vocabulary(
    TOKENIZER,
    pad="<|endoftext|>",
    end_of_turn="<|im_end|>",
    image="<IMG_CONTEXT>",
    image_start="<img>",
    image_end="</img>",
)
PROTOCOL = Protocol(VOCABULARY, default_registry(("image_zoom_in_tool", "image_flip_tool")), "compact", E)
LIMITS = Limits(max_turns=3, max_images=4, max_errors=3)

SPECIAL = np.isin(np.arange(TOKENIZER.size), VOCABULARY.banned_ids)  # what is never sampled, bool [V]
LETTERS = ~np.isin(np.arange(TOKENIZER.size), [*range(100, 107), VOCABULARY.end_of_turn])
ENDLESS = SPECIAL | (np.arange(TOKENIZER.size) == VOCABULARY.end_of_turn)

CONFIG = ModelConfig(
    vision=VisionConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=SIZE,
        patch_size=4,
        hidden_act="relu",
        layer_scale_init_value=1.0,
    ),
    text=TextConfig(
        vocab_size=TOKENIZER.size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        head_dim=8,
        rope_theta=10_000.0,
    ),
    image_token_id=VOCABULARY.image,
    resample="linear",
)


@functools.cache
def model() -> tuple[nnx.GraphDef, nnx.State]:
    """(graph, params) of the untrained model."""
    return nnx.split(InternVL(CONFIG, nnx.Rngs(0)))


def own_params() -> nnx.State:
    """The weights once more, for programs that consume their argument."""
    return jax.tree.map(lambda x: jnp.array(np.array(x)), model()[1])


def packed(rows) -> Packed:
    """As a policy packs them; whole numbers of any type."""
    return pack(jax.tree.map(lambda x: np.int32(x) if x.dtype == int else np.asarray(x), rows))


def zoom(*boxes: Sequence[int], image: int = 0) -> Turn:
    """A turn that zooms into one box or several."""
    box = [list(box) for box in boxes]
    return Turn("", ToolCall("image_zoom_in_tool", {"bbox_2d": box if len(box) > 1 else box[0], "img_idx": image}))


def flip(image: int) -> Turn:
    return Turn("", ToolCall("image_flip_tool", {"axis": "horizontal", "img_idx": image}))


ONE, TWO, ANSWER = zoom((100, 200, 600, 700)), zoom((100, 200, 600, 700), (0, 500, 400, 900)), Turn("", "calcified")


def task(i: int) -> Task:
    """Noise of 32 x 40 pixels: no two views look alike."""
    pixels = np.random.default_rng(i).integers(600, 1500, (32, 40)).astype(np.uint16)
    return Task(
        id=f"noise/{i}",
        dataset="noise",
        kind="attribute",
        images=(NativeImage(pixels, window=(-160.0, 240.0), intercept=-1024.0, unit="HU"),),
        question="Which" + " is it" * (i % 3) + "?",
        answer="calcified",
        options=("calcified", "septated"),
        boxes=(Box("lesion", (100.0, 200.0, 600.0, 700.0)),),
        chain=(ONE.action,),
    )


@functools.cache
def world(prompts: int, group: int = 2, lanes: int = 1) -> World:
    """Three turns of up to 24 tokens: a zoom takes 16, one into two boxes 24; their observations 16 and 22."""
    share = prompts // lanes
    rows = share * group
    shapes = Shapes(
        prompts=prompts,
        group=group,
        slots=rows,
        pool=share,
        prompt_length=40,
        turn_tokens=24,
        suffix_length=120,
        prompt_images=1,
        views=3,
        prefill_prompts=share,
        extend_rows=(rows // 2, rows),
        observation_lengths=(16, 24),
        encode_batches=(rows // 2, 2 * rows),
        decode_slots=(rows,),
        decode_lengths=(120,),
        decode_tokens=16,
        lanes=lanes,
    )
    return World(PROTOCOL, LIMITS, shapes, VIEW, (32, 40, 1))


@functools.cache
def _engine(prompts: int, group: int, lanes: int, kernels: Kernels) -> Engine:
    return Engine(model()[0], world(prompts, group, lanes).shapes, VOCABULARY.end_of_turn, SPECIAL, kernels=kernels)


def engine(prompts: int, banned_V: np.ndarray, group: int = 2, lanes: int = 1, kernels: Kernels = PLAIN) -> Engine:
    """The engine of world(prompts, group, lanes): compiled once, whatever is banned."""
    made = copy.copy(_engine(prompts, group, lanes, kernels))
    made.banned_V = jnp.asarray(banned_V)
    return made


def learner(
    banned_V: np.ndarray, optimizer: optax.GradientTransformation, graph: nnx.GraphDef | None = None, **options
) -> Learner:
    """Of the untrained model or another; GRPO on all its weights unless told otherwise."""
    defaults = {
        "loss": "policy",
        "objective": Objective(),
        "advantage_scale": "std",
        "freeze": (),
        "forward": Forward(),
    }
    return Learner(graph or model()[0], optimizer, banned_V, **(defaults | options))


def play(
    tasks: Sequence[Task],
    *,
    script: Sequence[Sequence[Turn]] | None = None,
    seed: int = 0,
    step: int = 0,
    sample_B: np.ndarray | None = None,
    temperature: float = 1.0,
    banned_V: np.ndarray = LETTERS,
    kernels: Kernels = PLAIN,
    lanes: int = 1,
) -> tuple[Trajectories, Episodes, Phases]:
    """Episodes of the untrained model, two rows a task; with a script, a list a row, it speaks after the first turn.

    With several processes, tasks and script are this one's share.
    """
    prompts, rows, phases = len(tasks) * jax.process_count(), 2 * len(tasks), Phases()
    world_, engine_ = world(prompts, lanes=lanes), engine(prompts, banned_V, lanes=lanes, kernels=kernels)
    policy = SampledPolicy(
        engine_,
        engine_.weights(place(model()[1])),
        seed=seed,
        step=step,
        sample_B=np.arange(rows) % 2 if sample_B is None else sample_B,
        temperature_B=np.full(rows, temperature),
    )
    if script is not None:
        policy = GuidedPolicy(ScriptedPolicy(PROTOCOL, script, world_.shapes.turn_tokens), policy, 1)
    return *rollout(world_, policy, world_.prepare(tasks, tools_on=True), phases), phases


def random_ledger(prompts: int, group: int = 2, seed: int = 0) -> Trajectories:
    """Rows of noise in the shape of a conversation: a turn, an observation of 0 to 2 views, a turn, a last observation.

    Behaviour log-probs are 0, which no policy would have given: tests put in their own.
    """
    rng = np.random.default_rng(seed)
    rows, length = prompts * group, 40
    words = lambda *shape: rng.integers(0, 1600, shape).astype(np.int32)
    image = np.full(E, VOCABULARY.image)
    prompt_length_P = rng.integers(8, 13, prompts).astype(np.int32)
    prompts_PxL = words(prompts, 12)
    prompts_PxL[:, 2 : 2 + E] = image
    pixels = lambda *shape: rng.integers(0, 256, (*shape, SIZE, SIZE, 3)).astype(np.uint8)
    prompt_views = pixels(prompts, 1)
    ledger = Ledger(prompts_PxL, prompt_length_P, rows, length, (3, SIZE, SIZE, 3), VOCABULARY.image, E)
    views_B = np.arange(rows) % 3
    observation_BxT = words(rows, 14)
    for b, count in enumerate(views_B):
        observation_BxT[b, 1 : 1 + E * count] = np.tile(image, count)
    count = lambda low, high: rng.integers(low, high + 1, rows).astype(np.int32)
    every, first = np.arange(rows), np.zeros(rows, np.int8)
    ledger.append(every, words(rows, 9), count(3, 9), MODEL, first)
    observed_B = np.maximum(count(2, 6) + E * views_B, 2).astype(np.int32)
    ledger.append(every, observation_BxT, observed_B, ENVIRONMENT, first)
    ledger.append_views(every, pixels(rows, 2), views_B.astype(np.int32))
    ledger.append(every, words(rows, 9), count(1, 9), MODEL, first + 1)
    ledger.append(every, words(rows, 3), count(1, 3), ENVIRONMENT, first + 1)
    return ledger.close(prompt_views)


def plain_logprobs(trajectories: Trajectories, temperature: float, banned_V: np.ndarray) -> np.ndarray:
    """Log-probs [B, L, V] of what may stand at each suffix token: each row run whole, no shared prefix, no cache."""
    t = trajectories
    start_B = np.repeat(t.prompt_length_P, t.group_size)
    tokens = np.zeros((len(start_B), t.prompts_PxL.shape[1] + t.tokens_BxL.shape[1]), np.int32)
    for b, start in enumerate(start_B):
        tokens[b, :start] = t.prompts_PxL[b // t.group_size, :start]
        tokens[b, start : start + t.length_B[b]] = t.tokens_BxL[b, : t.length_B[b]]
    views = np.concatenate([np.repeat(t.prompt_views_PxNxSxSx3, t.group_size, axis=0), t.views_BxNxSxSx3], axis=1)
    logits = np.asarray(_whole_rows(model()[1], tokens, start_B + t.length_B, views), np.float64)
    before = start_B[:, None] - 1 + np.arange(t.tokens_BxL.shape[1])[None]  # where each suffix token was chosen
    logits = np.where(banned_V, -np.inf, np.take_along_axis(logits, before[..., None], axis=1) / temperature)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@jax.jit
def _whole_rows(params, tokens_BxL, length_B, views_BxNxSxSx3):
    model_ = nnx.merge(model()[0], params)
    B, N = views_BxNxSxSx3.shape[:2]
    features = model_.encode_images(views_BxNxSxSx3.reshape(B * N, SIZE, SIZE, 3)).reshape(B, N, E, -1)
    return model_.logits(model_.prefill(tokens_BxL, length_B, features)[0])
