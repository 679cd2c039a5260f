"""Compiling ahead of time, in parallel, counting what is compiled, and keeping it for the next process."""

import os
import pathlib
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import tqdm

from mvg_jax.errors import RunError

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"  # a program was compiled, or read from the cache
_CACHED_EVENT = "/jax/compilation_cache/cache_hits"


class CompileCount:
    """Programs compiled in this process since this object was made, until it is closed.

    count: compiled, or read from the persistent cache; cached: of these, read. seconds: that both took, of all threads.
    """

    def __init__(self):
        self.count, self.cached, self.seconds = 0, 0, 0.0
        self._lock, self._told = threading.Lock(), (0, 0, 0.0)
        jax.monitoring.register_event_duration_secs_listener(self._compiled)
        jax.monitoring.register_event_listener(self._read)

    def __enter__(self) -> "CompileCount":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Counts no further."""
        jax.monitoring.unregister_event_duration_listener(self._compiled)
        jax.monitoring.unregister_event_listener(self._read)

    @property
    def compiled(self) -> int:
        """Programs that the cache did not hold."""
        return self.count - self.cached

    def metrics(self) -> dict[str, float]:
        """What was counted since this was last asked for: `time/` metrics, for a resumed run finds more in the cache."""
        now, before = (self.count, self.cached, self.seconds), self._told
        self._told = now
        return {
            f"time/{name}": a - b for name, a, b in zip(("compiles", "cached", "compile"), now, before, strict=True)
        }

    def _compiled(self, event: str, seconds: float, **_) -> None:
        if event == _COMPILE_EVENT:
            with self._lock:
                self.count += 1
                self.seconds += seconds

    def _read(self, event: str, **_) -> None:
        if event == _CACHED_EVENT:
            with self._lock:
                self.cached += 1


def compile_all(programs: Sequence[tuple[str, jax.stages.Lowered]], title: str) -> None:
    """Compiles named programs side by side (XLA lets go of the interpreter); later calls of the same functions find them.

    A terminal is shown how far it is and what is compiled just now; at the end, one line on stderr says what was done.
    """
    start, first = time.perf_counter(), jax.process_index() == 0
    hidden = not (sys.stderr.isatty() and first)
    under_way: list[str] = []
    with (
        CompileCount() as compiles,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm.tqdm(total=len(programs), desc=title, unit="program", disable=hidden) as bar,
    ):

        def compile_one(program: tuple[str, jax.stages.Lowered]) -> None:
            name, lowered = program
            under_way.append(name)
            bar.set_postfix_str(", ".join(under_way))
            lowered.compile()
            under_way.remove(name)
            bar.update()

        list(pool.map(compile_one, programs))
    if first:
        seconds = time.perf_counter() - start
        said = f"compiled {len(programs)} programs in {seconds:.1f} s ({compiles.cached} from the cache)"
        print(said, file=sys.stderr, flush=True)


def use_cache(folder: str) -> None:
    """Keeps every compiled program in the folder, and reads from it what an earlier process compiled. To be called before anything is
    compiled. "": as JAX's own JAX_COMPILATION_CACHE_DIR says, by default none is kept.

    Programs run what the folder holds: only those whom you trust may write to it. RunError when it cannot be written.
    """
    if not folder:
        return
    if "://" not in folder:  # a bucket is JAX's to open
        try:
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise RunError(f"config.compile_cache {folder} cannot be written: {error.strerror}") from error
    jax.config.update("jax_compilation_cache_dir", folder)
    # By default programs that compile within a second are not kept; of ours, of which there are many, these are most.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
