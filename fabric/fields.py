"""Values that strangers wrote, by name: metadata of a GGUF file, a JSON file of a checkpoint. Each is asked for with
the type and range it must have; a sentence says where one is wrong. What nobody asked for can be listed at the end.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from fabric.errors import DataError

LARGEST = (1 << 31) - 1  # sizes and ids; what is beyond fits no model
_MISSING = object()


class Fields:
    """A mapping whose values may be of any type. `where` and `prefix` name a value in a sentence: "WHERE: PREFIXkey".

    A value of None counts as missing. A method without a default raises DataError where the key is missing, and every
    method does where it holds something else than asked for.
    """

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self.values, self.where, self.prefix = values, where, prefix
        self._asked: set[str] = set()

    def get(self, key: str) -> Any:
        """The value as it is, None where it is missing."""
        self._asked.add(key)
        return self.values.get(key)

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def error(self, key: str, problem: str) -> DataError:
        """The error for a value: `problem` follows its name."""
        return DataError(f"{self.where}: {self.prefix}{key} {problem}")

    def wrong(self, key: str, expected: str) -> DataError:
        """The error for a value that is missing, or is not what was expected."""
        value = self.get(key)
        return self.error(key, "is missing" if value is None else f"is {short(value)}, where {expected} is expected")

    def size(self, key: str, default: Any = _MISSING, least: int = 1, most: int = LARGEST) -> int:
        """A whole number within bounds."""
        value = self.get(key)
        if value is None and default is not _MISSING:
            return int(default)
        if not _whole(value) or not least <= value <= most:
            raise self.wrong(key, f"a whole number of {least} to {most}")
        return int(value)

    def uniform(self, key: str, count: int, default: Any = _MISSING) -> int:
        """A size, or a list with the same size for each of `count` layers."""
        if not isinstance(self.get(key), list):
            return self.size(key, default)
        found = self.each(key, count)
        if any(one != found[0] for one in found):
            raise self.error(key, f"differs between layers ({short(found)}), which is not supported")
        return found[0]

    def each(self, key: str, count: int, default: Any = _MISSING, least: int = 1) -> list[int]:
        """Sizes of `count` layers: a list of them, or one for all."""
        value = self.get(key)
        if not isinstance(value, list):
            return [self.size(key, default, least)] * count
        if len(value) != count or not value:
            raise self.error(key, f"has {len(value)} entries for {count} layers")
        return [Fields({key: one}, self.where, self.prefix).size(key, least=least) for one in value]

    def number(self, key: str, default: Any = _MISSING, above: float = 0.0, most: float = math.inf) -> float:
        """A finite number greater than `above` and not greater than `most`."""
        value = self.get(key)
        if value is None and default is not _MISSING:
            return float(default)
        if not _numeric(value) or not above < value <= most or not abs(value) < 1e38:
            raise self.wrong(key, f"a number above {above:g}{'' if most == math.inf else f' and up to {most:g}'}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: Any = _MISSING) -> str:
        """A string that can be written as UTF-8."""
        value = self.get(key)
        if value is None and default is not _MISSING:
            return str(default)
        if not isinstance(value, str) or not is_text(value):
            raise self.wrong(key, "a text")
        return value

    def only(self, key: str, *values: Any, why: str = "is not supported", each: bool = False) -> None:
        """Refuses a value that is neither missing nor one of those given. `each`: a list may hold several of them."""
        value = self.get(key)
        for one in value if each and isinstance(value, list) else [value]:
            if one is not None and not any(_same(one, allowed) for allowed in values):
                raise self.error(key, f"is {short(value)}, which {why}")

    def child(self, key: str) -> Fields:
        """A mapping inside; empty where the key is missing."""
        value = self.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.wrong(key, "an object")
        return Fields(value or {}, self.where, f"{self.prefix}{key}.")

    def rest(self) -> list[str]:
        """Keys with values that nobody asked for, sorted."""
        return sorted(key for key, value in self.values.items() if key not in self._asked and value is not None)


def short(value: object) -> str:
    """A value in a sentence: on one line, of bounded length."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = 60
    shown.maxlist = shown.maxdict = 4
    return shown.repr(value)


def named(names: Iterable[str], most: int = 8) -> str:
    """Names in a sentence: "a, b and 3 more"."""
    every = [name if name.isprintable() else ascii(name) for name in names]
    rest = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + rest


def is_text(value: str) -> bool:
    """Whether a string has a form in UTF-8: no lone surrogates, which JSON can spell."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _numeric(value: object) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))


def _same(value: object, allowed: object) -> bool:
    """Equal and of one kind: 0 is neither False nor ""."""
    if _numeric(value) and _numeric(allowed):
        return math.isclose(value, allowed, rel_tol=1e-6)  # type: ignore[arg-type]
    return type(value) is type(allowed) and value == allowed
