"""A chat endpoint on this machine that does what a test tells it to, in a thread; and one that is not there."""

import contextlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator


def completion(text="<think>a</think><answer>b</answer>", finish="stop", **more):
    return json.dumps({"choices": [{"message": {"content": text} | more, "finish_reason": finish}]}).encode()


OK = (200, {}, completion())


def hang(handler):
    """Says nothing until the client hangs up."""
    handler.connection.recv(1)


@contextlib.contextmanager
def no_server() -> Iterator[str]:
    """The address of an endpoint that refuses connections: its port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


class Server:
    """Plays a list of replies, the last one for ever: (status, headers, body), or a function of the request's handler."""

    def __init__(self):
        self.script, self.requests, self.times, self.at_once = [OK], [], [], 0
        self._busy, self._lock = 0, threading.Lock()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_POST(self):
                self.body = body = self.rfile.read(int(self.headers["Content-Length"]))
                with server._lock:
                    server._busy += 1
                    server.at_once = max(server.at_once, server._busy)
                    server.requests.append((self.path, dict(self.headers), body))
                    server.times.append(time.monotonic())
                    act = server.script.pop(0) if len(server.script) > 1 else server.script[0]
                try:
                    if callable(act):
                        act(self)
                        return
                    status, headers, content = act
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    pass  # the client has hung up
                finally:
                    with server._lock:
                        server._busy -= 1

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()
