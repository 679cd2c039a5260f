"""What only an accelerator can show, step by step, each in a process of its own; the table of results comes last.

    bash scripts/accelerator_check.sh [WHEELS]      (sets the paths; see there)
    PYTHONPATH=.:scripts python scripts/accelerator_check.py --only=loop,memory

On a CPU the same steps run on small shapes, which checks this script and nothing else.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import types

BUDGET_SECONDS = 8 * 60


def provide_config_dict() -> None:
    """Where ml_collections is not installed, what the config files need of it: a dictionary with attributes."""
    try:
        import ml_collections  # noqa: F401
    except ImportError:

        class ConfigDict(dict):
            __getattr__ = dict.__getitem__
            __setattr__ = dict.__setitem__

            def __init__(self, values):
                super().__init__({k: ConfigDict(v) if isinstance(v, dict) else v for k, v in values.items()})

            def to_dict(self):
                return {k: v.to_dict() if isinstance(v, ConfigDict) else v for k, v in self.items()}

        module = types.ModuleType("ml_collections")
        module.ConfigDict = ConfigDict
        module.config_flags = types.SimpleNamespace(DEFINE_config_file=lambda *_, **__: None)
        sys.modules["ml_collections"] = module


# ---- steps: each returns (passed, what to print) ------------------------------------------------------------------------


def step_loop() -> tuple[bool, str]:
    """The embedded experiment: GRPO on PhantomVQA, then greedy evaluation; sampler and learner must agree."""
    import jax

    from configs import tiny
    from mvg_jax import config as configs
    from mvg_jax.compiles import CompileCount
    from mvg_jax.evaluation import Results, evaluate, evaluation_parts
    from mvg_jax.experiment import build
    from mvg_jax.train import warm_up

    jax.config.update("jax_default_matmul_precision", "highest")
    config = configs.from_dict(tiny.get_config().to_dict())
    steps, tasks = (80, 256) if accelerated() else (2, 8)
    experiment, params = build(config)
    stage = experiment.grpo_stage(params)
    state, source = (
        stage.start(params),
        experiment.tasks.source("phantom", "train", config.data.first, steps * config.rollout.prompts),
    )
    warm_up(stage, state, experiment)
    gaps, seconds, warm, compiles = [], [], 0, CompileCount()
    for number in range(1, steps + 1):
        batch = [source[(number - 1) * config.rollout.prompts + p] for p in range(config.rollout.prompts)]
        start = time.perf_counter()
        state, metrics = stage.step(state, number, batch)
        gaps.append(float(metrics["logprob_gap"]))
        seconds.append(time.perf_counter() - start)
        warm = compiles.count if number == 1 else warm
    late = compiles.count - warm
    held_out = [experiment.tasks.source("phantom", "val", 0, tasks)[i] for i in range(tasks)]
    predictions = evaluate(
        *evaluation_parts(experiment), state.params, held_out, temperature=0.0, seed=0, tools_on=True
    )
    accuracy, median = Results.of(predictions).summary()["accuracy/needed"], sorted(seconds)[len(seconds) // 2]
    passed = max(gaps) <= 1e-4 and late == 0 and (not accelerated() or accuracy >= 0.85)
    return passed, (
        f"{steps} steps of {median:.3f} s, accuracy {accuracy:.3f} where a tool is needed, log-prob gap {max(gaps):.1e}, "
        f"{late} programs compiled after the first step"
    )


def step_parity() -> tuple[bool, str]:
    """Every family against torch: float32 at highest matmul precision, and bfloat16 beside torch's own."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from mvg_jax.models import hf
    from mvg_jax.models.config import SHAPES, with_tokens

    side = 512 if accelerated() else 64
    said, passed = [], True
    for name in ("internvl3_1b", "qwen2_5_vl_7b", "qwen3_vl_8b"):
        config = with_tokens(shrunk(SHAPES[name](), side), 0, 5)
        if config.model_type != "internvl":
            config = dataclasses.replace(config, vision_start_token_id=6, vision_end_token_id=7, video_token_id=8)
        with tempfile.TemporaryDirectory() as directory:
            model = hf.FAMILIES[config.model_type].model(config, nnx.Rngs(0))
            hf.save(model, directory, dtype=jnp.float32, end_of_turn=1, pad=0)
            for dtype in ("float32", "bfloat16"):
                command = [sys.executable, "scripts/check_parity.py", f"--checkpoint={directory}", f"--dtype={dtype}"]
                environment = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                print(done.stdout + done.stderr[-2000:], flush=True)
                passed &= done.returncode == 0
                said.append(f"{config.model_type} {dtype} {'ok' if done.returncode == 0 else 'FAILED'}")
    return passed, ", ".join(said) + f" ({jax.devices()[0].device_kind})"


def step_load_save() -> tuple[bool, str]:
    """The 8B shape with random bfloat16 weights: written, read back, equal; memory of the host beyond the model."""
    import shutil

    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx
    from rollout_work import random_model

    from mvg_jax.models import hf
    from mvg_jax.models.config import SHAPES, with_tokens

    config = SHAPES["internvl3_8b"]() if accelerated() else with_tokens(shrunk(SHAPES["internvl3_8b"](), 64), 0, 5)
    model = random_model(config, jnp.bfloat16)
    size = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model)))
    with tempfile.TemporaryDirectory() as directory:
        free = shutil.disk_usage(directory).free
        if free < 1.1 * size:
            return False, f"{size / 1e9:.1f} GB of weights do not fit the {free / 1e9:.1f} GB free in {directory}"
        start = time.perf_counter()
        hf.save(model, directory, dtype=jnp.bfloat16, end_of_turn=1, pad=0)
        written = time.perf_counter() - start
        sums = [float(x) for x in jax.tree.leaves(fingerprint(nnx.state(model)))]
        largest = max(x.nbytes for x in jax.tree.leaves(nnx.state(model)))
        del model
        with AnonymousMemory() as memory:
            start = time.perf_counter()
            loaded = nnx.state(hf.load(directory, jnp.bfloat16))
            jax.block_until_ready(jax.tree.leaves(loaded))
            read = time.perf_counter() - start
        equal = np.array_equal(sums, [float(x) for x in jax.tree.leaves(fingerprint(loaded))])
    beside = memory.grown - (0 if accelerated() else size)
    return equal and beside <= largest + 1e9, (
        f"{size / 1e9:.2f} GB: save {written:.1f} s ({size / written / 1e9:.2f} GB/s), load {read:.1f} s "
        f"({size / read / 1e9:.2f} GB/s), weights {'equal' if equal else 'DIFFER'}, "
        f"host memory beside the model {beside / 1e9:.2f} GB (largest tensor {largest / 1e9:.2f})"
    )


def step_memory() -> tuple[bool, str]:
    """Peak memory of a GRPO step of a 1B model beside what the planner says; it must not promise too little."""
    import jax

    config = real_config("internvl3_1b")
    with tempfile.TemporaryDirectory() as directory:
        plan = pathlib.Path(directory) / "plan.json"
        code = (
            "import json, accelerator_check as a; a.provide_config_dict(); import mvg_jax.plan as p; p.pretend_devices(1); "
            "c = a.real_config('internvl3_1b'); m = p.estimate(c, p.model_shape(c)); "
            f"open({str(plan)!r}, 'w').write(json.dumps([m.rollout, m.update]))"
        )
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
        promised = max(json.loads(plan.read_text()))
    seconds = run_steps(config, 2)
    statistics = jax.devices()[0].memory_stats() or {}
    peak = statistics.get("peak_bytes_in_use")
    if peak is None:
        return not accelerated(), f"planned {promised / 2**30:.2f} GiB; this device does not tell its peak"
    return promised >= peak, (
        f"planned {promised / 2**30:.2f} GiB, peak {peak / 2**30:.2f} GiB, ratio {promised / peak:.2f}; step {seconds[-1]:.2f} s"
    )


def step_benchmark() -> tuple[bool, str]:
    """Sampled tokens a second: the embedded model, and the 1B shape with random weights."""
    import bench_rollout
    import rollout_work

    from configs import tiny
    from mvg_jax import config as configs

    said = []
    cases = {"tiny": configs.from_dict(tiny.get_config().to_dict()), "internvl3_1b": real_config("internvl3_1b")}
    for name, config in cases.items():
        figures = bench_rollout.measure(rollout_work.natural(config), 3 if accelerated() else 1)
        said.append(
            f"{name} {figures['tokens_per_second']:,.0f} tokens/s, decode at {figures['floor_share/decode']:.2f} of its floor, "
            f"goodput {figures['goodput']:.2f}, {figures['compiles_after_warmup']} compiles"
        )
    return True, "; ".join(said)


def step_rollout() -> tuple[bool, str]:
    """Rollouts of the 8B shape with random weights, fixed work, the kernels that are fastest here; their floors, and transformers."""
    import bench_rollout
    import rollout_work

    small = {"rows": 4, "group": 2, "prompt_tokens": 80, "observation_tokens": 48, "turn_tokens": 4}
    large = {"rows": 64, "group": 8, "prompt_tokens": 600, "observation_tokens": 300, "turn_tokens": 128}
    work = rollout_work.Work(**(large if accelerated() else small))
    config = real_config("internvl3_8b")
    kernels = fastest_kernels("internvl3_8b")
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, **kernels))
    setting = rollout_work.fixed(config, work)
    figures = bench_rollout.measure(setting, 3 if accelerated() else 1, ("transformers",))
    bench_rollout.show(figures)
    least = {
        "floor_share/decode": 0.7,
        "floor_share/prefill": 0.5,
        "floor_share/encode": 0.35,
        "tokens_per_second": 2000,
    }
    passed = figures["compiles_after_warmup"] == 0
    passed &= not accelerated() or all(figures[name] >= value for name, value in least.items())
    return passed, (
        f"{', '.join(f'{name} {kernel}' for name, kernel in kernels.items())}; {figures['tokens_per_second']:,.0f} tokens/s, "
        f"{figures['ratio/transformers']:.2f} times transformers; share of the floor: "
        + ", ".join(
            f"{name} {figures[f'floor_share/{name}']:.2f}" for name in ("encode", "prefill", "extend", "decode")
        )
        + f"; KV cache {figures['kv_bytes'] / 1e9:.2f} GB"
    )


STEPS = {
    "loop": step_loop,
    "parity": step_parity,
    "load_save": step_load_save,
    "memory": step_memory,
    "benchmark": step_benchmark,
    "rollout": step_rollout,
}


# ---- what steps share ---------------------------------------------------------------------------------------------------


def accelerated() -> bool:
    import jax

    return jax.devices()[0].platform != "cpu"


def shrunk(config, side: int):
    """A shape of the same family with hidden size `side`, few layers and a small vocabulary."""
    heads = side // 32
    text = dataclasses.replace(
        config.text,
        vocab_size=1024,
        hidden_size=side,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 2, 1),
        intermediate_size=2 * side,
        head_dim=32,
    )
    if config.text.mrope_section is not None:
        text = dataclasses.replace(text, mrope_section=(4, 6, 6) if not config.text.mrope_interleaved else (6, 5, 5))
    if config.model_type == "internvl":
        vision = dataclasses.replace(
            config.vision,
            hidden_size=side,
            num_hidden_layers=4,
            num_attention_heads=heads,
            intermediate_size=2 * side,
            image_size=112,
        )
    else:
        vision = dataclasses.replace(
            config.vision, hidden_size=side, depth=4, num_heads=heads, intermediate_size=2 * side
        )
        if config.vision.gated:
            vision = dataclasses.replace(vision, fullatt_block_indexes=(1, 3))
        else:
            vision = dataclasses.replace(vision, deepstack_visual_indexes=(0, 1, 2), num_position_embeddings=256)
    return dataclasses.replace(config, text=text, vision=vision)


class AnonymousMemory:
    """How much the process's anonymous memory grew at most while the body ran (Linux), bytes."""

    def __enter__(self):
        self.grown, self._before, self._over = 0, self._now(), threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._watch.join()

    def _look(self):
        while not self._over.wait(0.01):
            self.grown = max(self.grown, self._now() - self._before)

    @staticmethod
    def _now() -> int:
        status = pathlib.Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024


def fingerprint(state):
    """A number for each weight that any change of a value or its place changes."""
    import jax
    import jax.numpy as jnp

    def one(x):
        flat = x.reshape(-1).astype(jnp.float32)
        return (flat * jnp.cos(jnp.arange(flat.size, dtype=jnp.float32))).sum()

    return jax.tree.map(jax.jit(one), state)


def real_config(name: str):
    """The ready experiment with random weights and the embedded tokenizer; a small one on a CPU."""
    import importlib

    from mvg_jax import config as configs

    c = importlib.import_module(f"configs.{name}").get_config()
    c.model.checkpoint, c.model.tokenizer = "", "asset:tiny_internvl"
    c.env.style = "compact"
    if not accelerated():
        c = importlib.import_module("configs.tiny").get_config()
        c.model.compute_dtype, c.grpo.learner.remat, c.grpo.learner.logit_positions = "bfloat16", True, 16
    return configs.from_dict(c.to_dict())


def fastest_kernels(name: str) -> dict[str, str]:
    """By config option. In a process of its own, which gives back all the memory that it takes."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "kernels.json"
        code = (
            "import dataclasses, json, accelerator_check as a; a.provide_config_dict(); import bench_kernels as b; "
            f"c = a.real_config({name!r}); r = dataclasses.replace(c.rollout, decode_lengths=c.rollout.decode_lengths[:1]); "
            "found = b.measure(dataclasses.replace(c, rollout=r), 5 if a.accelerated() else 1); b.show(found); "
            f"open({str(path)!r}, 'w').write(json.dumps({{b.OPTION[n]: k for n, k in b.fastest(found).items()}}))"
        )
        subprocess.run(
            [sys.executable, "-c", code], check=True, env=os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
        )
        return json.loads(path.read_text())


def run_steps(config, steps: int) -> list[float]:
    """Seconds of GRPO steps."""
    import jax

    from mvg_jax.experiment import build

    experiment, params = build(config)
    stage = experiment.grpo_stage(params)
    state, source = stage.start(params), experiment.tasks.source("phantom", "train", 0, steps * config.rollout.prompts)
    seconds = []
    for number in range(1, steps + 1):
        batch = [source[(number - 1) * config.rollout.prompts + p] for p in range(config.rollout.prompts)]
        start = time.perf_counter()
        state, metrics = stage.step(state, number, batch)
        jax.block_until_ready(metrics["loss"])
        seconds.append(time.perf_counter() - start)
    return seconds


# ---- the program --------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(STEPS), help=f"steps to run, of {', '.join(STEPS)} (default: all)")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        provide_config_dict()
        passed, said = STEPS[arguments.step]()
        pathlib.Path(arguments.result).write_text(json.dumps([passed, said]))
        return 0
    unknown = set(arguments.only.split(",")) - set(STEPS)
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    table, begin = [], time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        for name in arguments.only.split(","):
            result = pathlib.Path(directory) / f"{name}.json"
            left = BUDGET_SECONDS - (time.monotonic() - begin)
            start = time.monotonic()
            print(f"\n== {name}: {STEPS[name].__doc__}", flush=True)
            environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ
            # Two of them leave room for torch.
            share = "0.5" if name in ("parity", "rollout") else "0.92"
            environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": share} | environment
            command = [sys.executable, __file__, f"--step={name}", f"--result={result}"]
            try:
                subprocess.run(command, env=environment, timeout=max(left, 1))
                passed, said = (
                    json.loads(result.read_text()) if result.exists() else (False, "ended with an error, above")
                )
            except subprocess.TimeoutExpired:
                passed, said = False, "out of time"
            table.append((name, passed, time.monotonic() - start, said))
    print(f"\n{'step':<12}{'':<8}{'seconds':>8}  result")
    for name, passed, seconds, said in table:
        print(f"{name:<12}{'ok' if passed else 'FAILED':<8}{seconds:>8.1f}  {said}")
    return 0 if all(passed for _, passed, _, _ in table) else 1


if __name__ == "__main__":
    sys.exit(main())
