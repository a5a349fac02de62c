"""Chat templates: conversations to text, and the spans of it that a model must produce.

Spans are found by rendering, never by searching for role names: the text up to an answer is what the template renders
of the messages before it with a generation prompt. A template for which that does not hold is refused.
"""

from __future__ import annotations

import contextlib
import json
import queue
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fabric.errors import DataError
from fabric.files import read_input, shown
from fabric.text.sandbox import MAX_CHARS
from fabric.text.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' }}"
    "{{ message['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
RENDER_SECONDS = 20.0
_MAX_SOURCE_CHARS = 1 << 20

Messages = Sequence[dict[str, Any]]
Span = tuple[int, int]


class Rendered(NamedTuple):
    """A conversation as text. Every range is [start, end) in characters, ascending.

    spans: what the model must produce, one for each answer: its content and its end-of-turn token.
    literal: text of messages that looks like a control token and is none.
    """

    text: str
    spans: list[Span]
    literal: list[Span]


class ChatTemplate:
    """A Jinja chat template. Rendering happens in a worker process with limits, started on first use.

    ends: spellings of the tokens that end an answer, `eos` where none are given. controls: spellings of control
    tokens, which mean nothing inside a message. seconds: the longest that one rendering may take.
    """

    def __init__(
        self,
        source: str,
        bos: str = "",
        eos: str = "",
        ends: Sequence[str] = (),
        controls: Iterable[str] = (),
        seconds: float = RENDER_SECONDS,
    ) -> None:
        if len(source) > _MAX_SOURCE_CHARS:
            raise DataError(f"the chat template has {len(source)} characters; at most {_MAX_SOURCE_CHARS} are read")
        ends = [text for text in (ends or (eos,)) if text]
        self._ends = re.compile("|".join(map(re.escape, sorted(ends, key=len, reverse=True))) or r"(?!)")
        self._controls = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or r"(?!)")
        self._worker = _Worker(source, bos, eos, seconds)

    @classmethod
    def choose(cls, tokenizer: Tokenizer, custom: str | None = None) -> ChatTemplate:
        """The template in the file `custom`, else the model's own, else ChatML or Gemma's turns, by its tokens."""
        source = tokenizer.chat_template or _usual(tokenizer)
        if custom is not None:
            with read_input(custom) as file:
                read = file.read(4 * _MAX_SOURCE_CHARS + 1)
            try:
                source = read.decode()
            except UnicodeDecodeError:
                raise DataError(f"the chat template {shown(custom)} is not UTF-8 text") from None

        def spelled(token: int | None) -> str:
            return "" if token is None else tokenizer.tokens[token]

        ends, controls = tokenizer.end_texts, tokenizer.control_texts
        return cls(source, spelled(tokenizer.bos_id), spelled(tokenizer.eos_id), ends, controls)

    def render(
        self, messages: Messages, tools: Sequence[dict[str, Any]] | None = None, add_generation_prompt: bool = False
    ) -> str:
        """The conversation as text; DataError where the template refuses it or passes its limits."""
        return self._worker.render([(messages, tools, add_generation_prompt)])[0]

    def prompt(self, messages: Messages, tools: Sequence[dict[str, Any]] | None = None) -> Rendered:
        """What an answer to the conversation starts from."""
        return self._rendered(messages, tools, lambda m, t: ([(m, t, True)], lambda texts: []))

    def spans(self, messages: Messages, tools: Sequence[dict[str, Any]] | None = None) -> Rendered:
        """The conversation with its trained spans; DataError where they cannot be told for certain."""

        def plan(messages: Messages, tools: Any) -> _Plan:
            answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
            requests = [(messages, tools, False)]
            for i in answers:
                requests += [(messages[:i], tools, True), (messages[: i + 1], tools, False)]
            if answers and answers[-1] == len(messages) - 1:
                del requests[-1]  # the conversation up to its last message is the conversation

            def find(texts: list[str]) -> list[Span]:
                whole, pairs = texts[0], [*texts[1:], texts[0]]
                ends = zip(pairs[0::2], pairs[1::2], strict=False)
                told = [bool(messages[i].get("content")) for i in answers]
                return [
                    self._span(whole, before, upto, number, said)
                    for number, ((before, upto), said) in enumerate(zip(ends, told, strict=True), 1)
                ]

            return requests, find

        return self._rendered(messages, tools, plan)

    def close(self) -> None:
        """Ends the worker process."""
        self._worker.stop()

    def _span(self, whole: str, before: str, upto: str, number: int, said: bool) -> Span:
        """Of answer `number`: before is rendered up to its start, upto with it as the last message.

        said: whether its content is not empty.
        """
        refusal = DataError(
            f"the chat template renders answer {number} differently depending on what follows it, so what to train on "
            "is not certain; split the conversation after each answer, or give another template with --template"
        )
        if not whole.startswith(before) or not upto.startswith(before):
            raise refusal
        start = len(before)
        alone, within = self._ends.search(upto, start), self._ends.search(whole, start)
        if alone is None:  # no end-of-turn token: all that the turn adds
            if not whole.startswith(upto) or len(upto) == start:
                raise refusal
            return start, len(upto)
        if within is None or within.group() != alone.group():
            raise refusal
        # Later turns may drop the reasoning in front of an answer, nothing else.
        content, content_within = upto[start : alone.start()], whole[start : within.start()]
        if not content.endswith(content_within) or (said and content and not content_within):
            raise refusal
        return start, within.end()

    def _rendered(self, messages: Messages, tools: Any, plan: Callable[[Messages, Any], _Plan]) -> Rendered:
        if not any(map(self._controls.search, _strings([messages, tools]))):
            requests, find = plan(messages, tools)
            texts = self._worker.render(requests)
            return Rendered(texts[0], find(texts), [])
        # Look-alikes are rendered as private characters of the same length: where those come out, they stand.
        used = set().union(*_strings([messages, tools]))
        private = next((chr(code) for code in range(0x100000, 0x10FFFE) if chr(code) not in used), None)
        if private is None:
            raise DataError(
                "a message has the spelling of a control token and every character from U+100000 to U+10FFFD"
            )

        def masked(value: Any) -> Any:
            if isinstance(value, str):
                return self._controls.sub(lambda match: private * len(match.group()), value)
            if isinstance(value, list):
                return [masked(item) for item in value]
            return {masked(k): masked(v) for k, v in value.items()} if isinstance(value, dict) else value

        requests, find = plan(masked(list(messages)), masked(tools))
        text, *texts = self._worker.render([(messages, tools, requests[0][2]), *requests])
        literal = [match.span() for match in re.finditer(f"{private}+", texts[0])]
        if re.sub(private, "", texts[0]) != "".join(_outside(text, literal)) or len(text) != len(texts[0]):
            raise DataError(
                "a message contains the spelling of a control token and the chat template treats it as one; "
                "take it out of the message"
            )
        return Rendered(text, find(texts), literal)


def _usual(tokenizer: Tokenizer) -> str:
    """ChatML; where the model has no token for its end of turn, Gemma's turns, or ChatML's with the model's own end."""
    if {"<start_of_turn>", "<end_of_turn>"} <= tokenizer.control_texts:
        return _GEMMA
    if "<|im_end|>" in tokenizer.control_texts or tokenizer.eos_id is None:
        return CHATML
    return CHATML.replace("'<|im_end|>\n'", "eos_token + '\n'")


_Request = tuple[Messages, Any, bool]
_Plan = tuple[list[_Request], Callable[[list[str]], list[Span]]]


def _strings(value: Any) -> Iterator[str]:
    """Every string inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.items():
            yield from _strings(item)


def _outside(text: str, ranges: Sequence[Span]) -> Iterable[str]:
    last = 0
    for start, end in ranges:
        yield text[last:start]
        last = end
    yield text[last:]


class _Worker:
    """The process that renders, its time bounded from here and everything else by itself."""

    def __init__(self, source: str, bos: str, eos: str, seconds: float) -> None:
        self._seconds = seconds
        self._setup = {"path": sys.path, "template": source, "bos": bos, "eos": eos}
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def render(self, requests: list[_Request]) -> list[str]:
        """One text a request."""
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None and process.stdin is not None
        try:
            process.stdin.write(json.dumps(requests).encode() + b"\n")
            process.stdin.flush()
            line = self._answers.get(timeout=self._seconds)
        except queue.Empty:
            self.stop()
            raise DataError(f"the chat template took longer than {self._seconds:g} s; it was stopped") from None
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            self.stop()
            raise DataError("the chat template used more time or memory than it may; it was stopped")
        answer = json.loads(line)
        if "error" in answer:
            raise DataError(f"the chat template failed: {answer['error']}")
        out: list[str] = answer["out"]
        return out

    def stop(self) -> None:
        """Ends the process; the next request starts another."""
        if self._process is not None:
            self._finalize()
            self._process = None

    def _start(self) -> None:
        script = Path(__file__).with_name("sandbox.py")
        process = subprocess.Popen(
            [sys.executable, "-I", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None
        self._process, self._answers = process, queue.SimpleQueue()
        self._finalize = weakref.finalize(self, _end, process)
        threading.Thread(target=_pump, args=(process, self._answers), daemon=True).start()
        process.stdin.write(json.dumps(self._setup).encode() + b"\n")


def _pump(process: subprocess.Popen[bytes], answers: queue.SimpleQueue[bytes]) -> None:
    """Lines of the worker into the queue; an empty one when it ended. JSON spells a character in up to 12 bytes."""
    assert process.stdout is not None
    line = b"\n"
    with contextlib.suppress(ValueError):  # the pipe is closed where the process is ended while it answers
        while line.endswith(b"\n"):
            line = process.stdout.readline(12 * MAX_CHARS + (1 << 20))
            answers.put(line)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
