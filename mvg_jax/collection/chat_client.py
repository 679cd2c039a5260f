"""A client for OpenAI-compatible chat endpoints: retries, a rate limit, and a folder of replies that a second start reads from.

Replies are untrusted: bounded in size, taken apart field by field, never shown at length. The key is read from an environment
variable, travels in one header only, and follows no redirect.
"""

import base64
import email.utils
import hashlib
import http.client
import io
import json
import os
import pathlib
import queue
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mvg_jax.collection.converse import Conversation
from mvg_jax.collection.select import keyed
from mvg_jax.config import Endpoint
from mvg_jax.env.episode import Stop
from mvg_jax.env.protocol import MAX_TURN_CHARS, question_text, system_text
from mvg_jax.errors import RunError
from mvg_jax.metrics import write_atomically
from mvg_jax.tools import Registry

MAX_REPLY_BYTES = 4 * 2**20
MAX_WAIT = 600.0  # seconds: the longest that a Retry-After is believed
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
REFUSALS = 8  # requests refused as they are, with none accepted, after which no more are tried
_SHOWN = 200


class Refused(Exception):
    """The endpoint will not answer this request, however often it is asked; another one may be fine."""


class Reply(NamedTuple):
    """text: as written; reasoning: what the server had taken out of it; cut_off: it stopped at the token limit."""

    text: str
    reasoning: str
    cut_off: bool


class ChatClient:
    """Asks for completions; several threads may. cache: folder of replies by the request's content (None: none is kept)."""

    def __init__(self, endpoint: Endpoint, cache: pathlib.Path | None = None):
        address = urllib.parse.urlsplit(endpoint.url)
        if address.scheme not in ("http", "https") or not address.hostname or address.username or address.query:
            raise RunError(f"endpoint {endpoint.url!r}: give http://HOST[:PORT]/v1 or https://HOST/v1")
        self._url = endpoint.url.rstrip("/") + "/chat/completions"
        self._headers = {"Content-Type": "application/json", "User-Agent": "mvg_jax"}
        if endpoint.key_variable:
            key = os.environ.get(endpoint.key_variable, "")
            if not key or any(c.isspace() or not c.isprintable() for c in key):
                raise RunError(f"the environment variable {endpoint.key_variable} holds no key for {endpoint.url}")
            self._headers["Authorization"] = f"Bearer {key}"
        self._endpoint, self._cache = endpoint, cache
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._closed, self._lock = threading.Event(), threading.Lock()
        self._waiting: set[queue.SimpleQueue[Reply | BaseException]] = set()
        self._next, self._accepted, self._refusals = 0.0, 0, 0
        self.asked = 0  # requests that went out, retries among them

    def close(self) -> None:
        """Wakes whoever waits, for their turn or for a reply, with a RunError."""
        with self._lock:
            self._closed.set()
            for answer in self._waiting:
                answer.put(RunError("stopped"))

    def complete(self, body: Mapping[str, Any]) -> Reply:
        """The reply to a request, from the folder where it is known. RunError when there is no use in going on; else Refused."""
        content = json.dumps(body, sort_keys=True, allow_nan=False).encode()
        known = None
        if self._cache is not None:
            name = hashlib.sha256(content).hexdigest()  # it names the model; where that is served may change
            known = self._cache / name[:2] / f"{name}.json"
            if (reply := _stored(known)) is not None:
                return reply
        reply = self._ask_aside(content)
        if known is not None:
            with self._lock:  # another thread may have asked the same
                write_atomically(known, json.dumps(reply._asdict()))
        return reply

    def _ask_aside(self, content: bytes) -> Reply:
        """`_ask` in a thread that the end of the program does not wait for: nothing wakes one that looks up a name or connects."""
        answer: queue.SimpleQueue[Reply | BaseException] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answer.put(self._ask(content))
            except BaseException as error:  # the caller's to handle
                answer.put(error)

        with self._lock:
            if self._closed.is_set():
                raise RunError("stopped")
            self._waiting.add(answer)
        try:
            threading.Thread(target=ask, daemon=True).start()
            found = answer.get()
        finally:
            with self._lock:
                self._waiting.discard(answer)
        if isinstance(found, BaseException):
            raise found
        return found

    def _ask(self, content: bytes) -> Reply:
        what = ""
        for attempt in range(self._endpoint.retries + 1):
            self._take_turn()
            try:
                reply = _reply(self._post(content))
                with self._lock:
                    self._accepted += 1
                return reply
            except urllib.error.HTTPError as error:
                with error:
                    what, wait = self._judge(error), _retry_after(error.headers.get("Retry-After"))
            except _GarbageReply as error:
                what, wait = str(error), None
            except (OSError, http.client.HTTPException) as error:  # unreachable, reset, timed out, cut off
                reason = getattr(error, "reason", error)
                what, wait = f"{type(reason).__name__}: {reason}"[:_SHOWN], None
            if attempt < self._endpoint.retries:
                self._back_off(attempt, wait)
        raise RunError(f"endpoint {self._endpoint.url}: {what} ({self._endpoint.retries + 1} tries)")

    def _judge(self, error: urllib.error.HTTPError) -> str:
        """What a status means that is worth a retry; raises for the others."""
        url, code = self._endpoint.url, error.code
        if code in (408, 409, 425, 429) or code >= 500:
            return f"HTTP {code}"
        said = _shown(error)
        if code in (401, 403):
            variable = self._endpoint.key_variable or "(none is set: config.collect.endpoint.key_variable)"
            raise RunError(f"endpoint {url} refuses the key of {variable}: HTTP {code} {said}")
        if code == 404:
            raise RunError(f"endpoint {url} knows no such path or no model {self._endpoint.model!r}: HTTP 404 {said}")
        if code in (400, 413, 415, 422):
            with self._lock:
                self._refusals += 1
                hopeless = self._refusals >= REFUSALS and not self._accepted
            if not hopeless:
                raise Refused(f"HTTP {code} {said}")
        raise RunError(f"endpoint {url}: HTTP {code} {said}")

    def _take_turn(self) -> None:
        """Waits until the rate limit lets one more request go."""
        gap = 60.0 / self._endpoint.requests_per_minute if self._endpoint.requests_per_minute else 0.0
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next)
            self._next = at + gap
            self.asked += 1
        self._wait(at - now)

    def _back_off(self, attempt: int, wait: float | None) -> None:
        """What the server asks for, from all requests; or twice as long after each try, less up to a half at random."""
        if wait is None:
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
        else:
            with self._lock:
                self._next = max(self._next, time.monotonic() + wait)
        self._wait(wait)

    def _wait(self, seconds: float) -> None:
        if self._closed.wait(max(0.0, seconds)):
            raise RunError("stopped")

    def _post(self, content: bytes) -> bytes:
        """The body of a reply with a good status; a timeout covers all of it."""
        request = urllib.request.Request(self._url, content, self._headers, method="POST")
        deadline = time.monotonic() + self._endpoint.timeout
        with self._opener.open(request, timeout=self._endpoint.timeout) as reply:
            parts, size = [], 0
            while part := reply.read1(65536):
                parts.append(part)
                size += len(part)
                if size > MAX_REPLY_BYTES:
                    raise _GarbageReply(f"a reply of more than {MAX_REPLY_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no whole reply within {self._endpoint.timeout} s")
            if reply.length:  # urllib does not say that a body ended early
                raise http.client.IncompleteRead(b"", reply.length)
            return b"".join(parts)


class EndpointSpeaker:
    """The model behind an endpoint, told what our own models are told: system text with the tools' schemas, question, views."""

    def __init__(
        self,
        client: ChatClient,
        endpoint: Endpoint,
        registry: Registry,
        temperature: float,
        seed: int,
        top_p: float = 1.0,
    ):
        self.name = endpoint.model
        self._client, self._endpoint, self._registry = client, endpoint, registry
        self._temperature, self._top_p, self._seed = temperature, top_p, seed
        self.refused: list[str] = []

    def speak(self, conversation: Conversation) -> str | Stop:
        c = conversation
        body = {
            "model": self._endpoint.model,
            "messages": messages(c, self._registry),
            "temperature": self._temperature,
            "max_tokens": self._endpoint.max_tokens,
            "seed": keyed(self._seed, c.task.id, c.sample, len(c.exchanges)) % 2**31,
        }
        if self._top_p < 1:
            body["top_p"] = self._top_p
        try:
            reply = self._client.complete(body)
        except Refused as error:
            self.refused.append(f"{c.task.id}: {error}")
            return Stop.VOID
        if reply.cut_off:
            return Stop.MAX_TOKENS
        # Servers with a reasoning parser hand the thoughts over apart from what was said.
        thought = reply.reasoning and "<think>" not in reply.text
        text = f"<think>{reply.reasoning}</think>{reply.text}" if thought else reply.text
        return text[: MAX_TURN_CHARS + 1]  # longer ones are malformed whatever they hold


def messages(conversation: Conversation, registry: Registry) -> list[dict[str, Any]]:
    """A conversation as chat messages; images are PNG data URLs, tool responses are turns of the user as in the Hermes format."""
    c = conversation
    said = [
        {"role": "system", "content": system_text(registry, "full", c.tools_on)},
        {"role": "user", "content": [*map(_picture, c.views), _words(question_text(c.task))]},
    ]
    for exchange in c.exchanges:
        response = [
            _words("<tool_response>"),
            *map(_picture, exchange.views),
            _words(f"{exchange.text}</tool_response>"),
        ]
        said += [{"role": "assistant", "content": exchange.said}, {"role": "user", "content": response}]
    return said


def _words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _picture(view: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(view).save(file, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()},
    }


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None  # the key would travel along


class _GarbageReply(Exception):
    """A reply that is no chat completion."""


def _reply(content: bytes) -> Reply:
    """The first choice of a chat completion. _GarbageReply for anything else."""
    try:
        choice = json.loads(content)["choices"][0]
        message = choice["message"]
        text, reasoning = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
        if not isinstance(text, str | None) or not isinstance(reasoning, str | None):
            raise TypeError
        return Reply(text or "", reasoning or "", choice.get("finish_reason") == "length")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _GarbageReply("a reply that is no chat completion") from error


def _stored(path: pathlib.Path) -> Reply | None:
    try:
        values = json.loads(path.read_text())
        return Reply(str(values["text"]), str(values["reasoning"]), values["cut_off"] is True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"cannot use the stored reply {path}: {error}; remove it to ask again") from error


def _shown(error: urllib.error.HTTPError) -> str:
    """The beginning of a message, on one line, printable."""
    try:
        text = error.read(4096).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        text = ""
    return "".join(c if c.isprintable() else " " for c in text)[:_SHOWN]


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number or a date; None where it says nothing usable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(0.0, seconds), MAX_WAIT) if seconds == seconds else None
