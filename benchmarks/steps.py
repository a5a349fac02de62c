"""Whole training steps of several set-ups, in turns, so that they share whatever else the machine does:

    python benchmarks/steps.py q8_0.gguf q4_0.gguf q8_0.gguf,threads=1 q8_0.gguf,isa=avx2,precision=f32 [--rounds 5]

A set-up is a model and fields of `BenchSettings`. LoRA r=16 on 7 modules, one row of 512 random tokens, all trained. A
round runs one step of each. Prints the median tokens/s, the median over rounds of the ratio to the first one, the share
of the peak that each device measured for its own threads and instruction set just before, and planned memory.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fabric.training.bench import steps_of  # noqa: E402
from fabric.training.settings import BenchSettings  # noqa: E402
from fabric.weights.gguf import GGUF  # noqa: E402


def settings_of(text: str) -> BenchSettings:
    """model.gguf,field=value,field=value"""
    model, *fields = text.split(",")
    settings = BenchSettings(model)
    for field in fields:
        name, value = field.split("=")
        settings = replace(settings, **{name: int(value) if value.isdigit() else value})
    return settings


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare training steps of several set-ups, in turns.")
    parser.add_argument("setups", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        runs = []
        for setup in map(settings_of, args.setups):
            gguf = GGUF.open(setup.model)
            stack.callback(gguf.close)
            runs.append(stack.enter_context(steps_of(setup, gguf)))
        peaks = [run.device.peak(run.machine.precision) for run in runs]
        for run in runs:
            run.run()
        rounds = [[run.run() for run in runs] for _ in range(args.rounds)]
        print(f"{'tokens/s':>9}{'ratio':>7}{'GFLOP/s':>9}{'of peak':>9}{'planned':>11}  set-up")
        for i, (run, peak) in enumerate(zip(runs, peaks, strict=True)):
            seconds = statistics.median(times[i] for times in rounds)
            ratio = statistics.median(times[0] / times[i] * runs[i].tokens / runs[0].tokens for times in rounds)
            rate = run.nominal_flops / seconds
            planned = run.machine.planned_bytes() / 2**20
            told = f"{run.tokens / seconds:9.1f}{ratio:7.2f}{rate / 1e9:9.0f}{rate / peak:9.0%}{planned:7.0f} MiB"
            print(f"{told}  {args.setups[i]}")


if __name__ == "__main__":
    main()
