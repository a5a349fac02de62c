"""`fabric train`: records and a base model in, a LoRA adapter or (--full) a whole model out."""

from __future__ import annotations

from typing import Annotated, Literal

from typer import Option

from fabric.cli import console, options
from fabric.errors import UsageError


def command(
    data: options.Records = None,
    model: options.Model = ...,  # type: ignore[assignment]
    output: Annotated[
        str | None,
        Option("-o", "--output", metavar="FILE", help="the adapter or model; `-`: stdout; default: in --run-dir"),
    ] = None,
    full: Annotated[
        bool, Option("--full/--no-full", help="train whole weights and write a model, not LoRA pairs and an adapter")
    ] = False,
    type: Annotated[
        str | None,
        Option(metavar="TYPE", help="of a --full model's matrices, or keep; default: their own, bf16 for blocks"),
    ] = None,
    rank: Annotated[int, Option(metavar="N", min=1, help="of the LoRA pairs")] = 16,
    alpha: Annotated[float, Option(metavar="X", help="LoRA scale is alpha / rank")] = 32.0,
    rslora: Annotated[bool, Option("--rslora/--no-rslora", help="LoRA scale is alpha / sqrt(rank)")] = False,
    dropout: Annotated[float, Option(metavar="SHARE", min=0.0, max=0.999, help="of what the LoRA pairs see")] = 0.0,
    modules: Annotated[
        str, Option(metavar="NAMES", help="attn, ffn, all, or names such as attn_q,ffn_up, joined by commas")
    ] = "all",
    seed: options.Seed = 42,
    adapter: Annotated[
        str | None,
        Option("-a", "--adapter", metavar="GGUF", help="start from this adapter: its rank, alpha, modules hold"),
    ] = None,
    epochs: Annotated[float, Option(metavar="X", min=0.0, help="passes over the rows")] = 1.0,
    steps: Annotated[int | None, Option(metavar="N", min=1, help="optimizer steps, instead of --epochs")] = None,
    lr: Annotated[float, Option(metavar="X", min=0.0, help="highest learning rate")] = 2e-4,
    schedule: Annotated[
        Literal["constant", "linear", "cosine", "exponential"], Option(help="of the learning rate")
    ] = "cosine",
    warmup_ratio: Annotated[float, Option(metavar="X", min=0.0, max=1.0, help="part of the steps that warm up")] = 0.1,
    warmup_steps: Annotated[int | None, Option(metavar="N", min=0, help="instead of --warmup-ratio")] = None,
    lr_min: Annotated[
        float, Option(metavar="X", min=0.0, help="where the schedule ends; exponential: 0 means lr / 100")
    ] = 0.0,
    lora_plus: Annotated[float, Option(metavar="RATIO", min=0.0, help="LoRA+: rate of B over that of A")] = 1.0,
    neftune: Annotated[float, Option(metavar="ALPHA", min=0.0, help="noise on embeddings, such as 5; 0: none")] = 0.0,
    weight_decay: Annotated[float, Option(metavar="X", min=0.0, help="decoupled; not of norms and biases")] = 0.01,
    clip: Annotated[float, Option(metavar="X", min=0.0, help="largest gradient norm; 0: any")] = 1.0,
    optimizer: Annotated[Literal["adamw", "sgd"], Option(help="of the flat parameters")] = "adamw",
    batch: Annotated[int, Option(metavar="ROWS", min=1, help="rows an optimizer step")] = 8,
    ctx: options.Context = 512,
    stride: Annotated[
        int | None, Option(metavar="TOKENS", min=1, help="windows of a long text start every so many; default: --ctx")
    ] = None,
    accumulate: Annotated[int, Option(metavar="N", min=1, help="micro-batches a step, at least; same result")] = 1,
    pack: Annotated[bool, Option("--pack/--no-pack", help="several rows in one sequence, unseen by each other")] = True,
    shuffle: Annotated[bool, Option("--shuffle/--no-shuffle", help="a new order each epoch")] = True,
    template: options.Template = None,
    train: options.Train = "all",
    on_error: options.OnError = "stop",
    precision: options.Precision = "auto",
    weights: options.Frozen = "auto",
    checkpointing: options.Checkpointing = None,
    threads: options.Threads = 0,
    device: options.Device = "cpu",
    val: Annotated[
        str | None, Option(metavar="FILE|FRACTION", help="validation rows, or a part of the training rows")
    ] = None,
    eval_every: Annotated[int, Option(metavar="STEPS", min=0, help="0: after each epoch")] = 0,
    patience: Annotated[
        int, Option(metavar="N", min=0, help="stop after N validations without a better one, write the best; 0: never")
    ] = 0,
    checkpoint_every: Annotated[int, Option(metavar="STEPS", min=0, help="0: after each epoch")] = 0,
    checkpoint_minutes: Annotated[
        float, Option(metavar="X", min=0.0, help="and whenever so many have passed; 0: by steps only")
    ] = 0.0,
    keep: Annotated[int, Option(metavar="N", min=1, help="newest checkpoints that stay")] = 2,
    run_dir: Annotated[
        str | None, Option(metavar="DIR", help="checkpoints; default: a new one in .fabric/runs")
    ] = None,
    metrics: Annotated[str | None, Option(metavar="FILE", help="JSONL, one object a step; `-`: stdout")] = None,
    config: Annotated[
        str | None, Option(metavar="TOML", help="flags of `train`, by their long names; see fabric.toml(5)")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="plan, time one step, say what it takes")] = False,
) -> None:
    """Fine-tunes a GGUF model on records; writes a stock llama.cpp LoRA adapter, or with --full a new GGUF model.

    Ctrl-C checkpoints and stops; `fabric resume` continues to the same bits.
    """
    from fabric.cli import run
    from fabric.files import check_streams
    from fabric.training.settings import TrainSettings

    if full and (pairs := console.given("rank", "alpha", "rslora", "dropout", "lora_plus", "modules", "adapter")):
        raise UsageError(
            f"--full trains whole weights, and {' and '.join(pairs)} would be of LoRA pairs: leave one out"
        )
    source = console.stdin_source(data)
    check_streams([source, model, adapter, val, template, config], [output, metrics])
    settings = TrainSettings(
        data=source,
        model=model,
        output=output,
        full=full,
        type=type.lower() if type and (full or console.given("type")) else None,
        rank=rank,
        alpha=alpha,
        rslora=rslora,
        dropout=dropout,
        modules=run.modules_of(modules),
        seed=seed,
        adapter=None if full else adapter,
        epochs=epochs,
        steps=steps,
        lr=lr,
        schedule=schedule,
        warmup_ratio=warmup_ratio,
        warmup_steps=warmup_steps,
        lr_min=lr_min,
        lora_plus=lora_plus,
        neftune=neftune,
        weight_decay=weight_decay,
        clip=clip,
        optimizer=optimizer,
        batch=batch,
        ctx=ctx,
        stride=stride,
        accumulate=accumulate,
        pack=pack,
        shuffle=shuffle,
        template=template,
        train=train,
        on_error=on_error,
        precision=precision,
        weights=weights,
        checkpointing=checkpointing,
        threads=threads,
        device=device,
        val=val,
        eval_every=eval_every,
        patience=patience,
        checkpoint_every=checkpoint_every,
        checkpoint_minutes=checkpoint_minutes,
        keep=keep,
        run_dir=run_dir,
        metrics=metrics,
    )
    (run.plan if dry_run else run.train)(settings)
