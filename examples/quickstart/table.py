"""Prints what examples/quickstart/run came to, from the files it left: scores, sizes, speed, and three answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def mib(path: Path) -> str:
    return f"{path.stat().st_size / 2**20:.1f} MiB"


def main(out: Path, base: Path) -> None:
    tuned = json.loads((out / "eval.json").read_text())
    small = json.loads((out / "eval-tuned.json").read_text())
    metrics = rows(out / "metrics.jsonl")
    before, after = rows(out / "before.jsonl"), rows(out / "after.jsonl")
    scores = (tuned["base"], tuned, small)
    table = [
        ("held-out rows", "base", "with adapter", "merged, q8_0"),
        ("perplexity", *(f"{s['perplexity']:.2f}" for s in scores)),
        ("accuracy", *(f"{100 * s['accuracy']:.0f} %" for s in scores)),
        ("size", mib(base), f"+ {mib(out / 'adapter.gguf')}", mib(out / "tuned.gguf")),
    ]
    print()
    for name, *cells in table:
        print(f"{name:<16}" + "".join(f"{cell:>16}" for cell in cells))
    speed = median(record["tokens_per_s"] for record in metrics)
    peak = max(record["peak_bytes"] for record in metrics) / 2**20
    seconds = sum(record["seconds"] for record in metrics)
    print(f"\ntrained {len(metrics)} steps in {seconds:.0f} s at {speed:.0f} tokens/s, peak memory {peak:.0f} MiB")
    print(f"merged in BF16: {mib(out / 'merged.gguf')}; loss plot: {out / 'loss.png'}")
    for old, new in zip(before, after, strict=True):
        question = next(m["content"] for m in old["messages"] if m["role"] == "user")
        print(f"\n{question}")
        print(f"  before: {' '.join(old['answer'].split())}")
        print(f"  after:  {' '.join(new['answer'].split())}")


main(Path(sys.argv[1]), Path(sys.argv[2]))
