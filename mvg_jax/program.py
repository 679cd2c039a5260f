"""What every program does around its work: flags that fail in one line, quiet libraries, one-line errors."""

import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging

from mvg_jax.errors import RunError


def run(work: Callable[[], None], required: tuple[str, ...]) -> None:
    """Parses the command line and does the work. A RunError, an unknown flag or config key ends it with one line and status 1."""

    def main(_) -> None:
        logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save
        try:
            work()
        except RunError as error:
            sys.exit(f"error: {error}")

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
