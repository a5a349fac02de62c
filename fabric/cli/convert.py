"""`fabric convert`: Hugging Face checkpoints and PEFT adapters to GGUF, and GGUF adapters to PEFT."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fabric.cli import console
from fabric.errors import MissingInputError, UsageError
from fabric.settings import FOLDERS, GGUFS, Setting

if TYPE_CHECKING:
    from fabric.weights.adapter import Adapter


def command(
    source: Annotated[
        str,
        Setting(
            "a checkpoint's folder, a PEFT folder, or a GGUF adapter",
            "SOURCE",
            path="in",
            operand=True,
            completes=(*FOLDERS, *GGUFS),
        ),
    ],
    output: Annotated[
        str, Setting("output file; `-`: stdout; to PEFT: a new folder", "FILE", short="-o", path="out")
    ] = "-",
    model: Annotated[str | None, Setting("base model; adapters need it", "GGUF", short="-m", path="in")] = None,
    type: Annotated[
        str,
        Setting(
            "matrix type of a model: keep, f32, f16, bf16",
            "TYPE",
            parse=str.lower,
            written="keep",
            completes=("keep", "f32", "f16", "bf16"),
        ),
    ] = "keep",
) -> None:
    """Converts a Hugging Face checkpoint of an architecture that fabric trains to GGUF, and LoRA adapters both ways.

    A folder with config.json is a checkpoint, one with adapter_config.json a PEFT adapter.
    """
    from fabric.huggingface.peft import adapter_from_peft, adapter_to_peft, is_peft

    folder = Path(source)
    if not folder.is_dir() and source != "-" and not folder.exists():
        raise MissingInputError(f"{source} cannot be read: no such file or directory")
    is_adapter = not folder.is_dir() or is_peft(folder)
    if is_adapter and console.given("type"):
        raise UsageError(f"--type: {source} is taken for a LoRA adapter, whose pairs are F32; leave it out")
    if not is_adapter and model is not None:
        raise UsageError(f"-m: {source} is taken for a checkpoint, which has no base model; leave it out")
    if not folder.is_dir():
        if output == "-":
            raise UsageError("a PEFT adapter is a folder: name one with -o")
        return _tell_adapter(adapter_to_peft(source, _base(source, model), Path(output)), output)
    console.refuse_terminal(output)
    if is_adapter:
        return _tell_adapter(adapter_from_peft(folder, _base(source, model), output), output)
    _model(folder, output, type)


def _model(folder: Path, output: str, type: str) -> None:
    from fabric.huggingface.model import convert_model

    with console.bar("convert", "B") as progress:
        result = convert_model(folder, output, type, progress)
    size = console.human_bytes(result.file_bytes)
    text = f"converted {result.tensors} tensors of a {result.architecture} model: {size}"
    console.report(dataclasses.asdict(result), text, output)


def _base(source: str, model: str | None) -> str:
    if model is None:
        raise UsageError(f"-m: {source} is taken for a LoRA adapter, and converted for its base model: name it")
    return model


def _tell_adapter(adapter: Adapter, output: str) -> None:
    values = {"output": output, "pairs": len(adapter.pairs), "rank": adapter.rank, "alpha": adapter.alpha}
    text = f"converted {len(adapter.pairs)} LoRA pairs, rank {adapter.rank}, alpha {adapter.alpha:g}: {output}"
    console.report(values, text, output)
