"""Settings: what each is called, takes, defaults to and touches, declared once on a field or a parameter.

    rank: Annotated[int, Setting("LoRA rank", "N", low=1, only="lora")] = 16

The flag, its check, what configuration files and the environment may set, what a run keeps, its fingerprint and
history, the pages and the completions follow from that. The settings of a command are a dataclass in the settings.py
of its package; what several commands share is below. Leans on nothing, so that `--help` stays quick.
"""

from __future__ import annotations

import dataclasses
import math
import os
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from fabric.errors import UsageError

Group = Literal[
    "Basics", "LoRA", "Schedule", "Memory and device", "Data", "Labels", "Written answers", "Sampling", "Output"
]  # fmt: skip

ROWS, GGUFS, FOLDERS = ("*.jsonl",), ("*.gguf",), ("*/",)
_NAMED = {
    "GGUF": GGUFS,
    "GGUF[=SCALE]": GGUFS,
    "DATA": ROWS,
    "PROMPTS": ROWS,
    "FILE|FRACTION": ROWS,
    "RUN...": (".fabric/runs/*/", *ROWS),
    "DIR": FOLDERS,
    "RUN": (".fabric/runs/*/",),
    "TOML": ("*.toml",),
}  # names of files, by what stands behind a flag

LARGEST = (1 << 31) - 1  # a number without a bound of its own: no file, machine or product holds more


@dataclass(frozen=True)
class Setting:
    """What is known of a setting besides its name, type and default."""

    help: str
    metavar: str | None = None
    """What stands behind the flag."""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    """It must be greater than this."""
    touches: Literal["result", "layout", "place", "task"] = "result"
    """The result; only how work is laid out, shown or kept; where a run goes on (a resumed one must agree); or what the
    command does at all."""
    always: bool = False
    """The history names it at its default too."""
    only: Literal["lora", "full"] | None = None
    """It has a meaning for LoRA pairs alone, or for whole weights alone."""
    path: Literal["in", "out"] | None = None
    """It names what is read or written."""
    number: bool = False
    """A path that may be a number instead."""
    operand: bool = False
    """It stands without a flag."""
    stdin: bool = False
    """An operand that is stdin where it is left out."""
    flag: str | None = None
    """The long name, where it is not the field's."""
    short: str | None = None
    parse: Callable[[str], Any] | None = None
    """From text to the value."""
    written: str | None = None
    """The default as text, of a setting with `parse`."""
    many: bool = False
    """It may be given again."""
    group: Group | None = None
    """The section of a long --help, where the rest does not say it."""
    completes: tuple[str, ...] = ()
    """What shells offer, where `metavar` does not say it: patterns of the names of what is read, those that end in `/`
    for folders; or values, though others may be meant too."""

    @property
    def offers(self) -> tuple[str, ...]:
        """What shells offer; nothing: any file, or any value."""
        return self.completes or _NAMED.get(self.metavar or "", ())

    @property
    def section(self) -> Group:
        """Where --help has it."""
        if self.group:
            return self.group
        if self.only:
            return "LoRA" if self.only == "lora" else "Output"
        if self.path == "out":
            return "Output"
        return "Memory and device" if self.touches == "layout" else "Basics"

    @property
    def configurable(self) -> bool:
        """Whether files and the environment may set it: nothing from afar says what is read, written or done."""
        return not self.operand and self.touches != "task" and (self.path is None or self.number)


class Declared(NamedTuple):
    """A setting with its name, its type and its default (`dataclasses.MISSING` where it has none)."""

    name: str
    setting: Setting
    type: Any
    default: Any

    @property
    def flag(self) -> str:
        """The long name without its dashes."""
        return self.setting.flag or self.name.replace("_", "-")


def declared(settings: Any) -> list[Declared]:
    """The settings of a dataclass or of an object of one, in order."""
    hints = get_type_hints(settings if isinstance(settings, type) else type(settings), include_extras=True)
    found = []
    for field in dataclasses.fields(settings):
        kind, setting = parts(hints[field.name])
        if setting is not None:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            found.append(Declared(field.name, setting, kind, default))
    return found


def parts(hint: Any) -> tuple[Any, Setting | None]:
    """A type, and the setting that is declared with it."""
    if get_origin(hint) is not Annotated:
        return hint, None
    kind, *extras = get_args(hint)
    return kind, next((extra for extra in extras if isinstance(extra, Setting)), None)


def problem(setting: Setting, value: object) -> str | None:
    """What is wrong with a value, as the end of a sentence that begins with its name; None: nothing."""
    if isinstance(value, str) and setting.path is None and any("\udc80" <= c <= "\udcff" for c in value):
        return "must be UTF-8 text"
    if isinstance(value, (list, tuple)):
        return next((text for text in (problem(setting, one) for one in value) if text), None)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not math.isfinite(value):
        return f"must be a finite number, not {value}"
    if setting.above is not None and not value > setting.above:
        return f"must be greater than {setting.above:g}, not {value}"
    low, high = setting.low, LARGEST if setting.high is None else setting.high
    if not (-LARGEST if low is None else low) <= value <= high:
        if low is not None and value < low and setting.high is None:
            return f"must be at least {low:g}, not {value}"
        return f"must lie between {low or 0:g} and {high}, not {value}"
    return None


def check(settings: Any) -> None:
    """UsageError for a value out of its setting's range, or of another type."""
    for name, setting, kind, _ in declared(settings):
        value = getattr(settings, name)
        wrong = problem(setting, value)
        if not wrong and setting.parse is None and not is_of(value, kind):
            wrong = f"cannot be {value!r}"
        if wrong:
            raise UsageError(f"--{setting.flag or name.replace('_', '-')} {wrong}")


def is_of(value: object, kind: Any) -> bool:
    """Whether a value is of a setting's type; a whole number is a float too, a list a tuple."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return any(is_of(value, one) for one in get_args(kind))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(is_of(item, get_args(kind)[0]) for item in value)
    if isinstance(value, str):
        try:
            return kind is str and b"\0" not in os.fsencode(value)
        except UnicodeError:
            return False
    return type(value) in ((float, int) if kind is float else (kind,))


def paths(settings: Any, which: Literal["in", "out"]) -> dict[str, list[str]]:
    """The files that settings name, by setting; one that is a number names none."""
    found = ((one.name, list(files(one.setting, getattr(settings, one.name), which))) for one in declared(settings))
    return {name: names for name, names in found if names}


def files(setting: Setting, value: Any, which: Literal["in", "out"]) -> Iterator[str]:
    """The files that the value of a setting names."""
    if setting.path != which or value is None or (setting.number and is_number(value)):
        return
    for one in value if isinstance(value, tuple) else [value]:
        yield one if isinstance(one, str) else one.path


def is_number(value: object) -> bool:
    """Whether a value is a number, or a text that is one."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(str(value)))
    except ValueError:
        return False


def split_names(text: str) -> tuple[str, ...]:
    """Names joined by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def pair_of(sample: str) -> Callable[[str], tuple[str, str]]:
    """Reads A=B, of which `sample` is one."""

    def read(text: str) -> tuple[str, str]:
        left, equals, right = text.rpartition("=")
        if not (left and equals and right):
            raise ValueError(f"write {sample}")
        return left, right

    return read


APART = ("seed", "precision", "weights")


def told(settings: Any, only: Literal["lora", "full"]) -> dict[str, Any]:
    """The settings that the history of a result names: those that touch it, where they differ from their defaults or
    are always named. Paths, the seed and the precision have a place of their own there."""
    return {
        one.name: getattr(settings, one.name)
        for one in declared(settings)
        if one.setting.touches == "result" and one.setting.path is None and one.name not in APART
        if one.setting.only in (None, only) and (one.setting.always or getattr(settings, one.name) != one.default)
    }


def fingerprinted(settings: Any) -> list[str]:
    """The fields that a resumed run must have as they were: all but those that only lay work out, and files that are
    read, which are compared by content."""
    known = {one.name: one.setting for one in declared(settings)}
    return [
        field.name for field in dataclasses.fields(settings)
        if field.name not in known or known[field.name].touches != "layout"
        if field.name not in known or not _is_file(known[field.name], getattr(settings, field.name))
    ]  # fmt: skip


def _is_file(setting: Setting, value: object) -> bool:
    return setting.path == "in" and not (setting.number and (value is None or is_number(value)))


TrainOn = Literal["all", "last"]
PrecisionName = Literal["auto", "f32", "bf16"]

CONTEXT = Setting("longest row", "TOKENS", low=2, always=True)
STRIDE = Setting(
    "tokens from one window of a long text to the next; default: windows do not overlap", "TOKENS", low=1, group="Data"
)
THREADS = Setting("CPU threads; 0: one per core", "N", low=0, high=512, touches="layout")
METRICS = Setting("metrics as JSONL, one object per step; `-`: stdout", "FILE", path="out", touches="place")

RECORDS = Setting("JSONL records; `-` or nothing: stdin", "DATA", path="in", operand=True, stdin=True)
Records = Annotated[str, RECORDS]
MODEL = Setting("base model", "GGUF", short="-m", path="in")
Model = Annotated[str, MODEL]
Output = Annotated[str, Setting("output file; `-`: stdout", "FILE", short="-o", path="out", touches="place")]
Errors = Annotated[bool, Setting("report the error of each tensor", touches="layout")]
Threads = Annotated[int, THREADS]
Device = Annotated[
    str,
    Setting(
        "a name from `fabric devices`, or auto: the first accelerator that fits",
        "NAME",
        touches="place",
        group="Memory and device",
        completes=("auto", "cpu", "cuda", "metal", "sycl", "vulkan"),
    ),
]
Precision = Annotated[
    PrecisionName,
    Setting(
        "precision of activations; auto: the profile's, or bf16 where the device gains from it",
        group="Memory and device",
    ),
]
Frozen = Annotated[
    Literal["auto", "blocks", "16bit"],
    Setting(
        "frozen weights: as in the file, or decoded once; auto: the profile's, or 16bit where it is faster and fits",
        group="Memory and device",
    ),
]
Seed = Annotated[int, Setting("the same seed gives the same bits", "N", low=0, high=(1 << 64) - 1)]
Template = Annotated[
    str | None,
    Setting(
        "chat template; default: the adapter's, the model's own, or one that its tokens fit",
        "FILE",
        path="in",
        group="Data",
    ),
]
Train = Annotated[
    TrainOn,
    Setting("which answers of a conversation count; last: the last one only, and the row ends with it", group="Data"),
]
OnError = Annotated[
    Literal["stop", "skip"], Setting("at a row that cannot be read or rendered: stop, or skip the row", group="Data")
]
Context = Annotated[int, CONTEXT]
MAX_TOKENS = Setting("longest answer", "N", low=1)
MaxTokens = Annotated[int, MAX_TOKENS]
Checkpointing = Annotated[
    bool | None,
    Setting("recompute activations: less memory, same bits; default: the profile's, or where large", touches="layout"),
]
