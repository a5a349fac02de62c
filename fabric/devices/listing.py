"""What this machine can train on: devices, their limits, the profile of each, and why a kind is missing."""

from __future__ import annotations

from typing import Any

from fabric.core import missing_devices
from fabric.devices.opening import named_devices
from fabric.devices.profiles import profile_of

LIMITS = (
    "memory_bytes",
    "max_binding_bytes",
    "max_allocation_bytes",
    "max_reduction",
    "workgroup_bytes",
    "workgroup_threads",
    "workgroups",
)
ANY = 1 << 62  # a limit from here on is none


def list_devices() -> dict[str, Any]:
    """`devices`: the facts of each, the name that --device takes, and its profile, whose limits have been taken into
    account; `missing`: a sentence a kind. Raises UsageError for a profile of the user that is none."""
    found = []
    for name, info in named_devices():
        profile = profile_of(info)
        facts = info._asdict()
        for limit in LIMITS:
            if facts[limit] and limit in profile.values:
                facts[limit] = min(facts[limit], profile.values[limit])
        facts["device"] = name
        facts["profile"] = {"name": profile.name, "files": list(profile.files), "values": dict(profile.values)}
        found.append(facts)
    return {"devices": found, "missing": missing_devices()}
