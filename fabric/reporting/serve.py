"""A report served on loopback while its runs go on, to this user alone: the address holds a secret, and a page of
another site that calls itself 127.0.0.1 is refused by the name that it asks for.

The main thread reads files and makes pages, when somebody asks for one; threads beside it answer.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from fabric.errors import OutputError
from fabric.reporting.page import Report, policy, render

HOST = "127.0.0.1"
LAST_S = 5.0  # after the end, so that open pages fetch the last state
_IDLE_S = 0.5  # between looks at whether the runs are over
_SHARE = 10  # pages take at most this part of the time, which is that of the runs
_REST_S = 30.0  # but nobody waits longer than this
_ANSWER_S = 60.0  # a page is made in this time


class _State:
    """The newest page, and who waits for one."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.waiting = 0
        self.page = self.data = b""


def serve(make: Callable[[], Report], over: Callable[[], bool], port: int, ready: Callable[[str], None]) -> None:
    """Serves what `make` makes until the runs are `over`, and a little longer; `ready` is called with the address.
    Raises OutputError where the port cannot be had, and whatever `make` raises."""
    state, secret = _State(), secrets.token_urlsafe(16)
    try:
        server = _Server((HOST, port), _handler(state, secret))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"port {port} of {HOST} cannot be used: {reason}; choose another --port") from error
    threading.Thread(target=server.serve_forever, name="fabric-report", daemon=True).start()
    try:
        ready(f"http://{HOST}:{server.server_address[1]}/{secret}/")
        ended, rest = None, 0.0
        while ended is None or time.monotonic() < ended + LAST_S:
            with state.changed:
                asked = state.changed.wait_for(lambda: state.waiting > 0, _IDLE_S)
            done = over()
            ended = ended or (time.monotonic() if done else None)
            if asked and time.monotonic() >= rest:
                began = time.monotonic()
                _make(state, make(), done)
                rest = time.monotonic() + (0 if done else min(_REST_S, _SHARE * (time.monotonic() - began)))
            elif asked:
                time.sleep(min(_IDLE_S, rest - time.monotonic()) if rest > time.monotonic() else 0)
    finally:
        server.shutdown()
        server.server_close()


def _make(state: _State, report: Report, over: bool) -> None:
    page = render(report, follow=True).encode("utf-8", "replace")
    told: dict[str, Any] = {"over": over, "data": report.data(), "page": render(report, follow=True, embed=False)}
    with state.changed:
        state.page, state.data, state.waiting = page, json.dumps(told).encode(), 0
        state.changed.notify_all()


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False


def _handler(state: _State, secret: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 30
        server_version, sys_version = "fabric", ""

        def do_GET(self) -> None:
            address: Any = self.server.server_address
            names = {f"{name}:{address[1]}" for name in (HOST, "localhost")}
            if self.headers.get("Host") not in names:
                self._answer(421, "text/plain", b"this is not the address of this page\n")
                return
            if self.path not in (f"/{secret}/", f"/{secret}/data.json"):
                self._answer(404, "text/plain", b"not found\n")
                return
            with state.changed:
                state.waiting += 1
                state.changed.notify_all()
                made = state.changed.wait_for(lambda: state.waiting == 0, _ANSWER_S)
            if not made:
                self._answer(503, "text/plain", b"no page yet\n")
            elif self.path.endswith("data.json"):
                self._answer(200, "application/json", state.data)
            else:
                self._answer(200, "text/html; charset=utf-8", state.page)

        def _answer(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            for name, value in (
                ("Content-Type", kind),
                ("Content-Length", str(len(body))),
                ("Content-Security-Policy", policy(follow=True) + "; frame-ancestors 'none'"),
                ("X-Content-Type-Options", "nosniff"),
                ("Referrer-Policy", "no-referrer"),
                ("Cache-Control", "no-store"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: requests are no news."""

    return Handler
