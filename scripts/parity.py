"""What transformers computes for a checkpoint folder and what mvg_jax does; make_goldens.py and check_parity.py share it.

Inputs are a dict: view_{i} uint8 [H, W, 3] and, of each row, prompt_{row} int [L]. `rows` says which views a prompt shows.
Outputs are a dict: of each row features [tokens, W], positions [L, 3] (M-RoPE only), logits [L, V] of the prompt, and
greedy [NEW_TOKENS], the continuation.
"""

import gc
import json
import pathlib
from collections.abc import Mapping

import numpy as np

NEW_TOKENS = 32
TOLERANCE = 1e-4  # of logits and features in float32, relative to the largest value
EXACT = ("greedy", "positions")  # what is counted, not measured

Arrays = dict[str, np.ndarray]
Rows = Mapping[str, tuple[int, ...]]


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3]: a smooth picture with some noise; pure noise averages out in the features."""
    y, x = np.meshgrid(np.linspace(0, 2 * np.pi, height), np.linspace(0, 2 * np.pi, width), indexing="ij")
    waves = np.sin(np.einsum("ca,axy->xyc", rng.uniform(0.3, 3, (3, 2)), np.stack([y, x])))
    return (127 + 100 * waves + rng.normal(0, 15, waves.shape)).clip(0, 255).astype(np.uint8)


def reference(directory: pathlib.Path, inputs: Arrays, rows: Rows, dtype: str = "float32") -> Arrays:
    """By transformers and torch on the CPU. ValueError if transformers finds tensors missing, unexpected or mis-shaped."""
    import torch
    import transformers
    from PIL import Image

    model_type = json.loads((directory / "config.json").read_text())["model_type"]
    internvl = model_type == "internvl"
    kind = {
        "internvl": (transformers.InternVLForConditionalGeneration, transformers.GotOcr2ImageProcessorPil),
        "qwen2_5_vl": (transformers.Qwen2_5_VLForConditionalGeneration, transformers.Qwen2VLImageProcessorPil),
        "qwen3_vl": (transformers.Qwen3VLForConditionalGeneration, transformers.Qwen2VLImageProcessorPil),
    }[model_type]
    model, info = kind[0].from_pretrained(
        directory,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",
        output_loading_info=True,
        local_files_only=True,
    )
    if any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise ValueError(f"transformers does not load {directory} cleanly: {info}")
    processor = kind[1].from_pretrained(directory, local_files_only=True)
    # The views have the size that they are to have; what a folder says about resizing and tiles is not compared here.
    as_it_is = {"do_resize": False, **({"crop_to_patches": False} if internvl else {})}
    image_token = model.config.image_token_id
    out = {}
    with torch.no_grad():
        for row, shown in rows.items():
            tokens = torch.tensor(inputs[f"prompt_{row}"])[None]
            given, grid = {}, None
            if shown:
                views = [Image.fromarray(inputs[f"view_{i}"]) for i in shown]
                pixels = processor(views, return_tensors="pt", **as_it_is)
                given = {field: pixels[field] for field in ("pixel_values", "image_grid_thw") if field in pixels}
                grid = given.get("image_grid_thw")
                found = model.get_image_features(**given, return_dict=True)
                if internvl:
                    features = [found.pooler_output.flatten(0, 1)]
                else:
                    deep = getattr(found, "deepstack_features", [])
                    features = [torch.cat(found.pooler_output), *map(torch.cat, deep)]
                out[f"features_{row}"] = torch.cat(features, dim=-1).float().numpy()
            following = torch.tensor(tokens.shape[1])
            if not internvl:
                given["mm_token_type_ids"] = (tokens == image_token).int()
                positions, _ = model.model.get_rope_index(
                    tokens, mm_token_type_ids=given["mm_token_type_ids"], image_grid_thw=grid
                )
                out[f"positions_{row}"] = positions[:, 0].T.numpy().astype(np.int32)
                following = positions.max() + 1
            result = model(input_ids=tokens, use_cache=True, **given)
            out[f"logits_{row}"] = result.logits[0].float().numpy().copy()
            greedy = []
            for step in range(NEW_TOKENS):
                last = result.logits[0, -1].clone()
                last[image_token] = -torch.inf  # no image comes with a sampled placeholder
                greedy.append(int(last.argmax()))
                place = (following + step).view(1, 1) if internvl else (following + step).expand(3, 1, 1)
                result = model(
                    input_ids=torch.tensor([[greedy[-1]]]),
                    position_ids=place,
                    past_key_values=result.past_key_values,
                    use_cache=True,
                )
            out[f"greedy_{row}"] = np.array(greedy, np.int32)
    del model, result
    gc.collect()
    return out


def ours(
    directory: pathlib.Path, inputs: Arrays, rows: Rows, greedy: Arrays, dtype: str = "float32", tie: float = 0.0
) -> Arrays:
    """The same by mvg_jax on its default device.

    greedy: the reference's continuations. Ours is the most likely next token at every position of prompt + continuation:
    if each is the reference's, by induction both generate the same. tie: a token less likely than the best by at most
    tie times the largest logit counts as the best.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from mvg_jax.models import hf
    from mvg_jax.positions import token_positions

    model = hf.load(directory, jnp.dtype(dtype))
    config, (graph, state) = model.config, nnx.split(model)
    encode = jax.jit(lambda state, views: nnx.merge(graph, state).encode_images(views))

    @jax.jit
    def forward(state, tokens, positions, features):
        model = nnx.merge(graph, state)
        return model.logits(model.decode(model.embed(tokens, features), positions)[0])

    out = {}
    conversations = {row: np.concatenate([inputs[f"prompt_{row}"], greedy[f"greedy_{row}"]]) for row in rows}
    # All rows have the same shapes: padded on the right, where a causal model does not look.
    length = max(map(len, conversations.values()))
    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        shown = sorted({i for images in rows.values() for i in images})
        of_view = {i: np.asarray(encode(state, inputs[f"view_{i}"][None])[0], np.float32) for i in shown}
        features = {row: np.concatenate([of_view[i] for i in images]) for row, images in rows.items() if images}
        most, width = max(map(len, features.values())), next(iter(features.values())).shape[1]
        for row, images in rows.items():
            start, end = len(inputs[f"prompt_{row}"]), len(conversations[row])
            tokens = np.pad(conversations[row], (0, length - end))[None]
            grids = None
            if config.position_grids is not None:
                sizes = [inputs[f"view_{i}"].shape[:2] for i in images] or [config.view_size]
                grids = np.array([[config.grid(*size) for size in sizes]])
            positions, _ = token_positions(tokens, np.array([end]), np.array([0]), config.image_token_id, grids)
            mine = features.get(row, np.zeros((0, width), np.float32))
            padded = jnp.asarray(np.pad(mine, ((0, most - len(mine)), (0, 0))), jnp.dtype(dtype))[None, None]
            logits = np.array(forward(state, tokens, positions, padded)[0, :end])
            if images:
                out[f"features_{row}"] = mine
            if grids is not None:
                out[f"positions_{row}"] = positions[0, :start]
            out[f"logits_{row}"] = logits[:start].copy()
            logits[:, config.image_token_id] = -np.inf
            margin = tie * np.abs(out[f"logits_{row}"]).max()
            out[f"greedy_{row}"] = choose(logits[start - 1 : end - 1], greedy[f"greedy_{row}"], margin)
    return out


def choose(logits_TxV: np.ndarray, theirs_T: np.ndarray, margin: float) -> np.ndarray:
    """The best token at each step, or theirs where it is no more than `margin` below the best."""
    gap_T = logits_TxV.max(axis=-1) - np.take_along_axis(logits_TxV, theirs_T[:, None], axis=-1)[:, 0]
    return np.where(gap_T <= margin, theirs_T, logits_TxV.argmax(axis=-1))


def differences(found: Arrays, expected: Arrays) -> dict[str, float]:
    """Per output: max |difference| relative to the largest value; of tokens and positions the number that differ."""
    result = {}
    for name, value in found.items():
        if value.shape != expected[name].shape:
            raise ValueError(f"{name} has shape {value.shape} instead of {expected[name].shape}")
        if name.startswith(EXACT):
            result[name] = float((value != expected[name]).sum())
        else:
            result[name] = float(np.abs(value - expected[name]).max() / np.abs(expected[name]).max())
    return result


def limit(name: str, tolerance: float = TOLERANCE) -> float:
    """The largest difference of this output that is still parity."""
    return 0.0 if name.startswith(EXACT) else tolerance
