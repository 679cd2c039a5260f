"""Samples trajectories for stage `sft`: k tries at each task, tools executed, kept by declared filters, balanced.

    python -m mvg_jax.collect --config=configs/tiny.py --out=DIR --checkpoint=asset:tiny_internvl [--config.collect.samples=8]
    python -m mvg_jax.collect --config=configs/tiny.py --out=DIR --expert
    python -m mvg_jax.collect --config=configs/tiny.py --out=DIR --config.collect.endpoint.url=http://HOST:8000/v1 \\
        --config.collect.endpoint.model=NAME [--config.collect.endpoint.key_variable=MY_KEY]

--checkpoint: a model of ours; --expert: the scripted expert of PhantomVQA; neither: the chat endpoint of the config. What is sampled
and kept is config.collect. DIR then holds trajectories (*.parquet, for config.sft.trajectories=DIR), statistics.json, and in
sampled/ what the filters kept before caps on kinds and balance. The same command again goes on where it was stopped, or, with another
balance (tools, kinds, keep, chains_per_kind), chooses anew without sampling. requests/ holds the replies of an endpoint.
"""

import json
import pathlib
import sys

import jax
from absl import flags
from ml_collections import config_flags

from mvg_jax import config as configs
from mvg_jax import program
from mvg_jax.collection.run import collect
from mvg_jax.collection.select import table
from mvg_jax.compiles import use_cache
from mvg_jax.errors import RunError

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the trajectories; made if it is not there.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir, a Hugging Face folder, or asset:NAME.")
_EXPERT = flags.DEFINE_bool("expert", False, "The scripted expert of PhantomVQA speaks.")


def main() -> None:
    values = _CONFIG.value.to_dict()
    if _CHECKPOINT.value:
        values["model"]["checkpoint"] = _CHECKPOINT.value
    config = configs.from_dict(values)
    chosen = {"model": _CHECKPOINT.value, "expert": _EXPERT.value, "endpoint": config.collect.endpoint.url}
    chosen = [who for who, there in chosen.items() if there]
    if len(chosen) != 1:
        raise RunError("who speaks? give one of --checkpoint, --expert and --config.collect.endpoint.url")
    if jax.process_count() > 1:
        raise RunError("collect runs in one process; start several with other config.data.first and --out")
    use_cache(config.compile_cache)
    out = pathlib.Path(_OUT.value)
    try:
        statistics = collect(config, chosen[0], out)
    except KeyboardInterrupt:
        program.say("\nstopped; the same command goes on")
        sys.exit(130)
    program.say(table(statistics["counts"]))
    figures = {name: value for name, value in statistics.items() if name not in ("counts", "bad_images", "refused")}
    program.say(json.dumps(figures, indent=2, sort_keys=True))
    if not statistics["kept"]:
        raise RunError(f"no trajectory was kept; {out / 'statistics.json'} says why")
    program.say(f"\n{out}: {statistics['kept']} trajectories; train on them with config.sft.trajectories={out}")


if __name__ == "__main__":
    program.run(main, required=("config", "out"))
