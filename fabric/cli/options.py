"""Flags that several commands share: the same name and meaning everywhere."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Records = Annotated[
    str | None, typer.Argument(metavar="DATA", help="JSONL records; `-` or nothing: stdin", show_default=False)
]
Model = Annotated[str, typer.Option("-m", "--model", metavar="GGUF", help="base model")]
Adapters = Annotated[
    list[str] | None, typer.Option("-a", "--adapter", metavar="GGUF[=SCALE]", help="LoRA adapter; may be given again")
]
Output = Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="where the result goes; `-`: stdout")]
Errors = Annotated[bool, typer.Option("--errors", help="say what each tensor lost")]
Threads = Annotated[int, typer.Option("--threads", metavar="N", min=0, max=512, help="CPU threads; 0: one a core")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="a name from `fabric devices`")]
Precision = Annotated[
    Literal["auto", "f32", "bf16"],
    typer.Option("--precision", help="of activations; auto: as the device's profile says, or bf16 where it pays"),
]
Frozen = Annotated[
    Literal["auto", "blocks", "16bit"],
    typer.Option(
        "--weights",
        help="frozen ones: as the file has them, or decoded once; auto: the profile's, or 16bit where it pays and fits",
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="the same seed gives the same bits")]
Template = Annotated[
    str | None,
    typer.Option(
        "--template",
        metavar="FILE",
        help="chat template; default: the adapter's, the model's own, or one its tokens fit",
    ),
]
Train = Annotated[
    Literal["all", "last"],
    typer.Option("--train", help="which answers of a conversation count; last: the last one, up to which it then goes"),
]
OnError = Annotated[
    Literal["stop", "skip"], typer.Option("--on-error", help="at a row that cannot be read or rendered")
]
Context = Annotated[int, typer.Option("--ctx", metavar="TOKENS", min=8, help="longest row")]
Checkpointing = Annotated[
    bool | None,
    typer.Option(
        "--checkpointing/--no-checkpointing",
        help="recompute activations: less memory, same bits; default: the profile's, or where large",
        show_default=False,
    ),
]
