"""A web server on this machine that fails as it is told to."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@dataclass
class Server:
    """What the next answers are, and what was asked."""

    address: str = ""
    content: bytes = CONTENT
    ranges: bool = True
    tag: str | None = '"v1"'
    length: bool = True
    cuts: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    location: str = ""
    asked: list[str | None] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.address}/set.npz"


@contextmanager
def serving() -> Iterator[Server]:
    """A running server; what it does next is set on the value."""
    plan = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            plan.asked.append(self.headers.get("Range"))
            status = plan.answers.pop(0) if plan.answers else 200
            if status != 200:
                self.send_response(status)
                if plan.location:
                    self.send_header("Location", plan.location)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, same = 0, self.headers.get("If-Range") == plan.tag
            if plan.ranges and self.headers.get("Range") and same:
                start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            body = plan.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(plan.content) - 1}/{len(plan.content)}")
            if plan.tag:
                self.send_header("ETag", plan.tag)
            if plan.length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: plan.cuts.pop(0)] if plan.cuts else body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        plan.address = f"http://127.0.0.1:{running.server_port}"
        yield plan
        running.shutdown()
        thread.join()
