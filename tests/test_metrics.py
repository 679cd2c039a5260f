import errno
import json

import jax
import jax.numpy as jnp
import pytest

from mvg_jax import metrics as metrics_lib
from mvg_jax.errors import RunError
from mvg_jax.metrics import MetricsLog, read_metrics, write_summary


def open_log(workdir, resume_step=0, total_steps=4, show=("loss",)):
    return MetricsLog(workdir, resume_step=resume_step, total_steps=total_steps, show=show)


def run(workdir, steps, resume_step=0, seconds=0.5):
    log = open_log(workdir, resume_step)
    for step in steps:
        log.log(step, {"loss": jnp.float32(1 / step), "time/step_s": seconds, "kind": "grpo"})
    log.close()


def test_records_are_plain_sorted_and_in_order(tmp_path, capsys):
    run(tmp_path, [1, 2])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == [
        '{"kind": "grpo", "loss": 1.0, "step": 1, "time/step_s": 0.5}',
        '{"kind": "grpo", "loss": 0.5, "step": 2, "time/step_s": 0.5}',
    ]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert printed[1].startswith("step 2/4 [")
    assert printed[1].endswith("loss 0.5")


def test_a_step_is_read_only_when_the_next_is_logged(tmp_path, monkeypatch):
    reads = []
    device_get = jax.device_get
    monkeypatch.setattr(metrics_lib.jax, "device_get", lambda tree: reads.append(tree) or device_get(tree))
    log = open_log(tmp_path)
    log.log(1, {"loss": jnp.float32(3)})
    log.log(1, {"eval/accuracy": 0.5})
    assert reads == []
    log.log(2, {"loss": jnp.float32(2)})
    assert len(reads) == 1
    log.flush()
    log.flush()
    assert len(reads) == 2
    assert [record["loss"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [3.0, 2.0]
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["eval/accuracy"] == 0.5


def test_killed_and_resumed_equals_uninterrupted_but_for_time(tmp_path):
    run(tmp_path / "whole", [1, 2, 3, 4])
    run(tmp_path / "killed", [1, 2, 3], seconds=7.0)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "grpo", "lo')  # SIGKILL in the middle of a write
    run(tmp_path / "killed", [3, 4], resume_step=2, seconds=9.0)

    def without_time(name):
        records = read_metrics(tmp_path / name / "metrics.jsonl")
        return [{k: v for k, v in record.items() if not k.startswith(metrics_lib.WALL_CLOCK)} for record in records]

    assert without_time("killed") == without_time("whole")


def test_resume_step_zero_starts_over(tmp_path):
    run(tmp_path, [1, 2])
    open_log(tmp_path).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_broken_line_inside_the_file_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl:2 is not a metrics record"):
        open_log(tmp_path, resume_step=3)


def test_not_finite_numbers_stay_json(tmp_path):
    log = open_log(tmp_path)
    log.log(1, {"loss": jnp.float32(jnp.nan), "kl": float("-inf")})
    log.close()
    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert record == {"step": 1, "loss": "NaN", "kl": "-Infinity"}


def test_misuse_is_refused(tmp_path):
    log = open_log(tmp_path, resume_step=2)
    with pytest.raises(ValueError, match="step 2 logged after step 2"):
        log.log(2, {"loss": 1.0})
    log.log(4, {"loss": 1.0})
    with pytest.raises(ValueError, match="step 3 logged after step 4"):
        log.log(3, {"loss": 1.0})
    with pytest.raises(ValueError, match="logged twice"):
        log.log(4, {"loss": 1.0})
    log.log(5, {"loss": jnp.ones((2,))})
    with pytest.raises(ValueError, match=r"'loss' must be a scalar, has shape \(2,\)"):
        log.flush()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    log = open_log(tmp_path)
    log.log(1, {"loss": 1.0})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics_lib.pathlib.Path, "open", full)
    with pytest.raises(RunError, match=r"cannot write .*metrics.jsonl: No space left on device"):
        log.flush()
    with pytest.raises(RunError, match="No space left on device"):
        write_summary(tmp_path / "summary.json", {})


def test_what_a_killed_writer_left_is_written_over(tmp_path):
    left = []
    with metrics_lib.replacing(tmp_path / "a") as file:
        file.write(b"first")
        left += [(entry, entry.read_bytes()) for entry in tmp_path.iterdir()]
    for entry, content in left:  # as if it had been killed here
        entry.write_bytes(content + b" and more")
    write_summary(tmp_path / "a", {"b": 1})
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert json.loads((tmp_path / "a").read_text()) == {"b": 1}


def test_summary_is_replaced_in_one_piece(tmp_path, monkeypatch):
    path = tmp_path / "new" / "summary.json"
    write_summary(path, {"b": 1, "a": {"accuracy": 0.5}})
    assert json.loads(path.read_text()) == {"a": {"accuracy": 0.5}, "b": 1}
    assert path.read_text().index('"a"') < path.read_text().index('"b"')

    def fails(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics_lib.os, "replace", fails)
    with pytest.raises(RunError):
        write_summary(path, {"c": 1})
    assert json.loads(path.read_text())["b"] == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["summary.json"]
