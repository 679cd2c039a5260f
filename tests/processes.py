"""Processes that a test starts: none outlives its test, and nothing is waited for without a limit."""

import contextlib
import pathlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

LIMIT = 600.0  # seconds: no test is about this time, and a loaded machine needs much of it


@contextlib.contextmanager
def running(command: Sequence[str], log: pathlib.Path, **options) -> Iterator[subprocess.Popen]:
    """A process that writes all it says to `log`, which nobody has to read for it to go on, and that is gone after the block."""
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(happened: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    """AssertionError when it has not happened within LIMIT, or before the process ended."""
    deadline = time.monotonic() + LIMIT
    while not happened():
        assert process is None or process.poll() is None, f"it ended with status {process.returncode} before"
        assert time.monotonic() < deadline, f"not within {LIMIT} s"
        time.sleep(0.02)
