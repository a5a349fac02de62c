"""The learning proof: SmolLM2 learns the biomedical rows as the quality table says, through our commands or
(`--peft`) through PEFT, and is scored on the validation rows.

    python -m tests.parity.biomedical [--precision f32|bf16] [--epochs 3] [--seed 42] [--threads 2] [--peft]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.paths import REPOSITORY, shared, smollm2

PUBLISHED = {"base": (3.685, 0.33), 1: (2.459, 0.33), 2: (2.415, 0.52), 3: (2.414, 0.52)}
"""PEFT's loss a trained token and label accuracy, before training and after each epoch."""

SETTINGS: dict[str, float] = {"rank": 16, "alpha": 32, "lr": 5e-4, "batch": 8, "weight_decay": 0.01, "clip": 1.0}


def records(split: str) -> list[dict[str, Any]]:
    """Rendered records of `train` or `validation`, as README.md describes them."""
    found = []
    for line in shared(f"data/biomedical_qa/{split}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n"
        text = prompt + row["text"].split("\nA: ", 1)[1] + "<|im_end|>\n"
        found.append({"text": text, "train": [[len(prompt), len(text)]], "label": row["label"]})
    return found


def write(folder: Path) -> tuple[Path, Path]:
    """Both splits as files."""
    paths = []
    for split in ("train", "validation"):
        paths.append(folder / f"{split}.jsonl")
        paths[-1].write_text("".join(json.dumps(record) + "\n" for record in records(split)), encoding="utf-8")
    return paths[0], paths[1]


def fabric(*arguments: object) -> str:
    """Runs a command of ours and returns its stdout."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "fabric", *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout


def train(
    folder: Path, precision: str, epochs: float = 3, threads: int = 2, seed: int = 42
) -> tuple[Path, list[float]]:
    """Trains through the command; returns the adapter and the validation loss after each epoch."""
    rows, held_out = write(folder)
    adapter, metrics = folder / "adapter.gguf", folder / "metrics.jsonl"
    flags = [part for key, value in SETTINGS.items() for part in (f"--{key.replace('_', '-')}", value)]
    fabric(
        *("train", rows, "-m", smollm2(), "-o", adapter, "--val", held_out, "--epochs", epochs, *flags),
        *("--precision", precision, "--threads", threads, "--metrics", metrics, "--run-dir", folder / "run", "-q"),
        *("--seed", seed),
    )
    found = [json.loads(line) for line in metrics.read_text().splitlines()]
    return adapter, [record["val_loss"] for record in found if "val_loss" in record]


def evaluate(folder: Path, precision: str, adapter: Path | None = None, threads: int = 2) -> tuple[float, float]:
    """Loss a trained token and label accuracy on the validation rows, by the command."""
    _, held_out = write(folder)
    beside = ["-a", adapter] if adapter else []
    flags = ["--precision", precision, "--threads", threads, "--json"]
    told = json.loads(fabric("eval", held_out, "-m", smollm2(), *beside, *flags))
    return told["loss"], told["accuracy"]


def peft(epochs: int, threads: int, seed: int) -> Iterator[tuple[float, float]]:
    """Loss and accuracy before training and after each epoch, with PEFT in f32."""
    import torch

    from fabric.text.tokenizer import Tokenizer
    from fabric.weights.gguf import GGUF
    from tests.parity.reference import Recipe, Reference
    from tests.parity.reference import train as train_peft
    from tests.parity.rows import Row
    from tests.support.random_models import PRESETS, random_pairs

    torch.set_num_threads(threads)
    with GGUF.open(smollm2()) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf.metadata)

    def parts(record: dict[str, Any]) -> tuple[list[int], list[int]]:
        first = record["train"][0][0]
        return tokenizer.encode(record["text"][:first], special=True), tokenizer.encode(record["text"][first:], True)

    def row(prompt: list[int], answer: list[int]) -> Row:
        return Row(prompt + answer, [0] * len(prompt) + [1] * len(answer))

    rows = [row(*parts(record)) for record in records("train")]
    validation = [(*parts(record), record["label"]) for record in records("validation")]
    labels = {label: tokenizer.encode(label) for label in sorted({label for *_, label in validation})}
    reference = Reference(smollm2(), torch.float32, "sdpa")

    def score() -> tuple[float, float]:
        right = 0
        for prompt, _, label in validation:
            nll = {name: reference.mean_nll([row(prompt, ids)]) * len(ids) for name, ids in labels.items()}
            right += min(nll, key=lambda name: nll[name]) == label
        loss = reference.mean_nll([row(prompt, answer) for prompt, answer, _ in validation])
        return loss, right / len(validation)

    yield score()
    reference.add_lora(random_pairs(PRESETS["smollm2-135m"], rank=int(SETTINGS["rank"]), seed=seed), SETTINGS["alpha"])
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
    parser = argparse.ArgumentParser(description="Let SmolLM2 learn the biomedical rows and score it.")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=42, help="of the order of the rows and of the pairs")
    parser.add_argument("--peft", action="store_true", help="train with PEFT in f32 instead")
    args = parser.parse_args()
    print(f"{'':8}{'loss':>8}{'accuracy':>10}{'published':>20}")

    def line(name: str | int, loss: float, accuracy: float | None) -> None:
        shown = f"{accuracy:10.1%}" if accuracy is not None else " " * 10
        published = "{:.3f} {:.0%}".format(*PUBLISHED[name]) if name in PUBLISHED else ""
        print(f"{name!s:8}{loss:8.4f}{shown}{published:>20}", flush=True)

    if args.peft:
        for epoch, (loss, accuracy) in enumerate(peft(args.epochs, args.threads, args.seed)):
            line(epoch or "base", loss, accuracy)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        line("base", *evaluate(folder, args.precision, threads=args.threads))
        adapter, losses = train(folder, args.precision, args.epochs, args.threads, args.seed)
        for epoch, loss in enumerate(losses[:-1], 1):
            line(epoch, loss, None)
        line(args.epochs, *evaluate(folder, args.precision, adapter, args.threads))


if __name__ == "__main__":
    main()
