"""`fabric quantize`: a GGUF model in, the same model in another block format out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from fabric.cli import console
from fabric.cli.merge import tell
from fabric.errors import UsageError
from fabric.settings import Errors, Setting
from fabric.weights.settings import QuantizeSettings

if TYPE_CHECKING:
    from fabric.weights.gguf import GGUF
    from fabric.weights.quantize import Importance


def command(
    settings: QuantizeSettings,
    calibrate: Annotated[
        str | None, Setting("records for calibration: columns that they use get smaller errors", "DATA", path="in")
    ] = None,
    imatrix: Annotated[
        str | None, Setting("calibrate with an importance matrix of llama.cpp", "GGUF", path="in")
    ] = None,
    save_imatrix: Annotated[
        str | None, Setting("write the importance matrix that --calibrate computed", "FILE", path="out")
    ] = None,
    errors: Errors = False,
) -> None:
    """Encodes the matrices of a model in another block format; norms and biases stay as they are."""
    from fabric.weights.quantize import quantize

    if calibrate and imatrix:
        raise UsageError("--calibrate finds what --imatrix brings: leave one out")
    if save_imatrix and not calibrate:
        raise UsageError("--save-imatrix keeps what --calibrate finds: add --calibrate")
    threads = settings.threads
    importance = calibrated(calibrate, save_imatrix, threads) if calibrate else known(imatrix) if imatrix else None
    with console.bar("quantize", "B") as progress:
        result = quantize(settings, progress, importance)
    tell("quantized", result, errors)


def calibrated(rows: str, target: str | None, threads: int) -> Callable[[GGUF], Importance]:
    """Finds the importance with a model, under a bar, and keeps it in `target`."""
    from fabric.calibration.importance import collect, write_importance
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
    from fabric.calibration.importance import read_importance

    return lambda gguf: read_importance(path, gguf).of
