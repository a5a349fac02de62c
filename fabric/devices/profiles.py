"""Profiles: what is known of a kind of device and its driver does not say, in TOML, key by key in docs/devices.md.

Those of fabric/profiles come first, then the user's own (`places.profiles`), whose keys take their place.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fabric.core import Device, DeviceInfo, describe_device, find_sycl
from fabric.devices.places import places
from fabric.errors import DeviceError, UsageError

SHIPPED = Path(__file__).resolve().parents[1] / "profiles"


BACKENDS = ("cuda", "vulkan", "metal", "sycl", "cpu")
"""In the order in which --device auto looks for a device."""


@dataclass(frozen=True)
class Key:
    """A key of a profile: what it takes, and (`option`) whether it is a field of fb_device_options."""

    table: str
    allowed: str
    """In words, for the documentation and for errors."""
    kind: type
    low: float = 0
    high: float = 0
    choices: tuple[Any, ...] = ()
    option: bool = True

    def accepts(self, value: object) -> bool:
        """Whether the value is of the key's kind and range."""
        if self.kind is list:
            return isinstance(value, list) and bool(value) and all(isinstance(v, str) and v for v in value)
        if self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind:
            return False
        if self.choices:
            return value in self.choices
        return self.kind is bool or (isinstance(value, (int, float)) and self.low <= value <= self.high)


def _whole(table: str, low: int, high: int, unit: str, option: bool = True) -> Key:
    return Key(table, f"{low} to {high} {unit}", int, low, high, option=option)


def _one_of(*texts: str) -> str:
    return ", ".join(f'"{text}"' for text in texts[:-1]) + f' or "{texts[-1]}"'


_TILES = Key("run", "16, 32 or 64", int, choices=(16, 32, 64))
KEYS: dict[str, Key] = {
    "backend": Key("match", _one_of(*sorted(BACKENDS)), str, choices=BACKENDS, option=False),
    "name": Key("match", "a list of strings", list, option=False),
    "driver": Key("match", "a list of strings", list, option=False),
    "memory_bytes": _whole("limits", 1 << 16, 1 << 62, "bytes"),
    "max_binding_bytes": _whole("limits", 1 << 16, 1 << 62, "bytes"),
    "max_allocation_bytes": _whole("limits", 1 << 16, 1 << 62, "bytes"),
    "max_reduction": _whole("limits", 1 << 10, (1 << 31) - 1, "rows"),
    "workgroup_bytes": _whole("limits", 1 << 14, 1 << 30, "bytes"),
    "workgroup_threads": _whole("limits", 128, 1 << 16, "threads"),
    "workgroups": _whole("limits", 1, (1 << 31) - 1, "workgroups"),
    "tile_rows": _TILES,
    "tile_cols": _TILES,
    "precision": Key("run", '"f32" or "bf16"', str, choices=("f32", "bf16"), option=False),
    "weights": Key("run", '"blocks" or "16bit"', str, choices=("blocks", "16bit"), option=False),
    "micro_batch": _whole("run", 1, (1 << 31) - 1, "tokens", option=False),
    "checkpointing": Key("run", "true or false", bool, option=False),
    "submit_ms": _whole("run", 1, 10_000, "milliseconds"),
    "duty": Key("run", "0.05 to 1", float, 0.05, 1.0),
}
TABLES = tuple(dict.fromkeys(key.table for key in KEYS.values()))


@dataclass(frozen=True)
class Profile:
    """`values` by key, those of [match] left out, from `files`, of which later ones take the place of earlier ones."""

    values: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The files' stems, such as `adreno` or `adreno + my-phone`."""
        return " + ".join(Path(file).stem for file in self.files) or "none"

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default."""
        return self.values.get(key, default)

    def open(self, name: str, threads: int = 0, isa: str | None = None, timed: bool = False) -> Device:
        """The device, within the profile's limits and at its pace. Raises DeviceError."""
        options = {key: value for key, value in self.values.items() if KEYS[key].option}
        return Device(name, threads, isa, timed, places.kernel_cache, places.cuda_toolkit, places.oneapi, **options)


DEFAULT = Profile()


def profile_of(device: str | DeviceInfo) -> Profile:
    """What is known of a device ("vulkan:1", or its facts). A device that is not here has no profile. Raises
    UsageError for a file of the user that is no profile."""
    info = device if isinstance(device, DeviceInfo) else _find(device)
    values: dict[str, Any] = {}
    files = []
    for path in [*shipped_profiles(), *_user_profiles()]:
        match, found = read_profile(path)
        if info is not None and _fits(match, info):
            values |= found
            files.append(str(path))
    return Profile(values, tuple(files))


def shipped_profiles() -> list[Path]:
    """Those that come with fabric."""
    return sorted(SHIPPED.glob("*.toml"))


def _user_profiles() -> list[Path]:
    return sorted(places.profiles.glob("*.toml")) if places.profiles else []


def _find(name: str) -> DeviceInfo | None:
    backend, _, number = name.partition(":")
    left = int(number or 0) if number.isdigit() or not number else 0
    if backend == "sycl":
        find_sycl(places.kernel_cache, places.oneapi)
    with contextlib.suppress(DeviceError):
        for index in itertools.count():
            info = describe_device(index)
            if info.backend == backend:
                if left == 0:
                    return info
                left -= 1
    return None


def _fits(match: Mapping[str, Any], info: DeviceInfo) -> bool:
    def one_of(parts: list[str] | None, text: str) -> bool:
        return parts is None or any(part.casefold() in text.casefold() for part in parts)

    return (
        match.get("backend", info.backend) == info.backend
        and one_of(match.get("name"), info.name)
        and one_of(match.get("driver"), info.driver)
    )


def read_profile(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The [match] table of a file, and all its other keys. UsageError tells file, line and what is allowed."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    found: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
    for table, content in document.items():
        if table not in found or not isinstance(content, dict):
            raise UsageError(
                f"{path}:{_line(text, None, table)}: a profile has the tables {_listed(TABLES)}, not {table}"
            )
        names = [name for name, key in KEYS.items() if key.table == table]
        for name, value in content.items():
            at = f"{path}:{_line(text, table, name)}"
            if name not in names:
                close = get_close_matches(name, names, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise UsageError(f"{at}: [{table}] has no key {name}{hint} There are {_listed(names)}")
            if not KEYS[name].accepts(value):
                raise UsageError(f"{at}: {name} takes {KEYS[name].allowed}, not {value!r}")
            found[table][name] = value
    match = found.pop("match")
    return match, {name: value for content in found.values() for name, value in content.items()}


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1]


def _line(text: str, table: str | None, name: str) -> int:
    """The line that sets a key, or that opens a table (`table` None); 1 where it is written in some rare way."""
    inside: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        opened = re.match(r"\s*\[+\s*([\w-]+)", line)
        if opened:
            inside = opened[1]
        if (opened and table is None and inside == name) or (
            inside == table and re.match(rf"""\s*["']?{re.escape(name)}["']?\s*[.=]""", line)
        ):
            return number
    return 1
