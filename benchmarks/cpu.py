"""PEFT and `fabric bench` on the same shape and processor, one after the other, in turns:

    python benchmarks/cpu.py [--model model.gguf] [--tokens 512] [--rounds 3] [--peers peft-bf16 fabric-bf16 ...]

LoRA r=16 on 7 modules of a model of the shape of Qwen3-0.6B with random weights, one row, every token trained, two
threads. Each run is a process of its own: a warm-up step, then `--steps` of them. Prints the median tokens/s, the ratio
to PEFT in the same precision, the share of the measured peak and the resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.random_models import write_model  # noqa: E402
from tests.support.shapes import PRESETS, Shape  # noqa: E402

PEERS = ("peft-bf16", "fabric-bf16", "peft-f32", "fabric-f32")


def memory() -> dict[str, int]:
    """Peak resident bytes of this process, and how many of the bytes resident now are mapped file pages."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "peak_bytes": int(fields["VmHWM"].split()[0]) * 1024,
        "file_bytes": int(fields["RssFile"].split()[0]) * 1024,
    }


def operations(shape: Shape, tokens: int) -> float:
    """Of one step: 4 for each weight that multiplies and each token, the head included."""
    block = sum(rows * cols for rows, cols in shape.linear().values())
    return 4.0 * tokens * (shape.layers * block + shape.vocab * shape.hidden)


def timed(step: Callable[[], object], steps: int) -> list[float]:
    """Seconds of each step after a warm-up."""
    step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def peft(precision: str, tokens: int, steps: int, threads: int) -> dict[str, Any]:
    """Steps of PEFT: pairs in the model's own type, which is its quickest way."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    shape = PRESETS["qwen3-0.6b"]
    config = Qwen3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
    )
    torch.set_default_dtype(dtype)
    base = Qwen3ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, bias="none", target_modules=names)
    model: Any = get_peft_model(base, lora, autocast_adapter_dtype=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
    ids = torch.randint(3, shape.vocab, (1, tokens))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    seconds = timed(step, steps)
    a = torch.randn(2048, 2048, dtype=dtype)
    peak = 2 * 2048**3 / min(timed(lambda: a @ a, 10))
    return {"seconds": seconds, "peak_flops": peak, **memory()}


def fabric(precision: str, model: str, tokens: int, steps: int, threads: int) -> dict[str, Any]:
    """Steps of the training core, as `fabric bench` runs them."""
    from fabric.training.bench import bench
    from fabric.training.settings import BenchSettings

    report = bench(BenchSettings(model, tokens, precision=precision, steps=steps, threads=threads))  # type: ignore[arg-type]
    return {"seconds": [report.step_s], "peak_flops": report.peak_flops_per_s[precision], **memory()}


def work(args: argparse.Namespace) -> None:
    """One peer in this process; its result as JSON on stdout."""
    name, precision = args.worker.split("-")
    if name == "peft":
        result = peft(precision, args.tokens, args.steps, args.threads)
    else:
        result = fabric(precision, args.model, args.tokens, args.steps, args.threads)
    print(json.dumps(result))


def compare(args: argparse.Namespace) -> None:
    """Every peer in turn, `--rounds` times over, and the table."""
    found: dict[str, list[dict[str, Any]]] = {peer: [] for peer in args.peers}
    for _ in range(args.rounds):
        for peer in args.peers:
            command = [sys.executable, __file__, "--worker", peer, "--model", args.model]
            command += ["--tokens", str(args.tokens), "--steps", str(args.steps), "--threads", str(args.threads)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "PYTHONWARNINGS": "ignore"}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            found[peer].append(json.loads(done.stdout.splitlines()[-1]))
    work_of_step = operations(PRESETS["qwen3-0.6b"], args.tokens)
    speed = {
        peer: args.tokens / statistics.median(s for run in runs for s in run["seconds"]) for peer, runs in found.items()
    }
    print(f"{'':14}{'tokens/s':>10}{'ratio':>8}{'GFLOP/s':>10}{'of peak':>9}{'peak RSS':>11}{'file pages':>12}")
    for peer, runs in found.items():
        base = speed.get("peft-" + peer.split("-")[1])
        ratio = f"{speed[peer] / base:.2f}" if base else "-"
        rate = work_of_step * speed[peer] / args.tokens
        peak = max(run["peak_flops"] for run in runs)
        resident, pages = (max(run[key] for run in runs) / 2**30 for key in ("peak_bytes", "file_bytes"))
        print(
            f"{peer:14}{speed[peer]:10.1f}{ratio:>8}{rate / 1e9:10.0f}{rate / peak:9.0%}"
            f"{resident:7.2f} GiB{pages:8.2f} GiB"
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare training speed with PEFT on this processor.")
    parser.add_argument("--model", help="a Qwen3-0.6B-shaped GGUF; default: written to a temporary folder")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            args.model = str(write_model(Path(folder) / "model.gguf", PRESETS["qwen3-0.6b"], "Q8_0", repeat=True))
        compare(args)


if __name__ == "__main__":
    main()
