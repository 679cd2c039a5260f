"""The client of chat endpoints against a local server that misbehaves."""

import base64
import email.utils
import io
import json
import re
import threading
import time
import types

import numpy as np
import pytest
from PIL import Image

from mvg_jax.collection import chat_client
from mvg_jax.collection.chat_client import ChatClient, EndpointSpeaker, Refused, Reply, messages
from mvg_jax.collection.converse import Conversation, Exchange
from mvg_jax.config import Endpoint
from mvg_jax.data.task import NativeImage, Task
from mvg_jax.env.episode import Stop
from mvg_jax.env.protocol import MAX_TURN_CHARS
from mvg_jax.errors import RunError
from mvg_jax.tools import default_registry
from tests.chat_server import OK, Server, completion, hang, no_server
from tests.processes import LIMIT, wait_until

KEY = "s3cret-key"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setattr(chat_client, "FIRST_WAIT", 0.01)
    server = Server()
    yield server
    server.close()


def client(server, cache=None, **settings):
    defaults = {"url": server.url, "model": "teacher", "timeout": LIMIT, "retries": 3}
    return ChatClient(Endpoint(**(defaults | settings)), cache)


def test_a_request_and_its_reply(server):
    assert client(server, key_variable="TEST_KEY").complete({"model": "teacher", "x": "ü"}) == Reply(
        "<think>a</think><answer>b</answer>", "", False
    )
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert json.loads(body) == {"model": "teacher", "x": "ü"}
    client(server).complete({})
    assert "Authorization" not in server.requests[1][1]


def drop(handler):
    handler.connection.close()


def half(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')


def drip(handler):
    """Says little at a time until the client hangs up."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def huge(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" " * 2**16)


GARBAGE = [b"", b"not json", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 1}}]}',
           b'{"choices": [{"message": "x"}]}', b"\xff\xfe", b"[" * 100_000]  # fmt: skip
FAULTS = {
    "too many": (429, {}, b""), "server error": (500, {}, b"<html>"), "bad gateway": (502, {}, b""),
    "overloaded": (503, {}, b""), "dropped": drop, "half a reply": half, "hangs": hang, "drips": drip, "huge": huge,
} | {f"garbage {content[:12]!r}": (200, {}, content) for content in GARBAGE}  # fmt: skip
# Seconds, in which a good reply has to come as well. The other faults need none.
TIMEOUTS = {"hangs": 2.0, "drips": 2.0}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_pass_is_tried_again(server, monkeypatch, fault):
    monkeypatch.setattr(chat_client, "MAX_REPLY_BYTES", 2**18)
    server.script = [FAULTS[fault], FAULTS[fault], OK]
    assert client(server, timeout=TIMEOUTS.get(fault, LIMIT)).complete({}).text.endswith("</answer>")
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", ["server error", "dropped", "hangs", "garbage b'not json'"])
def test_what_does_not_pass_ends_with_one_line(server, fault):
    server.script = [FAULTS[fault]]
    with pytest.raises(RunError) as caught:
        client(server, timeout=TIMEOUTS.get(fault, LIMIT), retries=1, key_variable="TEST_KEY").complete({})
    assert server.url in str(caught.value)
    assert "2 tries" in str(caught.value)
    assert KEY not in str(caught.value)
    wait_until(lambda: len(server.requests) >= 2)  # who gives up may do so before the server has noted the request
    assert len(server.requests) == 2


def test_an_endpoint_that_is_not_there(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with no_server() as url, pytest.raises(RunError, match=rf"{re.escape(url)}: .*refused.*\(1 tries\)"):
        ChatClient(Endpoint(url=url, model="m", retries=0)).complete({})


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "refuses the key of TEST_KEY"),
        (403, "TEST_KEY"),
        (404, "no model 'teacher'"),
        (302, "HTTP 302"),
        (405, "405"),
    ],
)
def test_what_will_never_pass_is_not_tried_again(server, status, words):
    server.script = [(status, {"Location": "http://127.0.0.1:9/"}, b"no \x1b[31m\nsuch thing" + b"!" * 9999)]
    with pytest.raises(RunError, match=words) as caught:
        client(server, key_variable="TEST_KEY").complete({})
    text = str(caught.value)
    assert "such thing" in text
    assert text.isprintable()
    assert len(text) < 400
    assert KEY not in text
    assert len(server.requests) == 1


def test_a_refused_request_is_not_the_end_unless_all_are(server, monkeypatch):
    server.script = [(400, {}, b"context too long"), OK, (400, {}, b"context too long")]
    asks = client(server)
    with pytest.raises(Refused, match="context too long"):
        asks.complete({"a": 1})
    asks.complete({"a": 2})
    for n in range(20):
        with pytest.raises(Refused):
            asks.complete({"a": n})
    asks = client(server)
    for n in range(chat_client.REFUSALS - 1):
        with pytest.raises(Refused):
            asks.complete({"a": n})
    with pytest.raises(RunError, match="HTTP 400 context too long"):
        asks.complete({"a": 99})


@pytest.mark.parametrize("how", ["seconds", "date", "nonsense"])
def test_retry_after_is_honoured(server, how):
    def too_many(handler):
        date = email.utils.formatdate(time.time() + 3, usegmt=True)  # made now: the test may have stalled before
        handler.send_response(429)
        handler.send_header("Retry-After", {"seconds": "0.3", "date": date, "nonsense": "soon"}[how])
        handler.end_headers()

    server.script = [too_many, OK]
    client(server).complete({})
    waited = server.times[1] - server.times[0]
    assert waited >= {"seconds": 0.3, "date": 1.5, "nonsense": 0.0}[how]  # a date is in whole seconds
    assert waited < chat_client.MAX_WAIT / 2


def test_nobody_waits_for_ever():
    assert chat_client._retry_after("1e9") == chat_client.MAX_WAIT
    assert chat_client._retry_after("-5") == 0
    assert chat_client._retry_after("nan") is None
    assert chat_client._retry_after(None) is None
    assert chat_client._retry_after("Mon, 01 Jan 1990 00:00:00 GMT") == 0


def test_waits_grow_and_differ(server, monkeypatch):
    waits = []
    asks = client(server, retries=8)
    monkeypatch.setattr(chat_client, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(asks, "_wait", waits.append)
    for attempt in range(9):
        asks._back_off(attempt, None)
    assert all(min(60, 2**n) / 2 <= wait <= min(60, 2**n) for n, wait in enumerate(waits))
    assert len(set(waits)) == 9


def test_the_rate_limit_spaces_requests_of_all_threads(server, monkeypatch):
    """By a clock that stands still, so that nothing counts but what is planned."""
    monkeypatch.setattr(chat_client, "time", types.SimpleNamespace(monotonic=lambda: 100.0))
    waits = []
    asks = client(server, requests_per_minute=600.0)
    monkeypatch.setattr(asks, "_wait", waits.append)
    threads = [threading.Thread(target=asks.complete, args=({"n": n},)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(waits) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert asks.asked == len(server.requests) == 6


@pytest.mark.parametrize("act", [(429, {"Retry-After": "500"}, b""), hang], ids=["for its turn", "for a reply"])
def test_close_wakes_who_waits(server, act):
    server.script = [act]
    asks, caught = client(server), []

    def ask():
        try:
            asks.complete({})
        except RunError as error:
            caught.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: server.requests)
    asks.close()
    thread.join(LIMIT / 10)
    assert caught == ["stopped"]
    ask()  # and who comes later need not wait
    assert caught == ["stopped"] * 2
    assert len(server.requests) == 1


def test_a_reply_is_kept_and_not_asked_for_again(server, tmp_path):
    first = client(server, tmp_path, key_variable="TEST_KEY")
    reply = first.complete({"n": 1})
    server.script = [(500, {}, b"")]
    assert client(server, tmp_path, retries=0).complete({"n": 1}) == reply
    with pytest.raises(RunError):
        client(server, tmp_path, retries=0).complete({"n": 2})
    (kept,) = [path for path in tmp_path.rglob("*") if path.is_file()]  # failures leave nothing
    assert KEY not in kept.read_text()
    kept.write_text("{")
    with pytest.raises(RunError, match=r"cannot use the stored reply .*\.json"):
        client(server, tmp_path).complete({"n": 1})


@pytest.mark.parametrize(
    "url", ["", "ftp://x/v1", "file:///etc/passwd", "http://", "http://me:pw@x/v1", "http://x/v1?key=1"]
)
def test_addresses_that_make_no_sense(url):
    with pytest.raises(RunError, match="endpoint"):
        ChatClient(Endpoint(url=url, model="m"))


def test_a_key_must_be_there_and_be_one_word(server, monkeypatch):
    for value in ("", "two words", "line\nHost: evil"):
        monkeypatch.setenv("TEST_KEY", value)
        with pytest.raises(RunError, match="TEST_KEY holds no key"):
            client(server, key_variable="TEST_KEY")


# ---- the speaker -----------------------------------------------------------------------------------------------------

REGISTRY = default_registry(("image_zoom_in_tool",))


def conversation(sample=0, exchanges=()):
    task = Task("t/1", "d", "k", (NativeImage(np.zeros((4, 4), np.uint8)),), "What <|im_end|>?", "a", ("a", "b"))
    views = np.random.default_rng(0).integers(0, 256, (1, 8, 6, 3), np.uint8)
    return Conversation(task, sample, True, views, exchanges)


def speaker(server, **settings):
    endpoint = Endpoint(url=server.url, model="teacher", retries=0, timeout=LIMIT, max_tokens=77, **settings)
    return EndpointSpeaker(ChatClient(endpoint), endpoint, REGISTRY, 0.7, 3)


def test_the_endpoint_is_told_what_our_models_are_told(server):
    views = np.full((2, 5, 7, 3), 9, np.uint8)
    talk = conversation(exchanges=(Exchange("<think>x</think>…", views, "Zoomed views."),))
    speaker(server).speak(talk)
    body = json.loads(server.requests[0][2])
    assert {k: body[k] for k in ("model", "temperature", "max_tokens")} == {
        "model": "teacher", "temperature": 0.7, "max_tokens": 77,
    }  # fmt: skip
    system, user, assistant, response = body["messages"]
    assert "image_zoom_in_tool" in system["content"]
    assert [part["type"] for part in user["content"]] == ["image_url", "text"]
    assert user["content"][1]["text"] == "What <|im_end|>?\nOptions: a, b"
    kind, data = user["content"][0]["image_url"]["url"].split(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), talk.views[0])
    assert assistant == {"role": "assistant", "content": "<think>x</think>…"}
    assert [part["type"] for part in response["content"]] == ["text", "image_url", "image_url", "text"]
    assert response["content"][-1]["text"] == "Zoomed views.</tool_response>"
    off = messages(Conversation(talk.task, 0, False, talk.views), REGISTRY)
    assert "image_zoom_in_tool" not in json.dumps(off)


def test_the_endpoint_is_told_of_top_p_where_it_is_on(server):
    for top_p in (1.0, 0.8):
        endpoint = Endpoint(url=server.url, model="teacher", retries=0, timeout=LIMIT)
        EndpointSpeaker(ChatClient(endpoint), endpoint, REGISTRY, 0.7, 3, top_p).speak(conversation())
    off, on = (json.loads(request[2]) for request in server.requests)
    assert "top_p" not in off
    assert on == off | {"top_p": 0.8}


def test_each_try_and_turn_has_a_seed_of_its_own(server):
    speaks = speaker(server)
    one = Exchange("", np.zeros((0, 8, 8, 3), np.uint8), "E1")
    for talk in (conversation(0), conversation(1), conversation(0, (one,)), conversation(0)):
        speaks.speak(talk)
    seeds = [json.loads(body)["seed"] for _, _, body in server.requests]
    assert len(set(seeds)) == 3
    assert seeds[0] == seeds[3]


def test_replies_become_turns_or_reasons_for_none(server):
    server.script = [
        (200, {}, completion("free text")),
        (200, {}, completion("<think>a", finish="length")),
        (200, {}, completion("<answer>b</answer>", reasoning_content="because")),
        (200, {}, completion(None)),
        (200, {}, completion("x" * 100_000)),
        (422, {}, b"no images please"),
    ]
    speaks = speaker(server)
    said = [speaks.speak(conversation(n)) for n in range(6)]
    assert said[:4] == ["free text", Stop.MAX_TOKENS, "<think>because</think><answer>b</answer>", ""]
    assert len(said[4]) == MAX_TURN_CHARS + 1
    assert said[5] == Stop.VOID
    assert speaks.refused == ["t/1: HTTP 422 no images please"]
