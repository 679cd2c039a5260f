"""Compiling ahead of time, in parallel, and counting what is compiled: a run can show that nothing is after warm-up."""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import tqdm

_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileCount:
    """Programs compiled (or read from the persistent cache) in this process since this object was made."""

    def __init__(self):
        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, seconds: float, **_) -> None:
        if event == _EVENT:
            self.count += 1
            self.seconds += seconds


def compile_all(lowered: Sequence[jax.stages.Lowered], title: str) -> None:
    """Compiles programs side by side (XLA lets go of the interpreter); later calls of the same functions find them."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(lambda program: program.compile(), lowered)
        list(tqdm.tqdm(done, desc=title, total=len(lowered), unit="program", disable=not sys.stderr.isatty()))
