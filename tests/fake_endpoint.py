"""A local server that speaks chat completions, and misbehaves on request."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SOON = {"retry-after-ms": "1"}
"""Header of an error: repeat at once."""


@dataclass
class Asked:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        return self.body["messages"][-1]["content"]

    def part(self, name: str) -> str:
        """One of the three texts between their markers."""
        return re.search(rf"^\[{name} (\w+)\]\n(.*)\n\[end of {name} \1\]$", self.prompt, re.DOTALL | re.MULTILINE)[2]


@dataclass
class Answer:
    """What the server sends."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    missing: int = 0
    """So many bytes less than announced are sent before the connection is cut."""
    kind: str = "application/json"


def said(text: str | None, finish: str = "stop", **more: Any) -> Answer:
    """A proper completion."""
    return Answer(
        json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": "fake-2026",
                "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **more}}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105},
            }
        ).encode()
    )


def refused(status: int, message: str = "no", **headers: str) -> Answer:
    """An error as these endpoints send it."""
    error = {"error": {"message": message, "type": "fake", "code": None}}
    return Answer(json.dumps(error).encode(), status=status, headers={**SOON, **headers})


@dataclass
class Endpoint:
    """The server; `respond` gets each request and its number, counted from 0."""

    url: str
    respond: Callable[[Asked, int], Answer]
    asked: list[Asked] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)


@contextmanager
def fake_endpoint(respond: Callable[[Asked, int], Answer]) -> Iterator[Endpoint]:
    """Serve on a free port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            with endpoint.lock:
                number = len(endpoint.asked)
                endpoint.asked.append(asked)
            self._send(endpoint.respond(asked, number))

        def _send(self, answer: Answer) -> None:
            try:
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.kind)
                self.send_header("Content-Length", str(len(answer.body)))
                for name, value in answer.headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(answer.body[: len(answer.body) - answer.missing])
                self.close_connection = bool(answer.missing)
            except ConnectionError:  # the client lost patience
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", respond)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
