"""`fabric quantize`: a GGUF model in, the same model in another block format out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from fabric.cli import console, options
from fabric.cli.merge import tell
from fabric.errors import UsageError

if TYPE_CHECKING:
    from fabric.weights.gguf import GGUF
    from fabric.weights.quantize import Importance


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
    tensor: Annotated[
        list[str] | None,
        Option("--tensor", metavar="GLOB=TYPE", help="of matrices called so; may be given again, the last holds"),
    ] = None,
    calibrate: Annotated[
        str | None, Option("--calibrate", metavar="DATA", help="records: what they use of a matrix is kept best")
    ] = None,
    imatrix: Annotated[
        str | None, Option("--imatrix", metavar="GGUF", help="the same from an importance matrix of llama.cpp")
    ] = None,
    save_imatrix: Annotated[
        str | None, Option("--save-imatrix", metavar="FILE", help="write what --calibrate found, as such a file")
    ] = None,
    errors: options.Errors = False,
    threads: options.Threads = 0,
) -> None:
    """Encodes the matrices of a model in another block format; norms and biases stay as they are."""
    from fabric.files import check_streams
    from fabric.weights.quantize import quantize
    from fabric.weights.settings import QuantizeSettings

    source = console.stdin_source(model)
    check_streams([source, calibrate, imatrix], [output, save_imatrix])
    if calibrate and imatrix:
        raise UsageError("--calibrate finds what --imatrix brings: leave one out")
    if save_imatrix and not calibrate:
        raise UsageError("--save-imatrix keeps what --calibrate finds: add --calibrate")
    head = output_type.lower() if output_type else None
    chosen = tuple(glob_type(text) for text in tensor or ())
    importance = calibrated(calibrate, save_imatrix, threads) if calibrate else known(imatrix) if imatrix else None
    with console.bar("quantize", "B") as progress:
        settings = QuantizeSettings(source, output, type.lower(), head, threads, chosen)
        result = quantize(settings, progress, importance)
    tell("quantized", result, errors)


def glob_type(text: str) -> tuple[str, str]:
    """GLOB=TYPE."""
    glob, equals, type = text.rpartition("=")
    if not (glob and equals and type):
        raise UsageError(f"--tensor {text}: write GLOB=TYPE, such as 'blk.*.ffn_down.weight=q6_k'")
    return glob, type.lower()


def calibrated(rows: str, target: str | None, threads: int) -> Callable[[GGUF], Importance]:
    """Finds the importance with a model, under a bar, and keeps it in `target`."""
    from fabric.evaluation.importance import collect, write_importance
    from fabric.files import open_output

    def find(gguf: GGUF) -> Importance:
        with console.bar("calibrate", " tokens") as progress:
            found = collect(gguf, rows, threads, progress)
        console.note(f"calibrated with {found.tokens:,} tokens")
        if target:
            with open_output(target) as out:
                write_importance(out, found)
        return found.of

    return find


def known(path: str) -> Callable[[GGUF], Importance]:
    """Reads the importance from a file."""
    from fabric.evaluation.importance import read_importance

    return lambda gguf: read_importance(path, gguf).of
