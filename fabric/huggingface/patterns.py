r"""The patterns of PEFT's rank_pattern and alpha_pattern against names of modules, in bounded time.

PEFT matches `(.*\.)?(PATTERN)$` with Python's backtracking engine, for which some patterns never end. Here a pattern
is parsed by Python, and matched by the set of places that each of its parts can end at: polynomial in the name,
whatever the pattern. What that cannot do (references, look-around) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from fabric.errors import DataError
from fabric.fields import short

try:
    from re import _constants as sre  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_constants as sre
    import sre_parse as parser

_LONGEST = 1000  # characters of a pattern that is more than a name
_BUDGET = 3_000_000  # steps of matching, some microseconds each
_PLAIN = re.compile(r"\^?(?:[\w\-/]|\\?\.)+")
_IN_CATEGORY: dict[Any, Callable[[str], bool]] = {
    sre.CATEGORY_DIGIT: str.isdecimal,
    sre.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    sre.CATEGORY_SPACE: str.isspace,
    sre.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    sre.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    sre.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
}


class Patterns:
    """A table of patterns. `first(name)` is the first that matches; all matching together is bounded by a budget."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = list(patterns)
        self._budget = _BUDGET
        self._parsed: dict[str, Any] = {}

    def first(self, name: str) -> str | None:
        """The pattern that matches a module's name from behind a dot or from its beginning to its end, None for none.

        Raises DataError for what is no pattern, asks for more than sets of places, or takes too long.
        """
        for pattern in self.patterns:
            if pattern not in self._parsed:
                self.spend(20 + len(pattern), pattern)
                self._parsed[pattern] = _parse(pattern)
            parsed = self._parsed[pattern]
            if isinstance(parsed, re.Pattern):
                self.spend(1, pattern)
                found = parsed.fullmatch(name) is not None
            else:
                found = self._match(parsed, name, pattern)
            if found:
                return pattern
        return None

    def spend(self, steps: int, pattern: str) -> None:
        """Takes from the budget."""
        self._budget -= steps
        if self._budget < 0:
            raise DataError(f"matching patterns such as {short(pattern)} takes too long")

    def _match(self, parsed: Any, name: str, pattern: str) -> bool:
        match = _Match(name, lambda: self.spend(1, pattern))
        try:
            starts = [0, *(i + 1 for i, letter in enumerate(name) if letter == ".")]
            return any(len(name) in match.ends(parsed, start) for start in starts)
        except RecursionError:
            raise DataError(f"the pattern {short(pattern)} is nested too deeply") from None


def _parse(pattern: str) -> Any:
    """Python's own for what is hardly more than a name, else the parts of the pattern."""
    if _PLAIN.fullmatch(pattern):
        return re.compile(rf"(?:.*\.)?(?:{pattern})")
    if len(pattern) > _LONGEST:
        raise DataError(f"the pattern {short(pattern)} is longer than {_LONGEST} characters")
    try:
        parsed = parser.parse(pattern)
    except (re.error, RecursionError, OverflowError, ValueError) as error:
        raise DataError(f"{short(pattern)} is no pattern: {' '.join(str(error).split())}") from None
    if parsed.state.flags & ~(re.UNICODE | re.DOTALL | re.ASCII):
        raise DataError(f"the pattern {short(pattern)} has flags, which are not supported")
    return parsed


class _Match:
    """Places in one name at which parts of a pattern end, by part and place where it begins."""

    def __init__(self, name: str, spend: Callable[[], None]) -> None:
        self.name, self.spend = name, spend
        self.known: dict[tuple[int, int], frozenset[int]] = {}

    def ends(self, sequence: Iterable[tuple[Any, Any]], start: int) -> frozenset[int]:
        """Of a sequence of parts."""
        key = (id(sequence), start)
        if key not in self.known:
            places = frozenset([start])
            for op, argument in sequence:
                places = frozenset().union(*(self.part(op, argument, place) for place in places))
            self.known[key] = places
        return self.known[key]

    def part(self, op: Any, argument: Any, at: int) -> frozenset[int]:
        """Of one part."""
        self.spend()
        if op is sre.SUBPATTERN:
            return self.ends(argument[3], at)
        if op is sre.BRANCH:
            return frozenset().union(*(self.ends(branch, at) for branch in argument[1]))
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            least, most, body = argument
            return self.repeated(least, most, body, at)
        if op is sre.AT:
            begins = argument in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING)
            if not begins and argument not in (sre.AT_END, sre.AT_END_STRING):
                raise DataError("a pattern asks for the boundary of a word, which is not supported")
            return frozenset([at] if at == (0 if begins else len(self.name)) else [])
        if op in (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN):
            return frozenset([at + 1] if at < len(self.name) and _is_one(op, argument, self.name[at]) else [])
        raise DataError(f"a pattern has {str(op).lower()} in it, which is not supported")

    def repeated(self, least: int, most: int, body: Any, start: int) -> frozenset[int]:
        """Of a repetition. Once a body has been repeated more often than there are letters, more changes nothing."""
        places, limit = frozenset([start]), len(self.name) + 1
        for _ in range(min(least, limit)):
            places = frozenset().union(*(self.ends(body, place) for place in places))
        found, new = places, places
        for _ in range(min(most - least, limit)):
            new = frozenset().union(*(self.ends(body, place) for place in new)) - found
            if not new:
                break
            found |= new
        return found


def _is_one(op: Any, argument: Any, letter: str) -> bool:
    """Whether a letter is of a set."""
    if op is sre.ANY:
        return letter != "\n"
    if op in (sre.LITERAL, sre.NOT_LITERAL):
        return bool((ord(letter) == argument) == (op is sre.LITERAL))
    return any(_is_in(kind, value, letter) for kind, value in argument) != (argument[0][0] is sre.NEGATE)


def _is_in(kind: Any, value: Any, letter: str) -> bool:
    """Whether a letter is of one entry of a set."""
    if kind is sre.NEGATE:
        return False
    if kind is sre.LITERAL:
        return bool(ord(letter) == value)
    if kind is sre.RANGE:
        return bool(value[0] <= ord(letter) <= value[1])
    if kind is sre.CATEGORY and value in _IN_CATEGORY:
        return _IN_CATEGORY[value](letter)
    raise DataError("a pattern has a set of letters in it that is not supported")
