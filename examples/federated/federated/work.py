"""What clients and the server do, by the commands of fabric; knows nothing of Flower."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

FABRIC = os.environ.get("FABRIC", "fabric")


class Tuned(NamedTuple):
    """What a client made of the adapter that it got: the file's bytes, and how many tokens it trained on."""

    adapter: bytes
    tokens: int


SENT = set(Tuned._fields)  # all that ever leaves a client


def fine_tune(adapter: bytes, rows: str | Path, model: str | Path, task: Mapping[str, float]) -> Tuned:
    """One client's part of a round. No adapter: the first round, where one seed gives all clients the same one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [FABRIC, "train", rows, "-m", model, "-o", folder / "tuned.gguf", "--run-dir", folder / "run", "-q"]
        command += ["--epochs", task["epochs"], "--lr", task["lr"], "--seed", "1"]
        if adapter:
            (folder / "given.gguf").write_bytes(adapter)
            command += ["-a", folder / "given.gguf"]
        else:
            command += ["--rank", int(task["rank"])]
        subprocess.run([*map(str, command)], check=True)
        steps = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        tokens = sum(json.loads(line)["trained_tokens"] for line in steps)
        return Tuned((folder / "tuned.gguf").read_bytes(), tokens)


def checked(record: Mapping[str, object]) -> Tuned:
    """What a client sent. ValueError for anything but an adapter and a count."""
    adapter, tokens = record.get("adapter"), record.get("tokens")
    if set(record) != SENT or not isinstance(adapter, bytes) or type(tokens) is not int or tokens < 1:
        raise ValueError(f"a client sent {sorted(record)}, and only {sorted(SENT)} may leave it")
    return Tuned(adapter, tokens)


def average(tuned: Sequence[Tuned]) -> bytes:
    """The mean of the clients' adapters, weighted by their tokens."""
    with tempfile.TemporaryDirectory() as name:
        folder, command = Path(name), [FABRIC, "merge", "--average", "-q"]
        for i, one in enumerate(sorted(tuned)):  # clients answer in any order
            (folder / f"{i}.gguf").write_bytes(one.adapter)
            command += ["-a", f"{folder / str(i)}.gguf={one.tokens}"]
        subprocess.run([*command, "-o", str(folder / "mean.gguf")], check=True)
        return (folder / "mean.gguf").read_bytes()
