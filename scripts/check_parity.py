"""Compares mvg_jax with an installed transformers + torch on one checkpoint folder and prints a parity table.

    PYTHONPATH=. python scripts/check_parity.py --checkpoint=DIR [--dtype=bfloat16] [--seed=N]

Three prompts, with no, one and three images and text before and between them. Compared are vision features, rotary
position ids (M-RoPE), the prompt's logits and 32 greedy tokens. Exit status: 0 parity, 1 over tolerance, 2 could not compare.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import sys
import tempfile

import numpy as np
from parity import EXACT, NEW_TOKENS, TOLERANCE, Arrays, differences, limit, ours, picture, reference

from mvg_jax.models import hf
from mvg_jax.models.config import ModelConfig, QwenVLConfig
from mvg_jax.models.tokenizer import Tokenizer, load_tokenizer

ROWS = {"no image": (), "1 image": (1,), "3 images": (0, 1, 2)}
TEXTS = (
    "Look at this picture.", "Here is a second one:", "And the same place again, a year later:",
    "What do you see? Answer in one sentence.",
)  # fmt: skip
WORDS = (3, 4, 5, 6)  # tokens of each text where there is no tokenizer
TOKEN_GRIDS = (
    (6, 10),
    (8, 8),
    (3, 5),
)  # Qwen-VL's views in decoder positions; windows are 4 x 4 in the published models
BF16_RATIO, BF16_SLACK = 2.0, 1e-3

HELP = """\
float32 (the default): both sides compute in float32. Features and logits may differ by 1e-4 of their largest value;
positions and greedy tokens must be equal, but for tokens whose logits are closer to each other than that.

bfloat16: mvg_jax and torch both compute in bfloat16, and torch in float32 as well. mvg_jax may be at most twice as far
from float32 as torch's own bfloat16 is (greedy tokens are shown, but not judged: rounding decides between close ones).
On the CPU, XLA rounds less often than the program says; XLA_FLAGS=--xla_allow_excess_precision=false rounds every time.

torch runs on the CPU and is done before mvg_jax starts, so that memory need only hold one copy of the model at a time:
4 bytes a parameter. mvg_jax runs on JAX's default device (JAX_PLATFORMS=cpu for the CPU).

A folder without a tokenizer for its vocabulary gets prompts of random token ids, one without image processor settings a
mean and standard deviation of 0.5 on both sides.
"""


class CannotCompare(Exception):
    """Said in one line."""


# ---------------------------------------------------------------------------------------------------------------------
# Inputs
# ---------------------------------------------------------------------------------------------------------------------


def make_inputs(config: ModelConfig | QwenVLConfig, tokenizer: Tokenizer | None, seed: int) -> Arrays:
    """Views and prompts for ROWS; see parity.py."""
    rng = np.random.default_rng(seed)
    if config.position_grids is None:
        sizes = [config.view_size] * 3
        tokens = [config.tokens_per_image] * 3
        marks = [tokenizer.added.get(mark) for mark in ("<img>", "</img>")] if tokenizer else []
        special = {config.image_token_id}
    else:
        unit = config.vision.patch_size * config.vision.spatial_merge_size
        sizes = [(rows * unit, columns * unit) for rows, columns in TOKEN_GRIDS]
        tokens = [rows * columns for rows, columns in TOKEN_GRIDS]
        marks = [config.vision_start_token_id, config.vision_end_token_id]
        special = {config.image_token_id, config.video_token_id, *marks}
    before, after = (
        [mark] if mark is not None and mark < config.text.vocab_size else [] for mark in marks or (None,) * 2
    )
    if tokenizer is None:
        words = np.setdiff1d(np.arange(config.text.vocab_size), list(special))
        texts = [rng.choice(words, length).tolist() for length in WORDS]
    else:
        texts = [tokenizer.encode(text) for text in TEXTS]
    made = {f"view_{i}": picture(rng, *size) for i, size in enumerate(sizes)}
    for row, images in ROWS.items():
        prompt = []
        for i in images:
            prompt += [*texts[i], *before, *[config.image_token_id] * tokens[i], *after]
        made[f"prompt_{row}"] = np.array([*prompt, *texts[-1]], np.int64)
    return made


def complete(directory: pathlib.Path, spare: pathlib.Path) -> pathlib.Path:
    """The folder itself; if it has no image processor settings, `spare` with links to its files and settings beside them."""
    if any((directory / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        return directory
    for file in directory.iterdir():
        (spare / file.name).symlink_to(file.resolve())
    settings = spare / "preprocessor_config.json"
    settings.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    config = hf.read_config(spare)
    settings.write_text(json.dumps(hf.FAMILIES[config.model_type].write_processor(config)))
    return spare


def find_tokenizer(directory: pathlib.Path, vocab_size: int) -> Tokenizer | None:
    """The folder's tokenizer; None without one, or with one whose ids go beyond the model's vocabulary."""
    try:
        tokenizer = load_tokenizer(directory)
    except FileNotFoundError:
        return None
    return tokenizer if tokenizer.size <= vocab_size else None


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


# ---------------------------------------------------------------------------------------------------------------------
# Verdict
# ---------------------------------------------------------------------------------------------------------------------


def judge(found: dict[str, float], allowed: dict[str, float]) -> list[tuple[str, str, float, float, bool]]:
    """Rows of the table: (prompt, output, difference, allowed, whether it is within). NaN is not within."""
    rows = []
    for name, difference in found.items():
        output, prompt = name.split("_", 1)
        rows.append((prompt, output, difference, allowed[name], difference <= allowed[name]))
    order = list(ROWS)
    return sorted(rows, key=lambda row: order.index(row[0]))


def bfloat16_limits(theirs: dict[str, float]) -> dict[str, float]:
    """What mvg_jax may differ from float32, given how much torch's own bfloat16 does."""
    limits = {name: BF16_RATIO * difference + BF16_SLACK for name, difference in theirs.items()}
    return {name: value if not name.startswith("greedy") else float("inf") for name, value in limits.items()} | {
        name: 0.0 for name in theirs if name.startswith("positions")
    }


def show(rows: list[tuple[str, str, float, float, bool]], theirs: dict[str, float] | None) -> None:
    last = "" if theirs is None else "  torch's own"
    print(f"{'prompt':<10} {'output':<10} {'difference':>16} {'allowed':>10}  verdict{last}")
    for prompt, output, difference, allowed, within in rows:
        unit = {"greedy": f" of {NEW_TOKENS} tokens", "positions": " ids"}.get(output, "")
        said = f"{difference:.0f}{unit}" if output in EXACT else f"{difference:.2e}"
        bound = "any" if allowed == float("inf") else f"{allowed:.0f}" if output in EXACT else f"{allowed:.1e}"
        # torch's own tokens are not counted: from the first other one on, they continue another text.
        own = "" if theirs is None or output in EXACT else f"  {theirs[f'{output}_{prompt}']:.2e}"
        print(f"{prompt:<10} {output:<10} {said:>16} {bound:>10}  {'ok' if within else 'FAILED':<7}{own}")


# ---------------------------------------------------------------------------------------------------------------------
# The program
# ---------------------------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    first, _, _ = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="check_parity.py", description=first, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, type=pathlib.Path, metavar="DIR",
                        help=f"a folder with config.json and *.safetensors of one of: {', '.join(hf.FAMILIES)}")  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="what mvg_jax computes in")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures and of random token ids (default 0)")
    return parser.parse_args(argv)


def compare(directory: pathlib.Path, dtype: str, seed: int) -> bool:
    """Prints the table; whether all is within tolerance."""
    config = hf.read_config(directory)
    missing = [package for package in ("torch", "transformers") if not installed(package)]
    if missing:
        raise CannotCompare(f"{' and '.join(missing)} not installed: pip install torch transformers pillow")
    import transformers

    if int(transformers.__version__.split(".")[0]) < 5:
        raise CannotCompare(f"transformers {transformers.__version__} is installed; version 5 is needed")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = find_tokenizer(directory, config.text.vocab_size)
    inputs = make_inputs(config, tokenizer, seed)
    text = "random token ids (no tokenizer for this vocabulary in the folder)" if tokenizer is None else "text"
    print(f"{config.model_type}, {dtype}, prompts of {text}")
    expected = reference(directory, inputs, ROWS)
    theirs, tie = None, 2 * TOLERANCE
    if dtype == "bfloat16":
        theirs, tie = differences(reference(directory, inputs, ROWS, dtype), expected), 0.0
    found = differences(ours(directory, inputs, ROWS, expected, dtype, tie), expected)
    rows = judge(found, {name: limit(name) for name in found} if theirs is None else bfloat16_limits(theirs))
    show(rows, theirs)
    failed = [f"{output} ({prompt})" for prompt, output, _, _, within in rows if not within]
    print(f"FAILED: {', '.join(failed)}" if failed else "parity: all within tolerance")
    return not failed


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        if not arguments.checkpoint.is_dir():
            raise CannotCompare(f"--checkpoint: {arguments.checkpoint} is not a folder")
        with tempfile.TemporaryDirectory() as spare:
            try:
                directory = complete(arguments.checkpoint, pathlib.Path(spare))
                return 0 if compare(directory, arguments.dtype, arguments.seed) else 1
            except (OSError, ValueError) as error:
                raise CannotCompare(str(error).replace(spare, str(arguments.checkpoint))) from error
    except CannotCompare as error:
        print(f"check_parity.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
