"""The logic of scripts/check_parity.py; what it compares with needs torch and is run by hand."""

import json
import math
import pathlib

import check_parity
import make_goldens
import numpy as np
import parity
import pytest

from mvg_jax.experiment import folder
from mvg_jax.models import hf
from mvg_jax.models.tokenizer import load_tokenizer

GOLDENS = pathlib.Path(__file__).parent / "goldens"


@pytest.fixture(params=["internvl_tied_relu", "qwen2_5_vl_tied", "qwen3_vl_tied"])
def checkpoint(request, tmp_path):
    make_goldens.write_folder(tmp_path, dict(np.load(GOLDENS / f"{request.param}.npz")))
    return tmp_path


def outputs(rng: np.random.Generator) -> parity.Arrays:
    made = {}
    for row, images in check_parity.ROWS.items():
        made[f"logits_{row}"] = rng.normal(size=(4, 9)).astype(np.float32)
        made[f"greedy_{row}"] = rng.integers(0, 9, parity.NEW_TOKENS)
        if images:
            made[f"features_{row}"] = rng.normal(size=(6, 5)).astype(np.float32)
    return made


@pytest.fixture
def played(monkeypatch):
    """main() with torch's part and ours replaced: both return `outputs`, ours changed by what the test says."""
    monkeypatch.setattr(check_parity, "installed", lambda package: True)
    expected = outputs(np.random.default_rng(0))
    rounded = {name: x + 0.01 if name.startswith(("logits", "features")) else x for name, x in expected.items()}
    monkeypatch.setattr(
        check_parity,
        "reference",
        lambda directory, inputs, rows, dtype="float32": {"float32": expected}.get(dtype, rounded),
    )

    def run(path, change, *arguments):
        found = {name: change(name, x) for name, x in expected.items()}
        monkeypatch.setattr(check_parity, "ours", lambda *_: found)
        return check_parity.main([f"--checkpoint={path}", *arguments])

    return run


def added(what: str, by: float):
    return lambda name, x: x + by if name == what else x


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (lambda name, x: x, ""),
        (added("logits_1 image", 5e-5), ""),
        (added("logits_1 image", 1e-3), "logits (1 image)"),
        (added("features_3 images", 1e-3), "features (3 images)"),
        (added("greedy_no image", 1), "greedy (no image)"),
        (added("logits_no image", math.nan), "logits (no image)"),
    ],
)
def test_float32_fails_over_tolerance_and_names_what(checkpoint, played, capsys, change, failed):
    assert played(checkpoint, change) == bool(failed)
    *table, last = capsys.readouterr().out.splitlines()
    assert last == (f"FAILED: {failed}" if failed else "parity: all within tolerance")
    assert [line.count("FAILED") for line in table].count(1) == bool(failed)
    assert len(table) == 2 + 8  # a line about the folder, the head, and 8 outputs


@pytest.mark.parametrize(("by", "over"), [(0.015, False), (0.05, True)])
def test_bfloat16_is_measured_by_torchs_own_rounding(checkpoint, played, capsys, by, over):
    assert played(checkpoint, added("logits_1 image", by), "--dtype=bfloat16") == over
    assert ("FAILED: logits (1 image)" in capsys.readouterr().out) == over
    assert (
        played(checkpoint, added("greedy_1 image", 1), "--dtype=bfloat16") == 0
    )  # rounding decides between close tokens


def test_bfloat16_positions_must_still_be_equal():
    limits = check_parity.bfloat16_limits({"logits_1 image": 0.01, "positions_1 image": 0.0, "greedy_1 image": 3.0})
    rows = check_parity.judge({"positions_1 image": 1.0, "logits_1 image": 0.02, "greedy_1 image": 9.0}, limits)
    assert [(output, within) for _, output, _, _, within in rows] == [
        ("positions", False),
        ("logits", True),
        ("greedy", True),
    ]


def test_close_tokens_count_as_equal_and_others_do_not():
    logits = np.array([[1.0, 1.1, 0.0], [1.0, 1.3, 0.0], [0.0, 0.0, 5.0]])
    assert parity.choose(logits, np.array([0, 0, 2]), 0.2).tolist() == [0, 1, 2]
    assert parity.choose(logits, np.array([0, 1, 2]), 0.0).tolist() == [1, 1, 2]


@pytest.mark.parametrize("seed", [0, 1])
def test_prompts_have_text_around_their_images(checkpoint, seed):
    config = hf.read_config(checkpoint)
    made = check_parity.make_inputs(config, None, seed)
    for row, images in check_parity.ROWS.items():
        prompt = made[f"prompt_{row}"]
        assert 0 <= prompt.min() <= prompt.max() < config.text.vocab_size
        image = np.concatenate([[0], prompt == config.image_token_id, [0]]).astype(int)
        starts, ends = (np.flatnonzero(np.diff(image) == sign) for sign in (1, -1))
        views = [made[f"view_{i}"] for i in images]
        if config.position_grids is None:
            expected = [config.tokens_per_image for _ in views]
        else:
            expected = [math.prod(config.grid(*view.shape[:2])) for view in views]
        assert (ends - starts).tolist() == expected
        assert image[1] == image[-2] == 0  # a prompt begins and ends with text


def test_prompts_are_the_folders_own_text_where_it_has_a_tokenizer():
    directory = folder("asset:tiny_internvl")
    config, tokenizer = hf.read_config(directory), load_tokenizer(directory)
    assert check_parity.find_tokenizer(directory, config.text.vocab_size).size == tokenizer.size
    assert check_parity.find_tokenizer(directory, tokenizer.size - 1) is None
    made = check_parity.make_inputs(config, tokenizer, 0)
    said = tokenizer.decode(made["prompt_1 image"])
    assert said == check_parity.TEXTS[1] + "<img>" + "<IMG_CONTEXT>" * 16 + "</img>" + check_parity.TEXTS[3]
    assert tokenizer.decode(made["prompt_no image"]) == check_parity.TEXTS[3]


def test_a_folder_without_image_settings_is_completed_beside_it(checkpoint, tmp_path_factory):
    spare = tmp_path_factory.mktemp("spare")
    assert check_parity.complete(checkpoint, spare) == checkpoint
    expected = hf.read_config(checkpoint)
    (checkpoint / "preprocessor_config.json").unlink()
    assert check_parity.complete(checkpoint, spare) == spare
    found = hf.read_config(spare)
    assert (found.image_mean, found.image_std) == ((0.5,) * 3, (0.5,) * 3)
    assert (found.vision, found.text) == (expected.vision, expected.text)
    assert not (checkpoint / "preprocessor_config.json").exists()


def test_what_stands_in_the_way_is_said_in_one_line(checkpoint, monkeypatch, capsys, tmp_path):
    def error(path):
        assert check_parity.main([f"--checkpoint={path}"]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        return said.err

    assert "not a folder" in error(tmp_path / "nowhere")
    monkeypatch.setattr(check_parity, "installed", lambda package: package != "torch")
    assert "torch not installed: pip install torch" in error(checkpoint)
    (checkpoint / "preprocessor_config.json").unlink()
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "llava"}))
    said = error(checkpoint)
    assert f"{checkpoint}/config.json: model_type is 'llava'; supported: ['internvl'" in said
    (checkpoint / "config.json").unlink()
    assert f"{checkpoint} holds no config.json" in error(checkpoint)


def test_the_command_line_is_checked(capsys):
    for arguments in ([], ["--checkpoint=x", "--dtype=int8"], ["--checkpoint=x", "--seed=a"]):
        with pytest.raises(SystemExit, match="2"):
            check_parity.main(arguments)
    with pytest.raises(SystemExit, match="0"):
        check_parity.main(["--help"])
    said = capsys.readouterr().out
    assert all(word in said for word in ("--checkpoint", "--dtype", "--seed", "internvl", "qwen3_vl", "bfloat16"))
