"""`fabric devices`: what this machine can train on."""

from __future__ import annotations

from typing import Any

from fabric.cli import console


def command() -> None:
    """Lists the devices that --device takes, what each has, and the profile that it gets."""
    from fabric.devices.listing import list_devices

    values = list_devices()
    for sentence in values["missing"]:
        console.note(sentence)
    console.report(values, describe(values["devices"]), result=True)


def describe(found: list[dict[str, Any]]) -> str:
    """The devices as a table, a column a device."""
    rows = [
        ["device", *(d["device"] for d in found)],
        ["name", *(d["name"] for d in found)],
        ["driver", *(d["driver"] for d in found)],
        ["instructions", *(d["isa"] for d in found)],
        ["cores", *(str(d["cores"] or "") for d in found)],
        ["memory", *(console.human_bytes(d["memory_bytes"]) for d in found)],
        ["auto precision", *(_precision(d) for d in found)],
        ["largest binding", *(_limit(d["max_binding_bytes"]) for d in found)],
        ["workgroup memory", *(_limit(d["workgroup_bytes"]) for d in found)],
        ["workgroup threads", *(f"{d['workgroup_threads'] or ''}" for d in found)],
        ["workgroups", *(f"{d['workgroups'] or ''}" for d in found)],
        ["profile", *(d["profile"]["name"] for d in found)],
        *(
            [f"  {key}", *(_value(d, key) for d in found)]
            for key in dict.fromkeys(key for d in found for key in d["profile"]["values"])
        ),
    ]
    return console.table(rows, "<" * (len(found) + 1))


def _precision(device: dict[str, Any]) -> str:
    return str(device["profile"]["values"].get("precision", "bf16" if device["bf16"] else "f32"))


def _value(device: dict[str, Any], key: str) -> str:
    value = device["profile"]["values"].get(key, "")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _limit(count: int) -> str:
    return "any" if count >= 1 << 62 else console.human_bytes(count) if count else ""
