"""The rows of a run: read, encoded, counted, and split into training and validation."""

from __future__ import annotations

from dataclasses import dataclass

from fabric.data.pack import shuffled
from fabric.data.records import read_records
from fabric.errors import DataError, UsageError
from fabric.text.encode import EncodeReport, Example, encode_rows
from fabric.text.template import ChatTemplate
from fabric.text.tokenizer import Tokenizer
from fabric.training.settings import TrainSettings
from fabric.weights.gguf import GGUF


@dataclass(frozen=True)
class Rows:
    """Examples in file order; `notes` are sentences about rows that were cut or left out."""

    train: list[Example]
    val: list[Example]
    notes: list[str]


def load_rows(settings: TrainSettings, gguf: GGUF) -> Rows:
    """Reads and encodes the rows of a run. DataError where nothing is left to train on."""
    tokenizer = Tokenizer.from_gguf(gguf.metadata)
    template = ChatTemplate.choose(tokenizer, settings.template)
    notes: list[str] = []

    def load(path: str, stride: int | None = None) -> list[Example]:
        report = EncodeReport()
        examples = list(encode_rows(read_records(path), tokenizer, template, settings.ctx, report, stride))
        what = [
            (report.cut, f"cut to {settings.ctx} tokens: raise --ctx to keep them whole"),
            (report.nothing_to_train, "left out: nothing to train on (no answer, or it lies beyond the context)"),
        ]
        notes.extend(f"{path}: {n} of {report.rows} rows {text}" for n, text in what if n)
        if not examples:
            cut = f": {report.cut} were cut to {settings.ctx} tokens, raise --ctx" if report.cut else ""
            raise DataError(f"{path}: none of {report.rows} rows has anything to train on{cut}")
        return examples

    try:
        train = load(settings.data, settings.stride)
        fraction = _fraction(settings)
        if fraction is None:
            return Rows(train, load(settings.val) if settings.val else [], notes)
    finally:
        template.close()
    held = max(1, round(len(train) * fraction))
    if held >= len(train):
        raise DataError(f"{settings.data}: {len(train)} rows are too few to hold out a fraction of {fraction:g}")
    chosen = set(shuffled(len(train), settings.seed, -1)[:held])
    kept = [e for i, e in enumerate(train) if i not in chosen]
    return Rows(kept, [train[i] for i in sorted(chosen)], notes)


def _fraction(settings: TrainSettings) -> float | None:
    """The number in `--val 0.05`; None for a file's name."""
    fraction = settings.val_fraction
    if fraction is not None and not 0 < fraction < 1:
        raise UsageError(
            f"--val {settings.val}: a fraction lies between 0 and 1; a file of that name is ./{settings.val}"
        )
    return fraction
