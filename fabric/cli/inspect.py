"""`fabric inspect`: what is inside a GGUF file."""

from __future__ import annotations

import json
from typing import Annotated, Any

from typer import Argument, Option

from fabric.cli import console


def command(
    file: Annotated[
        str | None, Argument(metavar="GGUF", help="model or adapter; `-` or nothing: stdin", show_default=False)
    ] = None,
    tensors: Annotated[bool, Option("--tensors", help="list every tensor")] = False,
) -> None:
    """Says what a model or adapter holds: sizes, types, metadata and how it was made."""
    from fabric.weights.gguf import GGUF
    from fabric.weights.inspect import summary

    with GGUF.open(console.stdin_source(file)) as gguf:
        values = summary(gguf)
    console.report(values, describe(values, tensors), result=True)


def describe(values: dict[str, Any], tensors: bool) -> str:
    """The summary as text."""
    named = f" {values['name']!r}" if values["name"] else ""
    size = console.human_bytes(values["file_bytes"])
    parts = [f"{values['kind']}{named}, {values['architecture']}, {values['parameters']:,} parameters, {size}"]
    types = [["type", "tensors", "parameters", "bytes", ""]]
    for name, row in values["types"].items():
        usable = "" if row["supported"] else "cannot be trained from yet"
        types.append([name, str(row["tensors"]), f"{row['elements']:,}", f"{row['bytes']:,}", usable])
    parts.append(console.table(types, "<>>><"))
    facts = [[key, _short(value)] for key, value in values["metadata"].items()]
    if facts:
        parts.append(console.table(facts, "<<"))
    if tensors:
        rows = [[t["name"], t["type"], " x ".join(map(str, t["shape"])), f"{t['bytes']:,}"] for t in values["tensors"]]
        parts.append(console.table([["tensor", "type", "shape", "bytes"], *rows], "<<>>"))
    parts += [f"history: {json.dumps(step, ensure_ascii=False)}" for step in values["history"]]
    return "\n\n".join(parts)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return f"{value['length']:,} x {value['array_of']}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
