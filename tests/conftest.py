"""Sets up JAX for every test, and for every process a test starts, before anything imports it.

Eight virtual CPU devices cost single-device tests nothing measurable (they run on device 0; step and compile times
agree with those of one device to within the noise), so sharding tests need no processes of their own.
"""

import os
import pathlib
import signal
import tempfile


def _cache_directory() -> str:
    """A compile cache outside the checkout that workers and later runs share; a fresh one if home is not writable."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    directory = pathlib.Path(home, "mvg_jax", "test-xla")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            _repair(directory)
            return str(directory)
    except OSError:
        return tempfile.mkdtemp(prefix="mvg_jax-test-xla-")


def _repair(directory: pathlib.Path) -> None:
    """Drops entries that a killed process left without their access time: JAX would add nothing to the cache any more."""
    for entry in directory.glob("*-cache"):
        if not entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists():
            entry.unlink(missing_ok=True)


# setdefault: xdist workers inherit the controller's choice, and JAX_PLATFORMS=cuda runs the tests on a GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache_directory()
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(512 * 2**20)  # with a limit JAX locks: workers share it safely
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"  # below that, loading is no faster than compiling
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# Who is started in the background by a script ignores Ctrl-C, and so does whoever they start: but tests send it. A handler, unlike
# being ignored, is not handed on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
