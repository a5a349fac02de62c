"""One epoch over the biomedical rows on SmolLM2-135M, by `fabric train` and by PEFT:

    python benchmarks/epoch.py [--rounds 1] [--peers fabric peft] [--rows 264]

Loss on the answers only, LoRA r=16 on 7 modules, bf16, 8 rows an optimizer step. fabric runs as a command on the GGUF
and packs its rows; PEFT takes the same tokens in batches of 8 padded to the longest, with pairs in the model's own
type. Prints rows/s of the optimizer steps and, for both, the seconds of the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.parity.biomedical import SETTINGS, SUBJECTS, records, write  # noqa: E402
from tests.support.paths import smollm2  # noqa: E402

PEERS = ("fabric", "peft")
SUBJECT = SUBJECTS["smollm2"]


def fabric(threads: int, most: int) -> dict[str, Any]:
    """The command, its own report as JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, _ = write(SUBJECT, folder)
        kept = rows.read_text(encoding="utf-8").splitlines(keepends=True)[:most]
        rows.write_text("".join(kept), encoding="utf-8")
        flags = [str(part) for key, value in SETTINGS.items() for part in (f"--{key.replace('_', '-')}", value)]
        command = [sys.executable, "-m", "fabric", "train", str(rows), "-m", str(smollm2()), *flags]
        command += ["-o", str(folder / "adapter.gguf"), "--epochs", "1", "--precision", "bf16", "--json"]
        command += ["--threads", str(threads), "--run-dir", str(folder / "run")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        told = json.loads(
            subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
        )
    return {"rows": len(kept), "seconds": told["seconds"], "loss": told["loss"]}


def peft(threads: int, most: int) -> dict[str, Any]:
    """The same rows, shuffled once, padded batch by batch."""
    import torch

    from fabric.text.tokenizer import Tokenizer
    from fabric.weights.gguf import GGUF
    from tests.parity.reference import Reference
    from tests.support.random_models import random_pairs
    from tests.support.shapes import PRESETS

    torch.set_num_threads(threads)
    with GGUF.open(smollm2()) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf.metadata)
    rows = []
    for record in records(SUBJECT, "train")[:most]:
        first = record["train"][0][0]
        prompt, answer = (tokenizer.encode(part, True) for part in (record["text"][:first], record["text"][first:]))
        rows.append((prompt + answer, [-100] * len(prompt) + answer))
    reference = Reference(smollm2(), torch.bfloat16, "sdpa")
    reference.add_lora(random_pairs(PRESETS["smollm2-135m"], rank=int(SETTINGS["rank"])), SETTINGS["alpha"], None)
    model = reference.model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=SETTINGS["lr"], weight_decay=SETTINGS["weight_decay"])
    random.Random(0).shuffle(rows)
    size, loss = int(SETTINGS["batch"]), torch.zeros(())
    start = time.perf_counter()
    for at in range(0, len(rows), size):
        batch = rows[at : at + size]
        longest = max(len(tokens) for tokens, _ in batch)
        ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens, _ in batch])
        labels = torch.tensor([targets + [-100] * (longest - len(targets)) for _, targets in batch])
        mask = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens, _ in batch])
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, SETTINGS["clip"])
        optimizer.step()
    return {"rows": len(rows), "seconds": time.perf_counter() - start, "loss": float(loss.detach())}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare an epoch over the biomedical rows with PEFT.")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows", type=int, default=264, help="only so many, for a shorter run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps({"fabric": fabric, "peft": peft}[args.worker](args.threads, args.rows)))
        return
    speed: dict[str, list[float]] = {peer: [] for peer in args.peers}
    whole: dict[str, list[float]] = {peer: [] for peer in args.peers}
    for _ in range(args.rounds):
        for peer in args.peers:
            command = [
                sys.executable,
                __file__,
                "--worker",
                peer,
                "--threads",
                str(args.threads),
                "--rows",
                str(args.rows),
            ]
            environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "PYTHONWARNINGS": "ignore"}
            start = time.perf_counter()
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            whole[peer].append(time.perf_counter() - start)
            told = json.loads(done.stdout.splitlines()[-1])
            speed[peer].append(told["rows"] / told["seconds"])
    print(f"{'':10}{'rows/s':>8}{'ratio':>8}{'process':>10}")
    base = statistics.median(speed["peft"]) if "peft" in speed else None
    for peer in args.peers:
        rate = statistics.median(speed[peer])
        ratio = f"{rate / base:.2f}" if base else "-"
        print(f"{peer:10}{rate:8.2f}{ratio:>8}{statistics.median(whole[peer]):8.1f} s")


if __name__ == "__main__":
    main()
