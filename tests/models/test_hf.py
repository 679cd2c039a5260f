import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import make_goldens
import ml_dtypes
import numpy as np
import parity
import pytest
import safetensors
import safetensors.numpy
from flax import nnx

from mvg_jax.models import hf, hf_layout
from mvg_jax.models.config import tiny
from mvg_jax.models.internvl import InternVL

ROOT = pathlib.Path(__file__).parents[2]

CASES = tuple(make_goldens.CASES)
EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
NORM = "language_model.model.norm.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, tuple[pathlib.Path, dict[str, np.ndarray]]]:
    """Of each case the checkpoint folder and the golden."""
    made = {}
    for case in CASES:
        made[case] = tmp_path_factory.mktemp(case), dict(np.load(ROOT / "tests" / "goldens" / f"{case}.npz"))
        make_goldens.write_folder(*made[case])
    return made


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of the tied checkpoint, to be spoilt."""
    return shutil.copytree(folders["internvl_tied_relu"][0], tmp_path / "checkpoint")


def _edit(path: pathlib.Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _edit_weights(folder: pathlib.Path, change) -> None:
    weights = safetensors.numpy.load_file(folder / hf.WEIGHTS)
    change(weights)
    safetensors.numpy.save_file(weights, folder / hf.WEIGHTS)


def _parameters(model: nnx.Module) -> dict[hf.Path, np.ndarray]:
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_transformers(folders, case):
    """Features and logits within 1e-4 of the largest value; greedy tokens equal.

    Given the prompt and the first n greedy tokens of transformers, ours must choose its next one, for every n: by
    induction both generate the same 32.
    """
    folder, golden = folders[case]
    found = parity.ours(folder, golden, make_goldens.ROWS, golden)
    assert found.keys() == {name for name in golden if name.startswith(make_goldens.OUTPUTS)}
    for name, difference in parity.differences(found, golden).items():
        assert found[name].shape == golden[name].shape
        assert difference <= (0 if name.startswith(parity.EXACT) else 1e-4), name
    assert len(set(golden["greedy_0"].tolist())) >= 5  # a golden that repeats one token would prove little


@pytest.mark.parametrize("case", CASES)
def test_what_was_read_is_written_back_bit_for_bit(folders, case, tmp_path):
    folder, _ = folders[case]
    hf.save(hf.load(folder, jnp.float32), tmp_path, dtype=jnp.float32, end_of_turn=7, pad=3)
    before, after = (safetensors.numpy.load_file(path / hf.WEIGHTS) for path in (folder, tmp_path))
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes(), name
    assert hf.read_config(tmp_path) == hf.read_config(folder)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": 7, "pad_token_id": 3}


@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_the_written_settings(folders, case, tmp_path):
    import transformers

    folder, golden = folders[case]
    hf.save(hf.load(folder, jnp.float32), tmp_path, dtype=jnp.float32, end_of_turn=7, pad=3)
    ours, theirs = (transformers.AutoConfig.from_pretrained(path, local_files_only=True) for path in (tmp_path, folder))
    internvl = make_goldens.family(case) == make_goldens.INTERNVL
    vision = make_goldens.VISION if internvl else make_goldens.QWEN_VISION
    for section, fields in (("text_config", make_goldens.TEXT | make_goldens.CASES[case]["text"]),
                            ("vision_config", vision | make_goldens.CASES[case]["vision"])):  # fmt: skip
        for field in set(fields) - {"rope_parameters"}:
            if not field.endswith("token_id"):
                value = getattr(getattr(ours, section), field)
                expected = getattr(getattr(theirs, section), field)
                assert value == expected or list(value) == list(expected), field
    for field, value in theirs.text_config.rope_parameters.items():
        assert ours.text_config.rope_parameters[field] == value, field
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    if not internvl:
        for field in make_goldens.QWEN_TOP:
            assert getattr(ours, field) == getattr(theirs, field), field
        return
    assert ours.image_seq_length == theirs.image_seq_length
    processor = transformers.GotOcr2ImageProcessorPil.from_pretrained(tmp_path)
    views = np.stack([golden[f"view_{i}"] for i in range(3)])
    pixels = processor(list(views), return_tensors="np")["pixel_values"]
    config = hf.read_config(tmp_path)
    expected = (views / 255.0 - config.image_mean) / config.image_std
    np.testing.assert_allclose(pixels, expected.transpose(0, 3, 1, 2), atol=1e-5)


@pytest.mark.parametrize("case", ["internvl_qwen3", "qwen2_5_vl_untied"])
def test_the_names_in_memory_of_transformers_are_read_too(folders, case, tmp_path):
    folder, _ = folders[case]
    again = shutil.copytree(folder, tmp_path / "checkpoint")

    def rename(weights):
        for old, new in hf.FAMILIES[make_goldens.family(case)].renamed:
            for name in [name for name in weights if name.startswith(new) and not name.startswith(old)]:
                weights[old + name.removeprefix(new)] = weights.pop(name)

    _edit_weights(again, rename)
    assert hf.read_config(again) == hf.read_config(folder)
    before, after = _parameters(hf.load(folder, jnp.float32)), _parameters(hf.load(again, jnp.float32))
    for path, array in before.items():
        np.testing.assert_array_equal(array, after[path])


def test_the_flat_config_of_the_first_qwen2_5_vl(folders, tmp_path):
    folder, _ = folders["qwen2_5_vl_tied"]
    older = shutil.copytree(folder, tmp_path / "checkpoint")

    def flatten(config):
        text = config.pop("text_config")
        rope = text.pop("rope_parameters")
        config |= {key: value for key, value in text.items() if key not in ("model_type", "tie_word_embeddings")}
        config |= {
            "rope_theta": rope["rope_theta"],
            "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        }
        config["vision_config"]["in_chans"] = config["vision_config"].pop("in_channels")

    _edit(older / "config.json", flatten)
    assert hf.read_config(older) == hf.read_config(folder)


@pytest.mark.parametrize(
    ("case", "section", "field", "value", "said"),
    [
        ("qwen2_5_vl_tied", "vision_config", "depth", 2, "vision_config.depth is 2"),
        ("qwen2_5_vl_tied", "vision_config", "patch_size", 8, "vision_config.patch_size is 8"),
        ("qwen2_5_vl_tied", "vision_config", "out_hidden_size", 40, "vision_config.out_hidden_size is 40"),
        ("qwen2_5_vl_tied", "vision_config", "temporal_patch_size", 1, "vision_config.temporal_patch_size is 1"),
        ("qwen2_5_vl_tied", "text_config", "hidden_size", 40, "out_hidden_size is 32"),
        (
            "qwen3_vl_tied",
            "vision_config",
            "deepstack_visual_indexes",
            [1],
            "deepstack_visual_indexes (their number) is 1",
        ),
        ("qwen3_vl_tied", "vision_config", "num_position_embeddings", 36, "num_position_embeddings is 36"),
        ("qwen2_5_vl_tied", "text_config", "rope_parameters", {"mrope_section": [4, 4, 4]}, "mrope_section [4, 4, 4]"),
        (
            "qwen3_vl_tied",
            "vision_config",
            "deepstack_visual_indexes",
            [0, 3],
            "deepstack_visual_indexes is [0, 3]; they",
        ),
        (
            "qwen3_vl_tied",
            "vision_config",
            "deepstack_visual_indexes",
            [1, 1],
            "deepstack_visual_indexes is [1, 1]; they",
        ),
        ("qwen3_vl_tied", "vision_config", "num_heads", 4, "hidden_size is 24; it must be a multiple of 4 * num_heads"),
        ("qwen3_vl_tied", "vision_config", "in_channels", 1, "vision_config.in_channels is 1"),
        ("qwen3_vl_tied", "vision_config", "hidden_act", "mish", "vision_config.hidden_act is 'mish'"),
        (
            "qwen3_vl_tied",
            "vision_config",
            "rope_parameters",
            {"rope_type": "yarn"},
            "rope_parameters.rope_type is 'yarn'",
        ),
        ("qwen2_5_vl_tied", "vision_config", "window_size", 4, "vision_config.window_size is 4; a window must hold"),
        ("qwen2_5_vl_tied", None, "image_token_id", 96, "image_token_id is 96, but text_config.vocab_size is 96"),
        ("qwen3_vl_tied", None, "vision_config", None, "lacks vision_config"),
        ("qwen3_vl_tied", None, "model_type", "qwen3_vl_moe", "model_type is 'qwen3_vl_moe'"),
    ],
)
def test_a_qwen_config_that_does_not_fit_names_the_field(folders, tmp_path, case, section, field, value, said):
    folder = shutil.copytree(folders[case][0], tmp_path / "checkpoint")

    def spoil(config):
        (config if section is None else config[section])[field] = value

    _edit(folder / "config.json", spoil)
    with pytest.raises(hf.HFLayoutError, match=re.escape(said)):
        hf.load(folder, jnp.float32)


def test_the_tiny_model_is_a_legal_checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(lambda: InternVL(tiny(128, image_token_id=100), nnx.Rngs(0))))
    model = nnx.merge(graph, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), state))
    hf.save(model, tmp_path, dtype=jnp.float32, end_of_turn=7, pad=3)
    assert hf.read_config(tmp_path) == model.config
    again = _parameters(hf.load(tmp_path, jnp.float32))
    for path, array in _parameters(model).items():
        np.testing.assert_array_equal(array, again[path])


def test_sharded_files_read_like_one(folders, tmp_path):
    folder, _ = folders["internvl_untied_silu_qknorm"]
    model = hf.load(folder, jnp.float32)
    hf.save(model, tmp_path, dtype=jnp.float32, end_of_turn=7, pad=3, max_shard_bytes=20_000)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert not (tmp_path / hf.WEIGHTS).exists()
    index = json.loads((tmp_path / hf.INDEX).read_text())
    assert index["metadata"]["total_size"] == 4 * sum(array.size for array in _parameters(model).values())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    again = _parameters(hf.load(tmp_path, jnp.float32))
    for path, array in _parameters(model).items():
        np.testing.assert_array_equal(array, again[path])

    files[1].rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=files[1].name):
        hf.load(tmp_path, jnp.float32)
    # Saving over it in one file leaves no shard behind.
    hf.save(model, tmp_path, dtype=jnp.float32, end_of_turn=7, pad=3)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == [hf.WEIGHTS]


def test_bfloat16_halves_the_file_and_rounds_once(folders, tmp_path):
    folder, _ = folders["internvl_tied_relu"]
    model = hf.load(folder, jnp.float32)
    hf.save(model, tmp_path, dtype=jnp.bfloat16, end_of_turn=7, pad=3)
    with safetensors.safe_open(tmp_path / hf.WEIGHTS, framework="np") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118 - not a mapping
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    wide, narrow = _parameters(hf.load(tmp_path, jnp.float32)), _parameters(hf.load(tmp_path, jnp.bfloat16))
    for path, array in _parameters(model).items():
        rounded = array.astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(narrow[path], rounded)
        np.testing.assert_array_equal(wide[path], rounded.astype(np.float32))
    with pytest.raises(ValueError, match="int8"):
        hf.save(model, tmp_path, dtype=jnp.int8, end_of_turn=7, pad=3)


@pytest.mark.parametrize("case", ["internvl_qwen3", "qwen2_5_vl_tied", "qwen3_vl_tied"])
def test_weights_in_bfloat16_compute_in_bfloat16_up_to_the_logits(folders, case):
    folder, golden = folders[case]
    graph, state = nnx.split(hf.load(folder, jnp.bfloat16))

    def forward(state, tokens, views):
        model = nnx.merge(graph, state)
        features = model.encode_images(views)
        length = jnp.full(1, tokens.shape[1])
        hidden, cache = model.decode(
            model.embed(tokens, features[None]), model.positions(tokens, length, 0 * length)[0]
        )
        return (features, hidden, cache.keys, cache.values), model.logits(hidden)

    inside, logits = jax.eval_shape(forward, state, golden["prompt_1"][None], golden["view_1"][None])
    assert {leaf.dtype for leaf in jax.tree.leaves(inside)} == {jnp.dtype(jnp.bfloat16)}
    assert logits.dtype == jnp.float32


def test_each_parameter_is_placed_once_as_it_is_read(folder):
    seen = {}

    def place(path, array):
        assert path not in seen
        assert array.dtype == jnp.bfloat16
        assert array.flags.c_contiguous
        seen[path] = array.shape
        return jnp.asarray(array)

    model = hf.load(folder, jnp.bfloat16, place)
    assert seen == {path: array.shape for path, array in _parameters(model).items()}


def test_layouts_are_their_own_way_back():
    rng = np.random.default_rng(0)
    film = rng.normal(size=(5, 3, 2, 4, 4))
    np.testing.assert_array_equal(hf_layout.FILMS.to_disk(hf_layout.FILMS.to_ours(film)), film)
    conv = rng.normal(size=(5, 3, 2, 2))
    kernel = hf_layout.PATCHES.to_ours(conv)
    np.testing.assert_array_equal(hf_layout.PATCHES.to_disk(kernel), conv)
    # A patch [kh, kw, 3] flattened times the kernel is the convolution at that patch.
    patch = rng.normal(size=(2, 2, 3))
    np.testing.assert_allclose(patch.reshape(-1) @ kernel, np.einsum("hwc,dchw->d", patch, conv))


def test_a_parameter_without_a_name_is_a_programming_error():
    with pytest.raises(KeyError, match="new_part"):
        hf.disk_names(hf.FAMILIES["internvl"].names, {("language_model", "layers", 0, "new_part", "kernel"): (2, 2)})


def test_all_that_is_wrong_with_the_tensors_is_said_at_once(folder):
    def spoil(weights):
        del weights["multi_modal_projector.linear_1.bias"], weights[NORM]
        weights["stray.weight"] = np.zeros(3, np.float32)
        weights["vision_tower.encoder.layer.1.lambda_1"] = np.zeros((5, 1), np.float32)

    _edit_weights(folder, spoil)
    with pytest.raises(hf.HFLayoutError) as error:
        hf.load(folder, jnp.float32)
    said = str(error.value)
    assert str(folder) in said
    for part in ("2 missing: " + NORM + ", multi_modal_projector.linear_1.bias", "1 unexpected: stray.weight",
                 "vision_tower.encoder.layer.1.lambda_1 (5, 1) instead of (24,)"):  # fmt: skip
        assert part in said


@pytest.mark.parametrize(
    ("section", "field", "value", "said"),
    [
        ("text_config", "vocab_size", 97, "text_config.vocab_size is 97"),
        ("text_config", "hidden_size", 64, "text_config.hidden_size is 64"),
        ("text_config", "intermediate_size", 50, "text_config.intermediate_size is 50"),
        ("text_config", "num_hidden_layers", 3, "text_config.num_hidden_layers is 3"),
        ("text_config", "num_hidden_layers", 1, "text_config.num_hidden_layers is 1"),
        ("text_config", "head_dim", 16, "text_config.num_attention_heads * head_dim is 64"),
        ("text_config", "num_key_value_heads", 1, "text_config.num_key_value_heads * head_dim is 8"),
        ("vision_config", "hidden_size", 32, "vision_config.hidden_size is 32"),
        ("vision_config", "num_hidden_layers", 1, "vision_config.num_hidden_layers is 1"),
        ("vision_config", "intermediate_size", 50, "vision_config.intermediate_size is 50"),
        ("vision_config", "patch_size", [16, 16], "vision_config.patch_size is 16"),
        ("vision_config", "image_size", [64, 64], "vision_config.image_size (patches a view) is 64"),
        (None, "downsample_ratio", 0.25, "downsample_ratio (channels a token) is 384"),
        (None, "tie_word_embeddings", False, f"tie_word_embeddings is False, but there is no {HEAD}"),
    ],
)
def test_a_config_that_contradicts_the_tensors_names_the_field(folder, section, field, value, said):
    def spoil(config):
        (config if section is None else config[section])[field] = value

    _edit(folder / "config.json", spoil)
    with pytest.raises(hf.HFLayoutError, match="config.json contradicts the weights: .*" + re.escape(said)):
        hf.load(folder, jnp.float32)


def test_tied_embeddings_need_no_head_and_allow_only_their_copy(folder):
    expected = _parameters(hf.load(folder, jnp.float32))
    _edit_weights(folder, lambda weights: weights.update({HEAD: weights[EMBEDDING]}))
    found = _parameters(hf.load(folder, jnp.float32))
    assert found.keys() == expected.keys()
    for head in (lambda x: x + (np.arange(len(x)) == 95)[:, None], lambda x: x[:-1]):
        _edit_weights(folder, lambda weights: weights.update({HEAD: head(weights[EMBEDDING])}))  # noqa: B023
        with pytest.raises(hf.HFLayoutError, match=rf"tie_word_embeddings is True, but {re.escape(HEAD)} is not"):
            hf.load(folder, jnp.float32)
    _edit_weights(folder, lambda weights: weights.update({HEAD: weights[EMBEDDING]}))
    # A config that does not say takes what the files hold.
    for section in (lambda config: config, lambda config: config["text_config"]):
        _edit(folder / "config.json", lambda config: section(config).pop("tie_word_embeddings", None))  # noqa: B023
    assert hf.load(folder, jnp.float32).lm_head is not None


@pytest.mark.parametrize(
    ("section", "field", "value", "said"),
    [
        (None, "model_type", "blip", "model_type is 'blip'; supported: ['internvl', 'qwen2_5_vl', 'qwen3_vl']"),
        (None, "vision_feature_layer", -2, "vision_feature_layer is -2"),
        (None, "text_config", None, "lacks text_config"),
        ("text_config", "model_type", "qwen3_moe", "text_config.model_type is 'qwen3_moe'"),
        ("text_config", "use_sliding_window", True, "text_config.use_sliding_window is True"),
        (
            "text_config",
            "layer_types",
            ["full_attention", "sliding_attention"],
            "layer_types holds ['sliding_attention']",
        ),
        ("text_config", "mlp_bias", True, "text_config.mlp_bias is True"),
        ("text_config", "partial_rotary_factor", 0.5, "text_config.partial_rotary_factor is not 1"),
        ("text_config", "rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling has rope_type 'linear'"),
        ("text_config", "rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}, "rope_type 'yarn'"),
        ("text_config", "rope_parameters", {"rope_type": "llama3", "factor": 8.0}, "rope_type 'llama3'"),
        ("text_config", "rope_scaling", {"rope_type": "longrope"}, "text_config.rope_scaling has rope_type 'longrope'"),
        ("text_config", "rope_parameters", {"full_attention": {"rope_theta": 1e4}}, "rope_parameters differs between"),
        ("text_config", "hidden_act", "mish", "text_config.hidden_act is 'mish'"),
        (
            "text_config",
            "num_key_value_heads",
            3,
            "num_attention_heads is 4; it must be a multiple of num_key_value_heads (3)",
        ),
        (None, "projector_hidden_act", "mish", "projector_hidden_act is 'mish'"),
        (None, "downsample_ratio", 0.4, "downsample_ratio is 0.4"),
        ("vision_config", "image_size", [40, 40], "vision_config.image_size is [40, 40]; it must be a multiple of"),
        ("vision_config", "num_attention_heads", 5, "vision_config.hidden_size is 24; it must be a multiple of"),
        ("vision_config", "use_mask_token", True, "vision_config.use_mask_token is True"),
        ("vision_config", "norm_type", "group_norm", "vision_config.norm_type is 'group_norm'"),
        ("vision_config", "image_size", [32, 64], "vision_config.image_size is [32, 64]"),
    ],
)
def test_what_we_cannot_run_is_refused_by_name(folder, section, field, value, said):
    def spoil(config):
        (config if section is None else config[section])[field] = value

    _edit(folder / "config.json", spoil)
    with pytest.raises(hf.HFLayoutError, match=re.escape(said)):
        hf.load(folder, jnp.float32)


def test_a_field_without_default_is_asked_for(folder):
    _edit(folder / "config.json", lambda config: config["text_config"].pop("num_key_value_heads"))
    with pytest.raises(hf.HFLayoutError, match=r"lacks text_config\.num_key_value_heads"):
        hf.load(folder, jnp.float32)


def test_version_4_spelling_of_rope(folder):
    expected = hf.read_config(folder)

    def older(config):
        text = config["text_config"]
        del text["rope_parameters"]
        text |= {"rope_theta": 123.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}}

    _edit(folder / "config.json", older)
    assert hf.read_config(folder).text.rope_theta == 123.0
    _edit(folder / "config.json", lambda config: config["text_config"].pop("rope_theta"))
    assert hf.read_config(folder) == expected  # transformers' own default


def test_image_processor_settings_in_the_combined_file(folder):
    expected = hf.read_config(folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"processor_config\.json"):
        hf.read_config(folder)
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert hf.read_config(folder) == expected
    (folder / "processor_config.json").write_text("{}")
    with pytest.raises(hf.HFLayoutError, match="image_mean"):
        hf.read_config(folder)


@pytest.mark.parametrize("file", ["config.json", hf.WEIGHTS])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"{folder} holds no {file}")):
        hf.load(folder, jnp.float32)


@pytest.mark.parametrize("case", ["qwen2_5_vl_tied", "qwen3_vl_tied"])
def test_what_is_wrong_with_a_qwen_file_is_said_at_once(folders, tmp_path, case):
    folder = shutil.copytree(folders[case][0], tmp_path / "checkpoint")
    names = json.loads(str(folders[case][1]["tensors"]))
    missing = next(name for name in names if name.endswith("blocks.1.attn.proj.bias"))
    bent = next(name for name in names if name.endswith("blocks.2.attn.qkv.bias"))

    def spoil(weights):
        del weights[missing]
        weights["stray.weight"] = np.zeros(3, np.float32)
        weights[bent] = np.zeros(5, np.float32)

    _edit_weights(folder, spoil)
    with pytest.raises(hf.HFLayoutError) as error:
        hf.load(folder, jnp.float32)
    for part in (str(folder), f"1 missing: {missing}", "1 unexpected: stray.weight", f"{bent} (5,) instead of (72,)"):
        assert part in str(error.value)
    (folder / hf.WEIGHTS).write_bytes((folder / hf.WEIGHTS).read_bytes()[:-1])
    with pytest.raises(hf.HFLayoutError, match=re.escape(f"{folder / hf.WEIGHTS} is damaged or cut short")):
        hf.load(folder, jnp.float32)


@pytest.mark.parametrize("keep", [0, 5, 2000, -1])
def test_a_truncated_file_is_named(folder, keep):
    weights = folder / hf.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(hf.HFLayoutError, match=re.escape(f"{weights} is damaged or cut short")):
        hf.load(folder, jnp.float32)


def test_a_broken_config_is_named(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(hf.HFLayoutError, match=r"config\.json is not JSON"):
        hf.load(folder, jnp.float32)


def test_integer_weights_are_refused(folder):
    _edit_weights(folder, lambda weights: weights.update({NORM: weights[NORM].astype(np.int32)}))
    with pytest.raises(hf.HFLayoutError, match=rf"{re.escape(NORM)} is of type I32"):
        hf.load(folder, jnp.float32)
