"""`fabric bench`: training speed, its share of the machine's measured peak, memory, and time by op."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from fabric.cli import console, options

if TYPE_CHECKING:
    from fabric.training.bench import BenchReport


def command(
    model: options.Model,
    ctx: options.Context = 512,
    batch: Annotated[int, Option(metavar="ROWS", min=1, help="rows an optimizer step")] = 1,
    rows_at_once: Annotated[int, Option(metavar="N", min=0, help="of a micro-batch; 0: all")] = 0,
    trained_every: Annotated[int, Option(metavar="N", min=1, help="every Nth token trains")] = 1,
    rank: Annotated[int, Option(metavar="N", min=1, help="of the LoRA pairs")] = 16,
    modules: Annotated[str, Option(metavar="NAMES", help="as for `train`")] = "all",
    precision: options.Precision = "auto",
    weights: options.Frozen = "auto",
    checkpointing: options.Checkpointing = None,
    steps: Annotated[int, Option(metavar="N", min=1, help="timed steps; the median counts")] = 3,
    threads: options.Threads = 0,
    device: options.Device = "cpu",
    isa: Annotated[
        str | None, Option(metavar="NAME", help="CPU: generic, avx2, avx512, avx512_bf16, neon or neon_bf16")
    ] = None,
) -> None:
    """Measures training steps on random tokens: tokens/s, share of peak, memory, and a table by op."""
    from fabric.cli.run import modules_of
    from fabric.training.bench import BenchSettings, bench

    settings = BenchSettings(
        model=model,
        tokens=ctx,
        rows=batch,
        rows_at_once=rows_at_once,
        trained_every=trained_every,
        rank=rank,
        modules=modules_of(modules),
        precision=precision,
        weights=weights,
        checkpointing=checkpointing,
        steps=steps,
        threads=threads,
        device=device,
        isa=isa,
    )
    with console.bar("bench", " steps") as progress:
        result = bench(settings, progress)
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
