"""`fabric bench`: training speed, its share of the machine's measured peak, memory, and time by op."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabric.cli import console
from fabric.training.settings import BenchSettings

if TYPE_CHECKING:
    from fabric.training.bench import BenchReport


def command(settings: BenchSettings) -> None:
    """Measures training steps on random tokens: tokens/s, share of peak, memory, and a table by op."""
    from fabric.training.bench import bench

    with console.bar("bench", " steps") as progress:
        result = bench(settings, progress)
    if result.chosen:
        console.note(result.chosen)
    console.report(result.to_json(), describe(result), result=True)


def describe(result: BenchReport) -> str:
    """The report as text."""
    peaks = ", ".join(f"{kind} {rate / 1e9:.0f} GFLOP/s" for kind, rate in result.peak_flops_per_s.items())
    facts = [
        ["device", f"{result.device} ({result.isa}), {result.precision}"],
        ["step", f"{result.tokens} tokens in {result.step_s:.2f} s (the first took {result.first_step_s:.2f} s)"],
        ["speed", f"{result.tokens_per_s:.1f} tokens/s"],
        ["useful work", f"{result.nominal_flops_per_s / 1e9:.0f} GFLOP/s, {100 * result.share_of_peak:.0f} % of peak"],
        ["all products", f"{result.flops_per_s / 1e9:.0f} GFLOP/s, recomputation included"],
        ["peak", f"{peaks}, read {result.read_bytes_per_s / 1e9:.1f} GB/s"],
        [
            "memory",
            f"{console.human_bytes(result.planned_bytes)} planned, {console.human_bytes(result.peak_bytes)} peak",
        ],
        ["frozen weights", console.weights_kept(result.weights, result.decoded_bytes)],
        ["model", f"{console.human_bytes(result.model_bytes)} mapped"],
        ["decoding", f"{1 / result.decode_token_s:.1f} tokens/s, one at a time; {_reading(result)}"],
    ]
    tables = [_by_op("op", result.ops), _by_op("op of a decoded token", result.decode_ops)]
    return "\n\n".join([console.table(facts, "<<"), *tables])


def _by_op(title: str, ops: list[dict[str, Any]]) -> str:
    rows = [[title, "launches", "ms", "share", "GFLOP/s", "GB/s"]]
    total = sum(op["seconds"] for op in ops) or 1.0
    for op in ops:
        seconds = op["seconds"] or 1e-9
        rates = [f"{op['flops'] / seconds / 1e9:.0f}" if op["flops"] else "", f"{op['bytes'] / seconds / 1e9:.1f}"]
        share = f"{100 * op['seconds'] / total:.1f} %"
        rows.append([op["op"], str(op["launches"]), f"{1000 * op['seconds']:.2f}", share, *rates])
    return console.table(rows, "<")


def _reading(result: BenchReport) -> str:
    rate = result.decode_bytes_per_s
    return f"weights at {rate / 1e9:.1f} GB/s, {100 * rate / result.read_bytes_per_s:.0f} % of read"
