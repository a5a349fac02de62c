"""The process that renders chat templates, seen from here: started on first use, bounded in time, ended with its owner.

One thread a process writes requests and reads answers, so that neither a large conversation nor a worker that hangs
can block the caller for longer than `seconds`.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fabric.errors import DataError
from fabric.system import HAS_POSIX
from fabric.text.sandbox import MAX_CHARS

RENDER_SECONDS = 20.0
_LINE_BYTES = 4 * MAX_CHARS + (1 << 20)
_ENVIRONMENT: dict[str, str] | None = {} if HAS_POSIX else None  # Windows starts no process without one


class Ask(NamedTuple):
    """One rendering: of the first `upto` messages of a conversation, then those in `more`.

    base: the number of an earlier rendering of the same call; the answer then holds only what differs from it.
    """

    conversation: int = 0
    upto: int | None = None
    prompt: bool = False
    more: Sequence[Mapping[str, Any]] = ()
    base: int | None = None


class Worker:
    """Renders one template. names: what it may use besides the conversation, such as `bos_token`; called: how errors
    name it."""

    def __init__(
        self, source: str, names: Mapping[str, str], seconds: float = RENDER_SECONDS, called: str = "the chat template"
    ) -> None:
        self._seconds, self._called = seconds, called
        self._setup = _line({"path": sys.path, "template": source, "names": dict(names)})
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._variables: frozenset[str] | None = None

    def render(self, conversations: Sequence[Any], asks: Sequence[Ask]) -> list[str | DataError]:
        """A text for each of `asks`, or why there is none. conversations: (messages, tools) of each,
        and what else its rendering may use by name.

        Raises DataError where the template cannot be used at all or passes its limits.
        """
        answer = self._call({"conversations": conversations, "asks": asks})
        texts: list[str | DataError] = []
        for ask, one in zip(asks, answer["out"], strict=True):
            if "error" in one:
                texts.append(DataError(f"{self._called} failed: {one['error']}"))
                continue
            base = "" if ask.base is None else texts[ask.base]
            texts.append(str(base)[: one["same"]] + one["text"])
        return texts

    def variables(self) -> frozenset[str]:
        """The names that the template asks for, such as `tools`."""
        if self._variables is None:
            self._variables = frozenset(self._call({"variables": True})["out"])
        return self._variables

    def stop(self) -> None:
        """Ends the process; the next request starts another."""
        if self._process is not None:
            self._finalize()
            self._process = None

    def _call(self, request: Mapping[str, Any]) -> Any:
        if self._process is None:
            self._start()
        self._requests.put(_line(request))
        try:
            line = self._answers.get(timeout=self._seconds)
        except queue.Empty:
            self.stop()
            raise DataError(f"{self._called} took longer than {self._seconds:g} s; it was stopped") from None
        if not line.endswith(b"\n"):
            self.stop()
            raise DataError(f"{self._called} used more time or memory than it may; it was stopped")
        answer = json.loads(line)
        if "error" in answer:
            raise DataError(f"{self._called} failed: {answer['error']}")
        return answer

    def _start(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("sandbox.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
        )
        self._process, self._requests, self._answers = process, queue.SimpleQueue(), queue.SimpleQueue()
        self._finalize = weakref.finalize(self, _end, process, self._requests)
        self._requests.put(self._setup)
        threading.Thread(target=_serve, args=(process, self._requests, self._answers), daemon=True).start()


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _serve(
    process: subprocess.Popen[bytes], requests: queue.SimpleQueue[bytes | None], answers: queue.SimpleQueue[bytes]
) -> None:
    """Passes requests on and answers back until there are no more; an empty answer when the process ended."""
    assert process.stdin is not None and process.stdout is not None
    line = b"\n"
    setup = requests.get()
    with contextlib.suppress(OSError, ValueError):  # a closed pipe: the process ended, or was ended from here
        process.stdin.write(setup or b"")
        while line.endswith(b"\n") and (request := requests.get()) is not None:
            process.stdin.write(request)
            process.stdin.flush()
            line = process.stdout.readline(_LINE_BYTES)
            answers.put(line)
    answers.put(b"")


def _end(process: subprocess.Popen[bytes], requests: queue.SimpleQueue[bytes | None]) -> None:
    requests.put(None)
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError, ValueError):
                pipe.close()
