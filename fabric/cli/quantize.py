"""`fabric quantize`: a GGUF model in, the same model in another block format out."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from fabric.cli import console, options
from fabric.cli.merge import tell


def command(
    model: Annotated[
        str | None, Argument(metavar="GGUF", help="the model; `-` or nothing: stdin", show_default=False)
    ] = None,
    output: options.Output = "-",
    type: Annotated[
        str,
        Option(
            "--type",
            metavar="TYPE",
            help="f32 f16 bf16 q8_0 q6_k q5_k_m q5_k_s q5_k q5_1 q5_0 q4_k_m q4_k_s q4_k q4_1 q4_0",
        ),
    ] = "q8_0",
    output_type: Annotated[
        str | None, Option("--output-type", metavar="TYPE", help="of the output head; default: by llama.cpp's rule")
    ] = None,
    threads: options.Threads = 0,
) -> None:
    """Encodes the matrices of a model in another block format; norms and biases stay as they are."""
    from fabric.files import check_streams
    from fabric.weights.quantize import quantize
    from fabric.weights.settings import QuantizeSettings

    source = console.stdin_source(model)
    check_streams([source], [output])
    head = output_type.lower() if output_type else None
    with console.bar("quantize", "B") as progress:
        result = quantize(QuantizeSettings(source, output, type.lower(), head, threads), progress)
    tell("quantized", result)
