"""What a rollout cannot do without: FLOPs and bytes of each phase, the least seconds they take on a device, and goodput.

Counted are the matrix products of the model and the attention over live positions (2 FLOPs a multiply-add); norms, activations,
softmax and sampling are not, so that a floor is a floor. The scheme counted is the cheapest that is known: each image is encoded
once, each prompt run once for its group (without its last token, which is a row's first step of decode), each token of a row once,
and the keys and values of a prompt are read once a step for its whole group.
"""

from typing import NamedTuple

import numpy as np

from mvg_jax.models.config import QwenVLConfig, TextConfig, VLMConfig
from mvg_jax.models.decoder import suffix_bytes
from mvg_jax.trajectory import ENVIRONMENT, MODEL, Trajectories

PHASES = ("encode", "prefill", "extend", "decode")


class Rates(NamedTuple):
    """What a device can do, as measured: bytes/s read from memory, FLOP/s of a large matrix product in the type computed in."""

    bandwidth: float
    flops: float


class Cost(NamedTuple):
    flops: float
    bytes: float

    def seconds(self, rates: Rates) -> float:
        """The least time this takes: memory and arithmetic overlap at best."""
        return max(self.bytes / rates.bandwidth, self.flops / rates.flops)


class Load(NamedTuple):
    """A rollout in numbers. A position is a token that goes through the decoder; it attends to all before it and to itself.

    images: encoded. prefill, extend, decode: positions. *_attended: keys that these attend to, summed.
    observations: most that one row got. steps: decode steps at least. own_read, prefix_read: cached positions that decode reads,
    of rows and of prompts. positions: real ones, of all phases: each token once, a prompt's for its whole group, without padding
    and without those that nothing follows.
    """

    images: int
    prefill: int
    prefill_attended: int
    extend: int
    extend_attended: int
    observations: int
    decode: int
    decode_attended: int
    steps: int
    own_read: int
    prefix_read: int
    positions: int


def load(trajectories: Trajectories, slots: int) -> Load:
    """What these trajectories take at least, sampled in so many slots."""
    t = trajectories
    length_P, G = t.prompt_length_P.astype(np.int64), t.group_size
    before_BxL = np.repeat(length_P, G)[:, None] + np.arange(t.tokens_BxL.shape[1])[None]  # positions before each token
    drawn_BxL, given_BxL = t.origin_BxL == MODEL, t.origin_BxL == ENVIRONMENT
    drawn_B = drawn_BxL.sum(axis=1)
    turns = int(t.turn_BxL.max(initial=0)) + 1
    observed = sum((given_BxL & (t.turn_BxL == turn)).any(axis=1).astype(int) for turn in range(turns))
    inside_PxL = np.arange(t.prompts_PxL.shape[1])[None] < length_P[:, None]
    prompt_images = ((t.prompts_PxL == t.image_token_id) & inside_PxL).sum() // t.tokens_per_image
    # The pass that draws (or completes) token i of a row feeds the token before it, which attends to everything up to itself.
    return Load(
        images=int(prompt_images + t.view_count_B.sum()),
        prefill=int((length_P - 1).sum()),
        prefill_attended=int((length_P * (length_P - 1) // 2).sum()),
        extend=int(given_BxL.sum()),
        extend_attended=int(before_BxL[given_BxL].sum()),
        observations=int(np.max(observed)),
        decode=int(drawn_BxL.sum()),
        decode_attended=int(before_BxL[drawn_BxL].sum()),
        steps=int(max(-(-drawn_B.sum() // slots), drawn_B.max())),
        own_read=int((np.arange(t.tokens_BxL.shape[1])[None] * drawn_BxL).sum()),
        prefix_read=int((length_P * drawn_B.reshape(-1, G).max(axis=1)).sum()),
        positions=int(length_P.sum() + (t.length_B - 1).sum()),
    )


def layer_parameters(text: TextConfig) -> int:
    """Entries of the matrices of one decoder layer."""
    D, H, K, C = text.hidden_size, text.num_attention_heads, text.num_key_value_heads, text.head_dim
    return D * (H + 2 * K) * C + H * C * D + 3 * D * text.intermediate_size


def image_flops(model: VLMConfig) -> float:
    """Of encoding one view: patches, vision layers, and the way to the decoder's width."""
    vision, D = model.vision, model.text.hidden_size
    Dv, F = vision.hidden_size, vision.intermediate_size
    height, width = model.view_size
    patches = (height // vision.patch_size) * (width // vision.patch_size)
    if isinstance(model, QwenVLConfig):
        embed = 3 * vision.temporal_patch_size * vision.patch_size**2 * Dv
        layer = 4 * Dv * Dv + (3 if vision.gated else 2) * Dv * F
        full = vision.depth if vision.window_size is None else len(vision.fullatt_block_indexes)
        window = 0 if vision.window_size is None else (vision.window_size // vision.patch_size) ** 2
        attended = full * patches + (vision.depth - full) * min(window, patches)
        wide = Dv * vision.spatial_merge_size**2
        mergers = (1 + len(vision.deepstack_visual_indexes)) * model.tokens_per_image * (wide * wide + wide * D)
        return 2.0 * (patches * (embed + vision.depth * layer + 2 * Dv * attended) + mergers)
    positions = patches + 1  # a class token
    layer = 4 * Dv * Dv + 2 * Dv * F + 2 * Dv * positions
    wide = round(Dv / model.downsample_ratio**2)
    projector = model.tokens_per_image * (wide * D + D * D)
    return 2.0 * (patches * 3 * vision.patch_size**2 * Dv + positions * vision.num_hidden_layers * layer + projector)


def costs(model: VLMConfig, work: Load, itemsize: int, vision_bytes: float) -> dict[str, Cost]:
    """Of PHASES. itemsize: bytes of a weight and of a cached number. vision_bytes: of the weights that encode images."""
    text = model.text
    layers, H, C = text.num_hidden_layers, text.num_attention_heads, text.head_dim
    matrices, head = layers * layer_parameters(text), text.hidden_size * text.vocab_size
    cached = suffix_bytes(text, 1, 1, itemsize)  # of one position's keys and values
    through = lambda positions, attended: 2.0 * positions * matrices + 4.0 * layers * H * C * attended
    return {
        "encode": Cost(work.images * image_flops(model), vision_bytes),
        "prefill": Cost(through(work.prefill, work.prefill_attended), matrices * itemsize + work.prefill * cached),
        "extend": Cost(
            through(work.extend, work.extend_attended),
            work.observations * matrices * itemsize + work.extend * cached,
        ),
        "decode": Cost(
            through(work.decode, work.decode_attended) + 2.0 * work.decode * head,
            work.steps * (matrices + head) * itemsize + (work.own_read + work.prefix_read) * cached,
        ),
    }
