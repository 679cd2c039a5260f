import io
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mvg_jax.compiles import CompileCount, compile_all, use_cache
from mvg_jax.errors import RunError
from tests.processes import LIMIT

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def cache(tmp_path):
    """A fresh persistent cache in the place of the tests' own."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    compilation_cache.reset_cache()
    use_cache(str(tmp_path / "deep" / "cache"))
    yield tmp_path / "deep" / "cache"
    compilation_cache.reset_cache()
    for name, value in before.items():
        jax.config.update(name, value)


def programs(count: int = 3) -> list[tuple[str, jax.stages.Lowered]]:
    """New functions each time, which JAX has not compiled in this process."""
    of = jax.ShapeDtypeStruct((4,), jnp.float32)
    return [(f"times/{i}", jax.jit(lambda x, i=i: x * (i + 2)).lower(of)) for i in range(count)]


def test_what_is_compiled_once_is_read_from_the_cache_afterwards(cache, capsys):
    with CompileCount() as first:
        compile_all(programs(), "compile")
    assert (first.count, first.cached, first.compiled) == (3, 0, 3)
    assert first.seconds > 0
    assert len(list(cache.glob("*-cache"))) == 3
    with CompileCount() as second:
        compile_all(programs(), "compile")
    assert (second.count, second.cached, second.compiled) == (3, 3, 0)
    assert (first.count, first.cached) == (3, 0), "a closed count went on"
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"\d+\.\d", "?", line) for line in lines] == [
        "compiled 3 programs in ? s (0 from the cache)",
        "compiled 3 programs in ? s (3 from the cache)",
    ]


def test_another_process_compiles_nothing(tmp_path):
    script = (
        "import sys, jax, jax.numpy as jnp\n"
        "from mvg_jax.compiles import CompileCount, use_cache\n"
        "use_cache(sys.argv[1])\n"
        "count = CompileCount()\n"
        "jax.jit(lambda x: jnp.cumsum(x) + jnp.linalg.norm(x))(jnp.arange(7.0)).block_until_ready()\n"
        "print(count.compiled, count.cached)\n"
    )
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "cache")], capture_output=True, text=True, timeout=LIMIT
        )
        assert done.returncode == 0, done.stderr[-2000:]
        said.append(tuple(map(int, done.stdout.split())))
    (compiled, _), again = said
    assert compiled > 1
    assert again == (0, compiled)


def test_a_terminal_is_shown_what_is_compiled(cache, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    compile_all([("decode", programs(1)[0][1]), ("extend/32", programs(2)[1][1])], "compile")
    shown = terminal.getvalue()
    assert "compile:" in shown
    assert "2/2" in shown
    assert "compiled 2 programs" in shown.splitlines()[-1]
    assert re.search(r"decode|extend/32", shown)


def test_a_program_that_does_not_compile_is_an_error(cache):
    class Broken:
        def compile(self):
            raise RuntimeError("no such instruction")

    with pytest.raises(RuntimeError, match="no such instruction"):
        compile_all([("broken", Broken()), *programs(1)], "compile")


def test_metrics_are_what_came_since_the_last_ones(cache):
    with CompileCount() as count:
        for _, lowered in programs(2):
            lowered.compile()
        first, nothing = count.metrics(), count.metrics()
        programs(1)[0][1].compile()
        third = count.metrics()
    assert {name: first[name] for name in ("time/compiles", "time/cached")} == {"time/compiles": 2, "time/cached": 0}
    assert set(nothing.values()) == {0}
    assert (third["time/compiles"], third["time/cached"]) == (1, 1)
    assert first["time/compile"] + third["time/compile"] == pytest.approx(count.seconds)


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    before = jax.config.jax_compilation_cache_dir
    with pytest.raises(RunError, match=r"config\.compile_cache .*file/cache cannot be written: Not a directory"):
        use_cache(str(tmp_path / "file" / "cache"))
    assert jax.config.jax_compilation_cache_dir == before


def test_without_a_folder_nothing_changes():
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    use_cache("")
    assert {name: getattr(jax.config, name) for name in OPTIONS} == before
