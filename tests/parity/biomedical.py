"""The learning proof: a real model learns the biomedical rows as PEFT does, through our commands or (`--peft`) through
PEFT, and is scored on the validation rows.

    python -m tests.parity.biomedical [--model smollm2|gemma3] [--precision f32|bf16] [--epochs 3] [--seed 42]
        [--full | --peft]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.paths import REPOSITORY, gemma3, shared, smollm2


@dataclass(frozen=True)
class Subject:
    """A model, and how it is asked: `prompt` takes the question, `answer` the answer. `published`: PEFT's loss a
    trained token and label accuracy before training and after each epoch.
    """

    path: Callable[[], Path]
    shape: str
    prompt: str
    answer: str
    published: dict[str | int, tuple[float, float]]


SUBJECTS = {
    "smollm2": Subject(
        smollm2,
        "smollm2-135m",
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "{}<|im_end|>\n",
        {"base": (3.685, 0.33), 1: (2.459, 0.33), 2: (2.415, 0.52), 3: (2.414, 0.52)},
    ),
    "gemma3": Subject(
        gemma3,
        "gemma3-270m",
        "Q: {}\nA:",
        " {}<eos>",
        {"base": (3.492, 0.36), 1: (2.370, 0.48), 2: (2.441, 0.52), 3: (2.649, 0.58)},
    ),
}
"""SmolLM2 is a chat model, Gemma-3-270M a plain one."""

SETTINGS: dict[str, float] = {"rank": 16, "alpha": 32, "lr": 5e-4, "batch": 8, "weight_decay": 0.01, "clip": 1.0}
FULL_SETTINGS: dict[str, float] = {"lr": 1e-4, "batch": 8, "weight_decay": 0.01, "clip": 1.0}
"""Of whole weights, which want a lower rate."""


def records(subject: Subject, split: str) -> list[dict[str, Any]]:
    """Rendered records of `train` or `validation`, as README.md describes them."""
    found = []
    for line in shared(f"data/biomedical_qa/{split}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = subject.prompt.format(row["question"])
        text = prompt + subject.answer.format(row["text"].split("\nA: ", 1)[1])
        found.append({"text": text, "train": [[len(prompt), len(text)]], "label": row["label"]})
    return found


def write(subject: Subject, folder: Path) -> tuple[Path, Path]:
    """Both splits as files."""
    paths = []
    for split in ("train", "validation"):
        paths.append(folder / f"{split}.jsonl")
        lines = (json.dumps(record) + "\n" for record in records(subject, split))
        paths[-1].write_text("".join(lines), encoding="utf-8")
    return paths[0], paths[1]


def fabric(*arguments: object) -> str:
    """Runs a command of ours and returns its stdout."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "fabric", *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout


def train(
    subject: Subject, folder: Path, precision: str, epochs: float = 3, threads: int = 2, seed: int = 42,
    full: bool = False,
) -> tuple[Path, list[float]]:  # fmt: skip
    """Trains through the command; returns the adapter (or model) and the validation loss after each epoch."""
    rows, held_out = write(subject, folder)
    tuned, metrics = folder / "tuned.gguf", folder / "metrics.jsonl"
    settings = FULL_SETTINGS if full else SETTINGS
    flags = [part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", value)]
    fabric(
        *("train", *(["--full"] if full else []), rows, "-m", subject.path(), "-o", tuned),
        *("--val", held_out, "--epochs", epochs, *flags),
        *("--precision", precision, "--threads", threads, "--metrics", metrics, "--run-dir", folder / "run", "-q"),
        *("--seed", seed),
    )
    found = [json.loads(line) for line in metrics.read_text().splitlines()]
    return tuned, [record["val_loss"] for record in found if "val_loss" in record]


def evaluate(
    subject: Subject, folder: Path, precision: str, tuned: Path | None = None, threads: int = 2, full: bool = False
) -> tuple[float, float]:
    """Loss a trained token and label accuracy on the validation rows, by the command."""
    _, held_out = write(subject, folder)
    model, beside = (tuned, []) if full and tuned else (subject.path(), ["-a", tuned] if tuned else [])
    flags = ["--precision", precision, "--threads", threads, "--json"]
    told = json.loads(fabric("eval", held_out, "-m", model, *beside, *flags))
    return told["loss"], told["accuracy"]


def peft(subject: Subject, epochs: int, threads: int, seed: int) -> Iterator[tuple[float, float]]:
    """Loss and accuracy before training and after each epoch, with PEFT in f32 and the tokens of stock llama.cpp."""
    import torch

    from tests.parity.reference import Recipe, Reference
    from tests.parity.reference import train as train_peft
    from tests.parity.rows import Row
    from tests.support.llama_cpp import Llama
    from tests.support.random_models import random_pairs
    from tests.support.shapes import PRESETS

    def row(prompt: list[int], answer: list[int]) -> Row:
        return Row(prompt + answer, [0] * len(prompt) + [1] * len(answer))

    torch.set_num_threads(threads)
    with Llama(subject.path()) as llama:

        def parts(record: dict[str, Any]) -> tuple[list[int], list[int]]:
            first = record["train"][0][0]
            prompt = llama.tokenize(record["text"][:first], bos=True)  # where the model wants one
            return prompt, llama.tokenize(record["text"][first:])

        rows = [row(*parts(record)) for record in records(subject, "train")]
        validation = [(*parts(record), record["label"]) for record in records(subject, "validation")]
        space = " " if subject.answer.startswith(" ") else ""
        labels = {label: llama.tokenize(space + label) for label in sorted({label for *_, label in validation})}
    reference = Reference(subject.path(), torch.float32, "sdpa")

    def score() -> tuple[float, float]:
        right = 0
        for prompt, _, label in validation:
            nll = {name: reference.mean_nll([row(prompt, ids)]) * len(ids) for name, ids in labels.items()}
            right += min(nll, key=lambda name: nll[name]) == label
        loss = reference.mean_nll([row(prompt, answer) for prompt, answer, _ in validation])
        return loss, right / len(validation)

    yield score()
    reference.add_lora(random_pairs(PRESETS[subject.shape], rank=int(SETTINGS["rank"]), seed=seed), SETTINGS["alpha"])
    order, batches = random.Random(seed), []
    size = int(SETTINGS["batch"])
    for _ in range(epochs):
        shuffled = order.sample(rows, len(rows))
        batches += [shuffled[i : i + size] for i in range(0, len(rows), size)]
    per_epoch = len(batches) // epochs
    recipe = Recipe(len(batches), SETTINGS["lr"], 0.1, SETTINGS["weight_decay"], SETTINGS["clip"])
    for i, _ in enumerate(train_peft(reference, batches, recipe), 1):
        if i % per_epoch == 0:
            yield score()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Let a real model learn the biomedical rows and score it.")
    parser.add_argument("--model", choices=SUBJECTS, default="smollm2")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=42, help="of the order of the rows and of the pairs")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--full", action="store_true", help="train whole weights instead of LoRA pairs")
    way.add_argument("--peft", action="store_true", help="train with PEFT in f32 instead")
    args = parser.parse_args()
    subject = SUBJECTS[args.model]
    print(f"{'':8}{'loss':>8}{'accuracy':>10}{'published':>20}")

    def line(name: str | int, loss: float, accuracy: float | None) -> None:
        shown = f"{accuracy:10.1%}" if accuracy is not None else " " * 10
        published = "{:.3f} {:.0%}".format(*subject.published[name]) if name in subject.published else ""
        print(f"{name!s:8}{loss:8.4f}{shown}{published:>20}", flush=True)

    if args.peft:
        for epoch, (loss, accuracy) in enumerate(peft(subject, args.epochs, args.threads, args.seed)):
            line(epoch or "base", loss, accuracy)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        line("base", *evaluate(subject, folder, args.precision, threads=args.threads))
        tuned, losses = train(subject, folder, args.precision, args.epochs, args.threads, args.seed, args.full)
        for epoch, loss in enumerate(losses[:-1], 1):
            line(epoch, loss, None)
        line(args.epochs, *evaluate(subject, folder, args.precision, tuned, args.threads, args.full))


if __name__ == "__main__":
    main()
