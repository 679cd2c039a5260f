"""What every program does around its work: flags that fail in one line, several processes, quiet libraries, one-line errors."""

import os
import re
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging

from mvg_jax.errors import RunError

MEMORY = 0.92  # the rest of a GPU goes to the runtime, its communication buffers and fragmentation

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Several processes: HOST:PORT of process 0, or 'auto' where JAX finds the cluster itself."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Several processes: how many.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "Several processes: which one this is, from 0.", lower_bound=0)


def join_processes() -> None:
    """Starts jax.distributed if the flags ask for it. RunError when they do not fit together or the others do not come."""
    address, count, index = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    if address in (None, "auto"):
        if count is not None or index is not None:
            raise RunError("--processes and --process need --coordinator=HOST:PORT")
    elif count is None or index is None or index >= count:
        raise RunError(f"--coordinator={address} needs --processes=N and --process below N; got {count} and {index}")
    elif not re.fullmatch(r"[^:]+:\d+|\[.+\]:\d+", address):
        raise RunError(f"--coordinator={address}: use HOST:PORT or 'auto'")
    if address is None:
        return
    where = {} if address == "auto" else {"coordinator_address": address, "num_processes": count, "process_id": index}
    try:
        jax.distributed.initialize(**where)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"jax.distributed: {' '.join(str(error).split())[:300]}") from error


def say(text: str) -> None:
    """Prints, once for all processes."""
    if jax.process_index() == 0:
        print(text, flush=True)


def take_memory(share: float) -> None:
    """Lets JAX take this share of a GPU's memory, unless the environment says otherwise (JAX's own default is 0.75). Before the first
    use of a device."""
    if not any(name in os.environ for name in ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")):
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(share)


def run(work: Callable[[], None], required: tuple[str, ...], memory: Callable[[], float] = lambda: MEMORY) -> None:
    """Parses the command line and does the work. A RunError, an unknown flag or config key ends it with one line and status 1.

    memory: the share of a GPU that is JAX's.
    """

    def main(_) -> None:
        take_memory(memory())
        logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save
        try:
            join_processes()
            work()
        except RunError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    flags.mark_flags_as_required(required)
    jax.config.config_with_absl()
    app.run(main, flags_parser=_parse)


def _parse(arguments: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(arguments)
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        OSError,
    ) as error:  # how ml_collections refuses a config or an override
        sys.exit(f"error: the config or one of its overrides is not right: {' '.join(str(error).split())}")
