"""`fabric devices`: what this machine can train on."""

from __future__ import annotations

from fabric.cli import console


def command() -> None:
    """Lists the devices that --device takes, and what each has."""
    from fabric.core import devices, missing_devices

    found, missing = devices(), missing_devices()
    backends = [info.backend for info in found]
    rows = [["device", "name", "instructions", "cores", "memory", "auto precision"]]
    for i, info in enumerate(found):
        number = backends[:i].count(info.backend)
        name = f"{info.backend}:{number}" if number else info.backend
        memory = console.human_bytes(info.memory_bytes)
        cores = str(info.cores) if info.cores else ""
        rows.append([name, info.name, info.isa, cores, memory, "bf16" if info.bf16 else "f32"])
    values = {"devices": [info._asdict() for info in found], "missing": missing}
    for sentence in missing:
        console.note(sentence)
    console.report(values, console.table(rows, "<<<>><"), result=True)
