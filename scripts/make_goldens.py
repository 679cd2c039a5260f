"""Makes and checks the goldens of the model: what transformers and torch compute for tiny checkpoints of every family.

    PYTHONPATH=. python scripts/make_goldens.py            writes tests/goldens/*.npz (needs torch and transformers)
    PYTHONPATH=. python scripts/make_goldens.py --check    recomputes them and compares them with those stored, with
        mvg_jax, and with folders that mvg_jax has written: in shards, and in bfloat16 (needs jax too)

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
from parity import differences, limit, ours, picture, reference

ONLY = flags.DEFINE_string("only", "", "Part of the names of the cases to run; empty: all.")
CHECK = flags.DEFINE_bool("check", False, "Compare with the stored goldens instead of writing them.")

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDENS = ROOT / "tests" / "goldens"
VOCAB, IMAGE_TOKEN = 96, 90

# Of InternVL, between them: tied and untied heads, Qwen2, Qwen3 and Llama decoders, four ratios of heads to kv heads, own
# head_dim, every activation, both norms, query/key norms, biases on and off, with and without the last vision norm.
# Of Qwen-VL: tied and untied heads, ratios of heads to kv heads, grids that the window divides and does not, layers with
# windows and without, one to three DeepStack layers, position tables larger and smaller than the grids.
INTERNVL, QWEN2_5, QWEN3 = "internvl", "qwen2_5_vl", "qwen3_vl"
CASES = {
    "internvl_tied_relu": {
        "text": {"model_type": "qwen2", "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "relu"},
        "vision": {"hidden_act": "relu", "attention_bias": True},
        "top": {"projector_hidden_act": "relu", "tie_word_embeddings": True},
    },
    "internvl_untied_silu_qknorm": {
        "text": {"model_type": "qwen2", "num_attention_heads": 4, "num_key_value_heads": 1, "hidden_act": "silu",
                 "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        "vision": {"hidden_act": "gelu", "attention_bias": False, "use_qk_norm": True, "norm_type": "rms_norm"},
        "top": {"projector_hidden_act": "gelu", "tie_word_embeddings": False},
    },
    "internvl_llama_tanh": {
        "text": {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16,
                 "hidden_act": "gelu_pytorch_tanh"},
        "vision": {"hidden_act": "gelu_pytorch_tanh", "attention_bias": True, "use_mean_pooling": False,
                   "patch_size": 4},
        "top": {"projector_hidden_act": "silu", "tie_word_embeddings": False},
    },
    "internvl_llama_biased": {
        "text": {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8,
                 "attention_bias": True},
        "vision": {"attention_bias": True},
        "top": {"tie_word_embeddings": True},
    },
    "internvl_qwen3": {
        "text": {"model_type": "qwen3", "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16,
                 "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        "vision": {"attention_bias": True},
        "top": {"tie_word_embeddings": False},
    },
    "internvl_qwen3_biased": {
        "text": {"model_type": "qwen3", "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8,
                 "attention_bias": True},
        "vision": {"attention_bias": True},
        "top": {"tie_word_embeddings": True},
    },
    "qwen2_5_vl_tied": {
        "text": {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 80, "hidden_size": 32,
                 "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}},
        "vision": {"depth": 3, "fullatt_block_indexes": [1], "patch_size": 4, "window_size": 16},
        "top": {"tie_word_embeddings": True},
        "sizes": [(24, 40), (32, 32), (8, 24)],
    },
    "qwen2_5_vl_untied": {
        "text": {"num_attention_heads": 4, "num_key_value_heads": 1, "hidden_size": 64, "num_hidden_layers": 3,
                 "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
        "vision": {"depth": 4, "fullatt_block_indexes": [0, 3], "patch_size": 2, "window_size": 16},
        "top": {"tie_word_embeddings": False},
        "sizes": [(20, 28), (36, 16), (4, 4)],
    },
    "qwen2_5_vl_all_heads": {
        "text": {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 32, "hidden_act": "relu",
                 "rms_norm_eps": 1e-5,
                 "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]}},
        "vision": {"depth": 2, "fullatt_block_indexes": [], "patch_size": 4, "window_size": 24, "hidden_act": "relu"},
        "top": {"tie_word_embeddings": False},
        "sizes": [(32, 48), (32, 48), (48, 32)],
    },
    "qwen3_vl_tied": {
        "text": {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 80, "hidden_size": 32, "head_dim": 16,
                 "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2]}},
        "vision": {"depth": 3, "deepstack_visual_indexes": [0, 2], "patch_size": 4, "num_position_embeddings": 25},
        "top": {"tie_word_embeddings": True},
        "sizes": [(24, 40), (32, 32), (8, 24)],
    },
    "qwen3_vl_untied": {
        "text": {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 40, "head_dim": 8,
                 "num_hidden_layers": 3, "attention_bias": True,
                 "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
        "vision": {"depth": 4, "deepstack_visual_indexes": [0, 1, 2], "patch_size": 4, "num_position_embeddings": 144},
        "top": {"tie_word_embeddings": False},
        "sizes": [(8, 40), (48, 16), (24, 24)],
    },
    "qwen3_vl_one_deep": {
        "text": {"num_attention_heads": 4, "num_key_value_heads": 1, "hidden_size": 32, "head_dim": 16,
                 "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2]}},
        "vision": {"depth": 2, "deepstack_visual_indexes": [1], "patch_size": 4, "num_position_embeddings": 16,
                   "hidden_act": "gelu"},
        "top": {"tie_word_embeddings": False},
        "sizes": [(16, 24), (16, 24), (8, 8)],
    },
}  # fmt: skip
TEXT = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "bos_token_id": None,
        "eos_token_id": None, "pad_token_id": None}  # fmt: skip
VISION = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40,
          "image_size": 32, "patch_size": 8}  # fmt: skip
QWEN_VISION = {"hidden_size": 24, "num_heads": 2, "intermediate_size": 40}
QWEN_TOP = {"image_token_id": IMAGE_TOKEN, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
ROWS = {"0": (0, 1, 2), "1": (1,)}  # the images of each prompt
OUTPUTS = ("features", "positions", "logits", "greedy")


def family(name: str) -> str:
    return next(family for family in (INTERNVL, QWEN2_5, QWEN3) if name.startswith(family))


def random_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 weights that depend on the tensor's name alone; large enough that every part changes the output."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    noise = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("embed_tokens.weight"):
        return 0.1 * noise  # small, or a tied head repeats its input
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


def inputs(sizes: list[tuple[int, int]], tokens_per_image: list[int]) -> dict[str, np.ndarray]:
    """The three views, and two prompts: text before and between their images."""
    rng = np.random.default_rng(0)
    made = {f"view_{i}": picture(rng, *size) for i, size in enumerate(sizes)}
    words = rng.integers(0, 80, (6, 6))
    for name, images in ROWS.items():
        pieces = []
        for i in images:
            pieces += [words[i][: 3 + i], np.full(tokens_per_image[i], IMAGE_TOKEN)]
        made[f"prompt_{name}"] = np.concatenate([*pieces, words[3 + int(name)]])
    return made


def build(name: str, directory: pathlib.Path) -> dict[str, np.ndarray]:
    """Config, names and shapes as transformers writes them, and the inputs."""
    import transformers

    case = CASES[name]
    if family(name) == INTERNVL:
        text = transformers.AutoConfig.for_model(**{**TEXT, **case["text"]})
        vision = transformers.models.internvl.InternVLVisionConfig(**{**VISION, **case["vision"]})
        side, patch = vision.image_size[0], vision.patch_size[0]
        sizes, tokens_per_image = [(side, side)] * 3, [(side // patch // 2) ** 2] * 3
        config = transformers.InternVLConfig(
            text_config=text, vision_config=vision, image_token_id=IMAGE_TOKEN, image_seq_length=tokens_per_image[0],
            **case["top"],
        )  # fmt: skip
        model = transformers.InternVLForConditionalGeneration(config)
        processor = transformers.GotOcr2ImageProcessorPil(
            size={"height": side, "width": side}, crop_to_patches=False, image_mean=MEAN, image_std=STD
        )
    else:
        kind = {QWEN2_5: transformers.Qwen2_5_VLConfig, QWEN3: transformers.Qwen3VLConfig}[family(name)]
        text = {**TEXT, **case["text"]}
        vision = {**QWEN_VISION, **case["vision"], "out_hidden_size": text["hidden_size"]}
        config = kind(text_config=text, vision_config=vision, **QWEN_TOP, **case["top"])
        model = getattr(transformers, kind.__name__.replace("Config", "ForConditionalGeneration"))(config)
        patch, sizes = vision["patch_size"], case["sizes"]
        tokens_per_image = [height // (2 * patch) * (width // (2 * patch)) for height, width in sizes]
        processor = transformers.Qwen2VLImageProcessorPil(
            size={"shortest_edge": 4, "longest_edge": 10**6}, patch_size=patch, image_mean=MEAN, image_std=STD
        )
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    with safetensors.safe_open(directory / "model.safetensors", framework="np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
    return {
        "config.json": np.array((directory / "config.json").read_text()),
        "preprocessor_config.json": np.array((directory / "preprocessor_config.json").read_text()),
        "tensors": np.array(json.dumps(shapes)),
        **inputs(sizes, tokens_per_image),
    }


def main(_):
    failed = False
    for name in CASES:
        if ONLY.value not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            directory = pathlib.Path(folder)
            golden = build(name, directory)
            write_folder(directory, golden)
            golden |= reference(directory, golden, ROWS)
            different = [len(set(golden[f"greedy_{i}"].tolist())) for i in (0, 1)]
            if not CHECK.value:
                np.savez_compressed(GOLDENS / f"{name}.npz", **golden)
                largest = np.abs(golden["logits_0"]).max()
                print(f"{name}: written, {different} different greedy tokens, largest logit {largest:.2f}")
                continue
            stored = dict(np.load(GOLDENS / f"{name}.npz"))
            shards, half = _saved_again(directory, "float32", 20_000), _saved_again(directory, "bfloat16", 10**9)
            rounded = reference(half, golden, ROWS)
            rows = {
                "stored": differences({key: golden[key] for key in stored if key.startswith(OUTPUTS)}, stored),
                "mvg_jax": differences(ours(directory, golden, ROWS, golden), golden),
                "saved by mvg_jax in shards": differences(reference(shards, golden, ROWS), golden),
                "saved by mvg_jax in bfloat16": differences(ours(half, golden, ROWS, rounded), rounded),
            }
            for what, row in rows.items():
                failed |= any(value > limit(key) for key, value in row.items())
                print(f"{name}, {what}: " + "  ".join(f"{key} {value:.1e}" for key, value in row.items()), flush=True)
    if failed:
        raise SystemExit("the outputs differ")


def _saved_again(directory: pathlib.Path, dtype: str, max_shard_bytes: int) -> pathlib.Path:
    """A second folder, read and written by mvg_jax."""
    import jax.numpy as jnp

    from mvg_jax.models import hf

    again, settings = directory / f"again_{dtype}", {"end_of_turn": 1, "pad": 0, "max_shard_bytes": max_shard_bytes}
    hf.save(hf.load(directory, jnp.float32), again, dtype=jnp.dtype(dtype), **settings)
    return again


if __name__ == "__main__":
    app.run(main)
