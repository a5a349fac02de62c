"""`generate --chat` through real pipes and a real terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.cli.shell import FABRIC, environment, fabric, one_sentence
from tests.support.paths import smollm2

LINES = ["the quick fox", "and the dog?", "is it in the house"]
F32 = ["--precision", "f32", "--max-tokens", "12"]


def chat(model: Path, lines: list[str], *flags: str) -> list[dict[str, Any]]:
    told = fabric("generate", "--chat", "-m", model, "--json", *F32, *flags, stdin="\n".join(lines).encode())
    assert told.code == 0, told.err
    return [json.loads(line) for line in told.out.splitlines()]


def test_each_answer_is_that_to_the_whole_conversation_and_only_new_tokens_are_computed(
    tiny: Path, tmp_path: Path
) -> None:
    turns = chat(tiny, LINES, "--system", "a fox")
    messages: list[dict[str, str]] = [{"role": "system", "content": "a fox"}]
    for line, turn in zip(LINES, turns, strict=True):
        messages.append({"role": "user", "content": line})
        row = tmp_path / "row.jsonl"
        row.write_text(json.dumps({"messages": messages}))
        anew = json.loads(fabric("generate", row, "-m", tiny, *F32).out)
        assert turn["prompt"] == line
        assert (turn["answer"], turn["answer_tokens"]) == (anew["answer"], anew["answer_tokens"])
        messages.append({"role": "assistant", "content": turn["answer"]})


def test_only_what_is_new_of_a_conversation_is_computed() -> None:
    lines = ["My name is Ada. What is the capital of France?", "And of Italy?", "What did I ask you first?"]
    turns = chat(smollm2(), lines)
    alone = [turn["computed_tokens"] for line in lines for turn in chat(smollm2(), [line])]
    assert turns[0]["computed_tokens"] == alone[0]
    assert all(turn["computed_tokens"] < most for turn, most in zip(turns[1:], alone[1:], strict=True))


def test_answers_are_lines_between_those_of_a_pipe_that_stays_open(tiny: Path) -> None:
    process = subprocess.Popen(
        [*FABRIC, "generate", "--chat", "-m", str(tiny), *F32],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    assert process.stdin and process.stdout
    for line in LINES:
        process.stdin.write(f"\n{line}\n".encode())
        process.stdin.flush()
        assert process.stdout.readline().strip()  # before the next message is written
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0 and told == b""


def test_a_conversation_that_no_longer_fits_forgets_its_beginning_and_says_so(tiny: Path) -> None:
    told = fabric(
        *("generate", "--chat", "-m", tiny, "--json", *F32, "--ctx", "90", "--system", "a fox"),
        stdin="\n".join(LINES * 3).encode(),
    )
    assert told.code == 0, told.err
    assert sum(json.loads(line)["forgotten"] for line in told.out.splitlines()) >= 2
    assert "forgotten" in told.err
    long = fabric("generate", "--chat", "-m", tiny, "--ctx", "40", stdin=b"the fox " * 80)
    one_sentence(long, 65, "the message has", "--ctx")


def test_an_answer_as_text_is_the_answer_of_the_row(tiny: Path) -> None:
    ask = ("generate", "-m", tiny, "--prompt", "the quick fox", *F32)
    whole = json.loads(fabric(*ask, "--json").out)["answer"]
    assert fabric(*ask).out.decode() == whole + "\n"
    stop = whole[4:6]
    assert fabric(*ask, "--stop", stop).out.decode() == whole[: whole.index(stop)] + "\n"
    sampled = (*ask, "--temperature", "1", "--choices", "2")
    answers = [json.loads(line)["answer"] for line in fabric(*sampled, "--json").out.splitlines()]
    assert fabric(*sampled).out.decode() == "".join(answer + "\n" for answer in answers)


def test_what_is_no_conversation_is_refused(tiny: Path, rows: Path) -> None:
    one_sentence(fabric("generate", rows, "-m", tiny, "--chat"), 2, "one of the three")
    one_sentence(fabric("generate", "-m", tiny, "--chat", "--raw"), 2, "--raw")
    one_sentence(fabric("generate", "-m", tiny, "--chat", "--choices", "2", "--batch", "2"), 2, "--choices and --batch")
    one_sentence(fabric("generate", "-m", tiny, "--chat", stdin=b"fox\n\xff\n"), 65, "stdin:2", "UTF-8")


class Terminal:
    """A conversation at a terminal."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*FABRIC, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment({"TERM": "xterm"})
        )
        os.close(slave)
        self.seen = b""

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def wait_for(self, text: bytes, more: int = 0) -> None:
        """Until the terminal has shown a text that was not there before, and `more` bytes behind it."""
        start, deadline = len(self.seen), time.monotonic() + 60
        while (at := self.seen.find(text, start)) < 0 or len(self.seen) < at + len(text) + more:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += os.read(self.master, 65536)

    def end(self) -> int:
        code = self.process.wait(60)
        os.close(self.master)
        return code


def test_ctrl_c_stops_the_answer_and_not_the_conversation(tmp_path: Path) -> None:
    from dataclasses import replace

    from tests.support.random_models import write_model
    from tests.support.shapes import PRESETS

    model = write_model(tmp_path / "m.gguf", replace(PRESETS["tiny"], context=1 << 17))
    talk = Terminal("generate", "--chat", "-m", str(model), "--ctx", "100000", "--max-tokens", "99999")
    talk.wait_for(b"> ")
    talk.type(b"the quick fox\r")
    talk.wait_for(b"fox\r\n", more=20)  # the answer is on its way
    talk.process.send_signal(signal.SIGINT)
    talk.wait_for(b"\n> ")
    assert talk.process.poll() is None
    talk.type(b"\x04")
    assert talk.end() == 0


def test_ctrl_c_at_the_prompt_ends_the_conversation(tiny: Path) -> None:
    talk = Terminal("generate", "--chat", "-m", str(tiny))
    talk.wait_for(b"> ")
    time.sleep(0.2)  # until it reads
    talk.process.send_signal(signal.SIGINT)
    talk.wait_for(b"interrupted")
    assert talk.end() == 130
