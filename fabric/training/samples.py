"""Answers to a few prompts while a model trains, by its weights as they are then: read, decoded, and kept in
samples.jsonl. They decode as `generate` does, over the weights and parameters that train, and change nothing of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric.errors import DataError, OutputError
from fabric.files import shown
from fabric.generation.decoding import FEED_TOKENS, answers
from fabric.generation.generate import context_limit, with_room
from fabric.generation.model import Text
from fabric.generation.prompts import Prompt, read_prompts
from fabric.generation.settings import GenerateSettings
from fabric.models.inference import Decoder
from fabric.models.recorder import Source, Weights
from fabric.runs.directory import SAMPLES
from fabric.text.tokenizer import Tokenizer
from fabric.training.metrics import records_until

MOST = 4  # prompts


@dataclass(frozen=True)
class Samples:
    """Prompts, and how they are answered. Each has `room` tokens with its answer."""

    prompts: list[Prompt]
    settings: GenerateSettings
    tokenizer: Tokenizer
    room: int

    def decoder(
        self, weights: Weights, precision: str, trained: Mapping[str, Source], alpha: float, decode: bool, context: int
    ) -> Decoder:
        """One that reads what trains where it lies. `context`: that of training, as in a Recorder."""
        lanes = len(self.prompts)
        tokens = max(lanes, min(FEED_TOKENS, sum(len(prompt.ids) for prompt in self.prompts)))
        return Decoder(
            weights, lanes * self.room, tokens, lanes, precision, trained, alpha, decode, max(context, self.room)
        )

    def answers(self, decoder: Decoder, step: int, show: Callable[[float], None]) -> list[dict[str, Any]]:
        """The records of a step: prompt, answer, and what was expected where the row says that. `show` is called with
        the part that is done, and may raise."""
        ids, lanes = [prompt.ids for prompt in self.prompts], len(self.prompts)
        found: dict[int, dict[str, Any]] = {}
        show(0.0)
        running = answers(
            self.settings, self.tokenizer, decoder, ids, lanes, self.room, lambda _: show(len(found) / lanes)
        )
        for lane, finish in running:
            prompt = self.prompts[lane.number]
            reference = prompt.row.get("reference")
            found[lane.number] = {
                "step": step, "prompt": asked(prompt.row), "answer": lane.answer.text,
                **({} if reference is None else {"expected": reference}), "finish": finish,
            }  # fmt: skip
            show(len(found) / lanes)
        return [found[number] for number in range(lanes)]


def asked(row: Mapping[str, Any]) -> str:
    """What a row asks: the text, or the last thing that the user said."""
    if "messages" not in row:
        return str(row.get("prompt", row.get("text", "")))
    users = [message for message in row["messages"] if message["role"] == "user"]
    return str((users or row["messages"])[-1].get("content") or "")


def read_samples(path: str, text: Text, notes: list[str]) -> Samples:
    """The first rows of a file. Raises DataError, MissingInputError."""
    settings = GenerateSettings(text.gguf.path, data=path)
    limit = context_limit(settings, text)
    prompts = read_prompts(settings, text, MOST + 1)
    if not prompts:
        raise DataError(f"{shown(path)}: no rows, so no samples can be answered")
    if len(prompts) > MOST:
        prompts = prompts[:MOST]
        notes.append(f"{shown(path)}: samples are answers to its first {MOST} rows")
    with_room(prompts, limit)
    room = min(limit, max(len(prompt.ids) for prompt in prompts) + settings.max_tokens)
    return Samples(prompts, settings, text.tokenizer, room)


class SampleLog:
    """samples.jsonl of a run; on resume without what was answered after the checkpoint's step."""

    def __init__(self, directory: Path, after_step: int) -> None:
        self.path = directory / SAMPLES
        try:
            end, _, last = records_until(self.path, after_step) if after_step else (0, 0, {})
            with self.path.open("ab") as file:
                file.truncate(end)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}") from error
        self.step = int(last.get("step", -1))
        """The last one that was answered."""

    def write(self, records: list[dict[str, Any]]) -> None:
        """All answers of a step, at once."""
        try:
            with self.path.open("ab") as file:
                file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}") from error
        self.step = records[0]["step"]
