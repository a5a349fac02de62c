"""`fabric inspect`: what is inside a GGUF file, and how two differ."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

from fabric.cli import console
from fabric.errors import UsageError
from fabric.settings import GGUFS, Setting


def command(
    file: Annotated[
        str, Setting("model or adapter; `-` or nothing: stdin", "GGUF", path="in", operand=True, stdin=True)
    ],
    other: Annotated[
        str | None,
        Setting("show how the first file differs from this one", "OTHER", path="in", operand=True, completes=GGUFS),
    ] = None,
    tensors: Annotated[bool, Setting("list every tensor")] = False,
    chat_template: Annotated[
        bool, Setting("print the chat template that commands use with this file", touches="task")
    ] = False,
) -> None:
    """Prints what a model or adapter contains: sizes, types, metadata and history; or how two files differ."""
    from fabric.files import open_text
    from fabric.text.template import OWN, template_of
    from fabric.weights import inspect
    from fabric.weights.gguf import GGUF

    if other is not None and (tensors or chat_template):
        raise UsageError("--tensors and --chat-template are of one file: leave them out, or name one")
    with contextlib.ExitStack() as stack:
        gguf = stack.enter_context(GGUF.open(file))
        if other is not None:
            differing = inspect.difference(gguf, stack.enter_context(GGUF.open(other)))
            console.report(differing, describe_difference(differing), result=True)
        elif chat_template:
            text, what = template_of(gguf.metadata, gguf.name)
            text = text.encode("utf-8", "replace").decode()
            if console.flag("json"):
                console.report({"chat_template": text, "origin": what}, "", result=True)
                return
            if what != OWN:
                console.note(f"{gguf.name}: no chat template in it; commands use {what}")
            with open_text("-") as out:
                out.write(text + "\n")
        else:
            values = inspect.summary(gguf)
            console.report(values, describe(values, tensors), result=True)


def describe_difference(values: dict[str, Any]) -> str:
    """What `difference` found as text."""
    parts = []
    for what in ("metadata", "tensors"):
        found = values[what]
        rows = [[what, "this file", "the other"]]
        for name, (this, that) in found["changed"].items():
            rows.append([name, _short(this), _short(that)])
        rows += [[name, "present", "-"] for name in found["only_this"]]
        rows += [[name, "-", "present"] for name in found["only_other"]]
        if len(rows) > 1:
            parts.append(console.table(rows, "<<<"))
    counts = f"{values['equal_tensors']:,} tensors are equal to the last bit"
    for name, steps in values["history"].items():
        parts += [f"history of {name} only: {console.json_text(step)}" for step in steps]
    return "\n\n".join([*parts, counts if parts else f"no difference: {counts}"])


def describe(values: dict[str, Any], tensors: bool) -> str:
    """The summary as text."""
    kind, name, architecture = (console.cell_text(values[key] or "") for key in ("kind", "name", "architecture"))
    named = f" {name!r}" if name else ""
    named += f", {architecture}" if architecture else ""
    size = console.human_bytes(values["file_bytes"])
    size += f" in {values['parts']} files" if values["parts"] > 1 else ""
    parts = [f"{kind}{named}, {values['parameters']:,} parameters, {size}"]
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
    parts += [f"history: {console.json_text(step)}" for step in values["history"]]
    return "\n\n".join(parts)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return f"{value['length']:,} x {value['array_of']}"
    text = value if isinstance(value, str) else console.json_text(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."
