"""The Gymnasium adapter: valid by Gymnasium's own checker, deterministic, and one row of the batched environment."""

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from mvg_jax.data.task import Turn
from mvg_jax.env.episode import Limits
from mvg_jax.env.gym import MedicalVQAEnv
from mvg_jax.env.protocol import Protocol, render_turn
from mvg_jax.tools.spec import ToolCall

WEIGHTS = {"accuracy": 1.0, "format": 0.1, "needless_call": -0.1}


@pytest.fixture
def env(tiny):
    protocol = Protocol(tiny.vocabulary, tiny.registry, "compact", 4)
    tasks = [tiny.task(i) for i in range(3)] + [tiny.task(3, chain=(), question="So ∀ 肝?\U0001f9e0")]
    return MedicalVQAEnv(tasks, protocol, Limits(3, 4, 2), WEIGHTS, tiny.view)


def test_gymnasium_finds_no_fault(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # It is not registered under a name, so the checker cannot make further copies of it.
        warnings.filterwarnings("ignore", message=".*not having a spec.*")
        warnings.filterwarnings("ignore", message=".*`env.spec`.*")
        check_env(env, skip_render_check=True)


def test_seed_decides_the_task(env):
    drawn = [env.reset(seed=s)[1]["task"] for s in range(20)]
    assert drawn == [env.reset(seed=s)[1]["task"] for s in range(20)]
    assert len(set(drawn)) == 4


def test_look_then_answer(env, tiny):
    observation, info = env.reset(options={"task": 0})
    assert info == {"task": "ramp/0"}
    assert "image_zoom_in_tool" in observation["text"]
    assert "Options: homogeneous, calcified, septated" in observation["text"]
    assert observation["count"] == 1
    assert observation["images"][0].max() > 0
    assert observation["images"][1:].max() == 0
    turn = render_turn(Turn("look", ToolCall("window_level_tool", {"center": 0, "width": 50, "img_idx": 0})))
    second, reward, terminated, truncated, info = env.step(turn)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert (second["text"], second["count"]) == ("Windowed view.", 2)
    assert second["images"][1].max() > 0
    assert np.array_equal(second["images"][0], observation["images"][0])
    assert observation["images"][1].max() == 0, "an observation handed out must not change"
    last, reward, terminated, truncated, info = env.step(render_turn(Turn("so", "calcified")))
    assert (terminated, truncated, last["text"]) == (True, False, "")
    assert reward == pytest.approx(1.1)
    assert info == {"task": "ramp/0", "stop": "ANSWER", "accuracy": 1.0, "format": 1.0, "needless_call": 0.0}
    with pytest.raises(RuntimeError, match="reset"):
        env.step("more")


def test_limits_truncate_and_void_terminates(env, tiny):
    env.reset(options={"task": 0})
    call = render_turn(Turn("look", tiny.zoom(0, 0, 500, 500)))
    ends = [env.step(call)[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    env.reset(options={"task": 0})
    assert env.step("junk")[0]["text"].startswith("E1")
    assert env.step("junk")[2:4] == (True, False)


def test_text_outside_the_space_is_shown_replaced(env):
    observation, _ = env.reset(options={"task": 3})
    assert "So ∀ 肝?\ufffd" in observation["text"]
    assert env.observation_space.contains(observation)


def test_wrong_options_and_weights_are_refused(env, tiny):
    with pytest.raises(ValueError, match="unknown options"):
        env.reset(options={"index": 1})
    with pytest.raises(ValueError, match="task 4 of 4"):
        env.reset(options={"task": 4})
    with pytest.raises(RuntimeError, match="reset"):
        MedicalVQAEnv([tiny.task()], env._protocol, Limits(3, 4, 2), WEIGHTS, env._view).step("x")
    with pytest.raises(ValueError, match="unknown reward terms"):
        MedicalVQAEnv([tiny.task()], env._protocol, Limits(3, 4, 2), {"tool": 1.0}, env._view)
