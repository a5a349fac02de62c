"""`fabric devices`: what this machine can train on."""

from __future__ import annotations

from fabric.cli import console


def command() -> None:
    """Lists the devices that --device takes, and what each has."""
    from fabric.core import devices

    found = devices()
    rows = [["device", "name", "instructions", "cores", "memory", "auto precision"]]
    for info in found:
        memory = console.human_bytes(info.memory_bytes)
        rows.append([info.backend, info.name, info.isa, str(info.cores), memory, "bf16" if info.bf16 else "f32"])
    values = {"devices": [info._asdict() for info in found]}
    console.report(values, console.table(rows, "<<<>><"), result=True)
