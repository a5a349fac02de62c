"""Training on one NVIDIA card, by `fabric bench` and by PEFT, in turns on the same card:

    python benchmarks/cuda.py [--shapes qwen3-1.7b] [--rows 8] [--ctx 512] [--types Q8_0] [--weights auto]
                              [--peers fabric peft] [--ops] [--check]

`--weights blocks 16bit` runs fabric with frozen weights as the file has them and decoded once, in turns. `--check`
first trains a small shape on the processor and in both ways on the card, in each of the types, and compares losses.
LoRA r=16 on 7 modules, bf16, every token trained, random weights of a real shape. PEFT runs on PyTorch's own attention
with the model compiled (torch.compile). Prints card, driver and a line a peer: tokens/s of the median step, and memory.
Needs PyTorch, transformers and peft for the peer, and the package gguf for the model.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEPS = 10


def run(module: str, *arguments: str, folder: str | None = None) -> str:
    """What a module of this repository prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder or ROOT, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def check(args: argparse.Namespace) -> None:
    """Losses of four steps on the card beside those on the processor; more than 1 % apart ends the program."""
    rows = [json.dumps({"text": f"{i} is the square of {i / 7:.3f}, more or less. " * 40}) for i in range(16)]
    for kind in args.types:
        with tempfile.TemporaryDirectory() as folder:
            run("tests.support.random_models", "smollm2-135m", "--type", kind, "-o", f"{folder}/m.gguf")
            Path(folder, "rows.jsonl").write_text("\n".join(rows))
            losses = {}
            for device, weights in (("cpu", "blocks"), (args.device, "blocks"), (args.device, "16bit")):
                line = ["train", "rows.jsonl", "-m", "m.gguf", "--device", device, "--weights", weights, "--steps", "4"]
                line += ["--batch", "4", "--ctx", "256", "--precision", "bf16", "--lr", "1e-3", "--metrics", "-"]
                out = run("fabric", *line, "-o", "a.gguf", "--run-dir", f"{device}-{weights}", folder=folder)
                losses[f"{device} {weights}"] = [json.loads(text)["loss"] for text in out.splitlines()]
        want = losses["cpu blocks"]
        for name, found in losses.items():
            off = max(abs(a - b) / b for a, b in zip(found, want, strict=True))
            print(f"check {kind} {name}: {' '.join(f'{loss:.5f}' for loss in found)}, off by {off:.1e}", flush=True)
            if not off < 1e-2:
                raise SystemExit("the card's losses are not the processor's")


def fabric(shape: str, kind: str, weights: str, args: argparse.Namespace) -> str:
    """The command's own report; with --ops, its table by op."""
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/model.gguf"
        run("tests.support.random_models", shape, "--type", kind, "-o", model)
        line = ["bench", "-m", model, "--device", args.device, "--ctx", str(args.ctx), "--batch", str(args.rows)]
        line += ["--steps", str(STEPS), "--weights", weights, "--json", *args.flags.split()]
        told: dict[str, Any] = json.loads(run("fabric", *line))
    held = (told["planned_bytes"] + told["uploaded_bytes"]) / 2**30
    lines = [f"{told['tokens_per_s']:9,.0f} tokens/s {held:6.2f} GiB planned, weights {told['weights']}"]
    lines[0] += f", first step {told['first_step_s']:.1f} s, a decoded token {told['decode_token_s'] * 1e3:.2f} ms"
    for op in told["ops"][:20] if args.ops else []:
        rate = f"{op['flops'] / op['seconds'] / 1e12:6.0f} TFLOP/s" if op["flops"] else " " * 14
        speed = f"{op['bytes'] / op['seconds'] / 1e12:5.2f} TB/s"
        lines.append(f"    {op['op']:14} {op['launches']:5} launches {op['seconds'] * 1e3:8.2f} ms {rate} {speed}")
    return "\n".join(lines)


def peft(shape: str, _kind: str, _weights: str, args: argparse.Namespace) -> str:
    """The same step in PyTorch, compiled."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from tests.support.shapes import PRESETS

    s = PRESETS[shape]
    config = Qwen3Config(
        vocab_size=s.vocab, hidden_size=s.hidden, intermediate_size=s.ffn, num_hidden_layers=s.layers,
        num_attention_heads=s.heads, num_key_value_heads=s.kv_heads, head_dim=s.head_dim, tie_word_embeddings=s.tied,
        use_cache=False,
    )  # fmt: skip
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen3ForCausalLM(config)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=MODULES))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    step = torch.compile(model)
    ids = torch.randint(0, s.vocab, (args.rows, args.ctx), device="cuda")
    times = []
    for _ in range(STEPS + 3):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    speed = args.rows * args.ctx / statistics.median(times[3:])
    return f"{speed:9,.0f} tokens/s {torch.cuda.max_memory_allocated() / 2**30:6.2f} GiB allocated"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare training steps on one card.")
    parser.add_argument("--shapes", nargs="+", default=["qwen3-1.7b"])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--types", nargs="+", default=["Q8_0"])
    parser.add_argument("--weights", nargs="+", default=["auto"], choices=["auto", "blocks", "16bit"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--flags", default="", help="further flags of fabric bench")
    parser.add_argument("--ops", action="store_true", help="fabric's time by op")
    parser.add_argument("--check", action="store_true", help="compare losses with the processor's first")
    parser.add_argument("--peers", nargs="+", default=["fabric", "peft"])
    args = parser.parse_args()
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    print(time.strftime("%Y-%m-%d"), subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip())
    if args.check:
        check(args)
    ours = [("fabric", kind, weights) for kind in args.types for weights in args.weights]
    turns = [turn for peer in args.peers for turn in (ours if peer == "fabric" else [("peft", "BF16", "")])]
    for shape in args.shapes:
        for peer, kind, weights in turns:
            told = {"fabric": fabric, "peft": peft}[peer](shape, kind, weights, args)
            print(f"{shape} {args.rows}x{args.ctx} {peer:7} {kind:5} {told}", flush=True)


if __name__ == "__main__":
    main()
