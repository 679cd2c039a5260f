"""Makes and checks the goldens of the model: what transformers and torch compute for tiny InternVL checkpoints.

    PYTHONPATH=. python scripts/make_goldens.py            writes tests/goldens/*.npz (needs torch and transformers)
    PYTHONPATH=. python scripts/make_goldens.py --check    recomputes them and compares with mvg_jax (needs jax too)

A golden holds what transformers itself wrote (config.json, image processor settings, names and shapes of the tensors),
the inputs and the outputs. The weights are not stored: `random_weight` draws each from its name.
"""

import json
import pathlib
import tempfile
import zlib

import numpy as np
import safetensors
import safetensors.numpy
from absl import app, flags

CHECK = flags.DEFINE_bool("check", False, "Compare with the stored goldens instead of writing them.")

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDENS = ROOT / "tests" / "goldens"
NEW_TOKENS = 32
VOCAB, IMAGE_TOKEN = 96, 90

# Between them: tied and untied heads, Qwen2 and Llama text, three ratios of heads to kv heads, own head_dim, every
# activation, both norms, query/key norms, biases on and off, with and without the last vision norm.
CASES = {
    "tied_relu": {
        "text": {"model_type": "qwen2", "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "relu"},
        "vision": {"hidden_act": "relu", "attention_bias": True},
        "top": {"projector_hidden_act": "relu", "tie_word_embeddings": True},
    },
    "untied_silu_qknorm": {
        "text": {"model_type": "qwen2", "num_attention_heads": 4, "num_key_value_heads": 1, "hidden_act": "silu",
                 "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        "vision": {"hidden_act": "gelu", "attention_bias": False, "use_qk_norm": True, "norm_type": "rms_norm"},
        "top": {"projector_hidden_act": "gelu", "tie_word_embeddings": False},
    },
    "llama_tanh": {
        "text": {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16,
                 "hidden_act": "gelu_pytorch_tanh"},
        "vision": {"hidden_act": "gelu_pytorch_tanh", "attention_bias": True, "use_mean_pooling": False,
                   "patch_size": 4},
        "top": {"projector_hidden_act": "silu", "tie_word_embeddings": False},
    },
}  # fmt: skip
TEXT = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "bos_token_id": None,
        "eos_token_id": None, "pad_token_id": None}  # fmt: skip
VISION = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40,
          "image_size": 32, "patch_size": 8}  # fmt: skip


def random_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 weights that depend on the tensor's name alone; large enough that every part changes the output."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    noise = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("embed_tokens.weight"):
        return 0.3 * noise  # small, or a tied head repeats its input
    if len(shape) == 1:
        scales = any(part in name for part in ("norm", "lambda")) and name.endswith(("weight", "lambda_1", "lambda_2"))
        return (1.0 if scales else 0.0) + 0.2 * noise
    if "embeddings.cls" in name or "position" in name:
        return noise
    return 1.5 * noise / np.sqrt(np.prod(shape[1:], dtype=np.float32))


def write_folder(directory: pathlib.Path, golden: dict[str, np.ndarray]) -> None:
    """The checkpoint folder of a golden: config.json, image processor settings, weights drawn from their names."""
    for file in ("config.json", "preprocessor_config.json"):
        (directory / file).write_text(str(golden[file]))
    shapes = json.loads(str(golden["tensors"]))
    weights = {name: random_weight(name, tuple(shape)) for name, shape in shapes.items()}
    safetensors.numpy.save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def inputs(tokens_per_image: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Views [3, 32, 32, 3] uint8 and two prompts: one with the first two views, one with the third."""
    rng = np.random.default_rng(0)
    # Smooth pictures with some noise: pure noise averages out in the features.
    grid = np.linspace(0, 2 * np.pi, 32)
    waves = np.sin(np.einsum("nca,axy->nxyc", rng.uniform(0.3, 3, (3, 3, 2)), np.stack(np.meshgrid(grid, grid))))
    views = (127 + 100 * waves + rng.normal(0, 15, waves.shape)).clip(0, 255).astype(np.uint8)
    image = np.full(tokens_per_image, IMAGE_TOKEN)
    words = rng.integers(0, 80, (5, 6))
    two, one = (words[0], image, words[1], image, words[2]), (words[3], image, words[4])
    return views, [np.concatenate(two), np.concatenate(one)]


def build(case: dict, directory: pathlib.Path) -> dict[str, np.ndarray]:
    """Config, names and shapes as transformers writes them, and the inputs."""
    import transformers

    text = transformers.AutoConfig.for_model(**{**TEXT, **case["text"]})
    vision = transformers.models.internvl.InternVLVisionConfig(**{**VISION, **case["vision"]})
    tokens_per_image = (vision.image_size[0] // vision.patch_size[0] // 2) ** 2
    config = transformers.InternVLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE_TOKEN, image_seq_length=tokens_per_image,
        **case["top"],
    )  # fmt: skip
    transformers.InternVLForConditionalGeneration(config).save_pretrained(directory)
    side = vision.image_size[0]
    transformers.GotOcr2ImageProcessorPil(
        size={"height": side, "width": side}, crop_to_patches=False, image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(directory)  # fmt: skip
    with safetensors.safe_open(directory / "model.safetensors", framework="np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
    views, prompts = inputs(tokens_per_image)
    return {
        "config.json": np.array((directory / "config.json").read_text()),
        "preprocessor_config.json": np.array((directory / "preprocessor_config.json").read_text()),
        "tensors": np.array(json.dumps(shapes)),
        "views": views,
        "prompt_0": prompts[0],
        "prompt_1": prompts[1],
    }


def reference(directory: pathlib.Path, golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By transformers: features after the projector [3, E, D]; for each prompt logits [L, V] and 32 greedy tokens."""
    import torch
    import transformers
    from PIL import Image

    model, info = transformers.InternVLForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise ValueError(f"transformers does not load the folder cleanly: {info}")
    processor = transformers.GotOcr2ImageProcessorPil.from_pretrained(directory)
    pixels = processor([Image.fromarray(view) for view in golden["views"]], return_tensors="pt")["pixel_values"]
    out = {}
    with torch.no_grad():
        out["features"] = model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output.numpy()
        for name, views in (("0", slice(0, 2)), ("1", slice(2, 3))):
            tokens = torch.tensor(golden[f"prompt_{name}"])[None]
            length = tokens.shape[1]
            for _ in range(NEW_TOKENS):
                logits = model(input_ids=tokens, pixel_values=pixels[views], use_cache=False).logits
                if tokens.shape[1] == length:
                    out[f"logits_{name}"] = logits[0].numpy().copy()
                logits[..., IMAGE_TOKEN] = -torch.inf  # no image comes with a sampled placeholder
                tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
            out[f"greedy_{name}"] = tokens[0, length:].numpy()
    return out


def ours(directory: pathlib.Path, golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same from mvg_jax: logits and the most likely next token at every position of prompt + greedy tokens."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from mvg_jax.models import hf

    # Both prompts in one batch, padded on the right, where a causal model does not look.
    rows = [np.concatenate([golden[f"prompt_{name}"], golden[f"greedy_{name}"]]) for name in "01"]
    tokens = np.zeros((2, max(map(len, rows))), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    graph, state = nnx.split(hf.load(directory, jnp.float32))

    @jax.jit
    def forward(state, views, tokens):
        model = nnx.merge(graph, state)
        features = model.encode_images(views)
        per_row = features[jnp.array([[0, 1], [2, 2]])]  # the second prompt has one image
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return features, model.logits(model.decode(model.embed(tokens, per_row), positions)[0])

    with jax.default_matmul_precision("highest"):
        features, logits = jax.device_get(forward(state, golden["views"], tokens))
    out = {"features": features}
    for name, row in zip("01", logits, strict=True):
        start, length = len(golden[f"prompt_{name}"]), len(golden[f"prompt_{name}"]) + NEW_TOKENS
        out[f"logits_{name}"] = row[:start].copy()
        allowed = np.delete(row[start - 1 : length - 1], IMAGE_TOKEN, axis=-1).argmax(-1)
        out[f"greedy_{name}"] = allowed + (allowed >= IMAGE_TOKEN)
    return out


def differences(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Per output: max |difference| relative to the largest value; for tokens the number that differ."""
    result = {}
    for name, value in found.items():
        if name.startswith("greedy"):
            result[name] = float((value != expected[name]).sum())
        else:
            result[name] = float(np.abs(value - expected[name]).max() / np.abs(expected[name]).max())
    return result


def main(_):
    failed = False
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            directory = pathlib.Path(folder)
            golden = build(case, directory)
            write_folder(directory, golden)
            golden |= reference(directory, golden)
            different = [len(set(golden[f"greedy_{i}"].tolist())) for i in (0, 1)]
            if not CHECK.value:
                np.savez_compressed(GOLDENS / f"internvl_{name}.npz", **golden)
                largest = np.abs(golden["logits_0"]).max()
                print(f"{name}: written, {different} different greedy tokens, largest logit {largest:.2f}")
                continue
            stored = np.load(GOLDENS / f"internvl_{name}.npz")
            rows = {
                "stored": differences(reference(directory, golden), stored),
                "mvg_jax": differences(ours(directory, golden), golden),
                "saved by mvg_jax": differences(reference(_saved_again(directory), golden), golden),
            }
            for what, row in rows.items():
                failed |= any(value > (0 if key.startswith("greedy") else 1e-4) for key, value in row.items())
                print(f"{name}, {what}: " + "  ".join(f"{key} {value:.1e}" for key, value in row.items()))
    if failed:
        raise SystemExit("the outputs differ")


def _saved_again(directory: pathlib.Path) -> pathlib.Path:
    """A second folder, read and written by mvg_jax."""
    import jax.numpy as jnp

    from mvg_jax.models import hf

    again = directory / "again"
    hf.save(hf.load(directory, jnp.float32), again, dtype=jnp.float32, end_of_turn=1, pad=0)
    return again


if __name__ == "__main__":
    app.run(main)
