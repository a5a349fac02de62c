"""What a run writes at its end: the adapter or the model, with the history of how it was made."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO, cast

from fabric.files import open_output
from fabric.settings import told
from fabric.training.identity import Inputs
from fabric.training.loop import Spans
from fabric.training.machine import Machine
from fabric.training.settings import TrainSettings
from fabric.training.target import Target
from fabric.weights.chat import Chat
from fabric.weights.history import Step, step


def write_result(
    settings: TrainSettings, target: Target, machine: Machine, chat: Chat, directory: Path, inputs: Inputs, spans: Spans
) -> tuple[int, str]:
    """Writes it; returns its size and SHA-256. An adapter stays in the run directory too, a model only where no output
    was named."""
    made = _step(settings, machine, inputs, spans)
    kept = str(directory / f"{target.kind}.gguf")
    places = [settings.output] if settings.output and settings.full else [settings.output, kept]
    size, digest = 0, hashlib.sha256()
    for place in places:
        if place is not None:
            digest = hashlib.sha256()
            with open_output(place) as out:
                size = target.write(cast(BinaryIO, _Hashed(out, digest)), machine.params, made, chat)
    return size, digest.hexdigest()


class _Hashed:
    """An output whose bytes are hashed on their way."""

    def __init__(self, out: BinaryIO, digest: hashlib._Hash) -> None:
        self.out, self.digest = out, digest

    def write(self, data: bytes | memoryview) -> int:
        self.digest.update(data)
        return self.out.write(data)


def _step(settings: TrainSettings, machine: Machine, inputs: Inputs, spans: Spans) -> Step:
    values = told(settings, "full" if settings.full else "lora")
    values["precision"] = machine.precision
    if machine.weights_kept != "blocks":
        values["weights"] = machine.weights_kept
    if len(spans.ends) > 1:
        values["extended"] = [list(end) for end in spans.ends[:-1]]
    return step("train", values, inputs.known, settings.seed)
