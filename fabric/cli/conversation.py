"""What `generate` shows: answers as rows or as text that appears while it is made, and a conversation at a terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from fabric import interrupts
from fabric.cli import console, signals
from fabric.errors import DataError

if TYPE_CHECKING:
    from fabric.generation.chat import Chat
    from fabric.generation.settings import GenerateSettings


def answer(settings: GenerateSettings, output: str) -> None:
    """Rows of JSONL, or the plain answers to a --prompt."""
    from fabric.data.jsonl import dumps
    from fabric.files import open_output
    from fabric.generation.generate import generate

    as_text = settings.prompt is not None and not console.flag("json")
    with open_output(output, text=True) as file:

        def show(piece: str) -> None:
            file.write(piece.encode())
            file.flush()

        streams = as_text and settings.choices == 1
        for row in generate(settings, show if streams else None, console.note):
            file.write(b"" if streams else row["answer"].encode() if as_text else dumps(row))
            file.write(b"\n")
            file.flush()


def converse(settings: GenerateSettings, output: str) -> None:
    """A message a line, its answer below it; with --json an object a turn."""
    from fabric.data.jsonl import dumps
    from fabric.files import open_output
    from fabric.generation.chat import open_chat

    as_text = not console.flag("json")
    with open_chat(settings) as chat, open_output(output, text=True) as file:
        for sentence in chat.notes:
            console.note(sentence)
        for message in _messages():
            try:
                for piece in _stoppable(chat, message):
                    if as_text and piece:
                        file.write(piece.encode())
                        file.flush()
            except DataError as error:
                if not sys.stdin.isatty():
                    raise
                console.note(str(error))
                continue
            file.write(b"\n" if as_text else dumps(dataclasses.asdict(chat.turn)) + b"\n")
            file.flush()
            if chat.turn.forgotten:
                console.note(f"the conversation is long: its oldest {chat.turn.forgotten} messages are forgotten")


def _messages() -> Iterator[str]:
    """The lines of stdin that are not blank, until it ends. At a terminal they are asked for, and can be edited."""
    if not sys.stdin.isatty():
        yield from _piped()
        return
    with contextlib.suppress(ImportError):  # not every system has it
        import readline  # noqa: F401
    while True:
        try:
            line = input("> ") if sys.stdout.isatty() else _asked()
        except EOFError:
            print(file=sys.stderr)
            return
        if line.strip():
            yield line


def _asked() -> str:
    """Asks on stderr, where stdout is not the terminal."""
    print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _piped() -> Iterator[str]:
    from fabric.files import read_input

    with read_input("-") as lines:
        for number, line in enumerate(_lines(lines), 1):
            try:
                text = line.decode().rstrip("\r\n")
            except UnicodeDecodeError:
                raise DataError(f"stdin:{number}: not UTF-8 text") from None
            if text.strip():
                yield text


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Each line as soon as it is there: iterating over a file reads ahead."""
    while line := file.readline(1 << 20):
        yield line


def _stoppable(chat: Chat, message: str) -> Iterator[str]:
    """An answer that Ctrl-C ends, at a terminal; a second one ends the command."""
    if not sys.stdin.isatty():
        yield from chat.say(message)
        return
    with interrupts.held():
        yield from chat.say(message, interrupts.asked)
        if signals.number == signal.SIGINT:
            signals.forget()
    interrupts.check()
