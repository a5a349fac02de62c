"""`fabric devices`: what this machine can train on."""

from __future__ import annotations

from typing import Annotated, Any

from fabric.cli import console
from fabric.errors import UsageError
from fabric.settings import Context, Device, Frozen, Precision, Setting


def command(
    plan: Annotated[
        bool, Setting("show which operands training -m on --device would split into tiles, and why", touches="task")
    ] = False,
    probe: Annotated[
        bool, Setting("measure --device and write the best settings as a profile", touches="task")
    ] = False,
    output: Annotated[
        str | None, Setting("profile that --probe writes; default: in your profiles", "FILE", short="-o", path="out")
    ] = None,
    model: Annotated[str | None, Setting("base model, for --plan", "GGUF", short="-m", path="in")] = None,
    full: Annotated[bool, Setting("with --plan: for --full training, not LoRA")] = False,
    ctx: Context = 512,
    precision: Precision = "auto",
    weights: Frozen = "auto",
    device: Device = "auto",
) -> None:
    """Lists the devices that --device accepts, with their properties and profiles."""
    if plan and probe:
        raise UsageError("--plan computes and --probe measures: leave one out")
    if not probe and output is not None:
        raise UsageError("--output belongs to --probe")
    if not plan and (typed := console.given("model", "full", "ctx", "precision", "weights")):
        raise UsageError(f"{' and '.join(typed)} belongs to --plan")
    if not plan and not probe and console.given("device"):
        raise UsageError("--device belongs to --probe and --plan; without them, every device is listed")
    if probe:
        measure(device, output)
        return
    if plan:
        if model is None:
            raise UsageError("--plan is of a model: name it with -m")
        console.report(*tiles(model, device, full, ctx, precision, weights), result=True)
        return
    from fabric.devices.listing import list_devices

    values = list_devices()
    console.report(values, describe(values["devices"]), result=True)
    for sentence in values["missing"]:
        console.note(sentence)


def measure(device: str, output: str | None) -> None:
    """Probes a device, writes its profile, and says what was found."""
    from fabric.devices.probe import probe_into

    with console.bar("probe", " shapes") as progress:
        found, place = probe_into(device, output, progress)
    values = ", ".join(f"{key} = {value}" for key, value in found.values.items())
    console.report({**found.to_json(), "file": place}, f"{place}: {values}", output)


def tiles(model: str, device: str, full: bool, ctx: int, precision: Any, weights: Any) -> tuple[dict[str, Any], str]:
    """What would be cut, as values and as text."""
    from fabric.training.settings import TrainSettings
    from fabric.training.tiling import plan_tiles

    values = plan_tiles(
        TrainSettings(data="", model=model, device=device, full=full, ctx=ctx, precision=precision, weights=weights)
    )  # fmt: skip
    rows = [["op", "because of", "shape", "size", "limit", "ops", "launches"]]
    for row in values["tiles"]:
        most = f"{row['most']:,} rows" if row["limit"] == "reduction" else console.human_bytes(row["most"])
        limit = f"{row['limit']} {most}"
        shape, size = f"{row['rows']} x {row['cols']}", console.human_bytes(row["bytes"])
        rows.append([row["op"], row["tensor"], shape, size, limit, str(row["ops"]), str(row["launches"])])
    cut = sum(row["launches"] for row in values["tiles"])
    said = f"{cut:,} of {values['launches']:,} launches are tiles" if cut else "nothing is tiled: every operand fits"
    kept = console.weights_kept(values["weights"], values["decoded_bytes"])
    text = f"{values['tokens']:,} tokens of {values['model']} on {values['device']}: {said}; frozen weights {kept}"
    return values, f"{console.table(rows, '<<>><')}\n\n{text}" if cut else text


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
        ["largest allocation", *(_limit(d["max_allocation_bytes"]) for d in found)],
        ["longest reduction", *(f"{d['max_reduction'] or 'any'}" for d in found)],
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
