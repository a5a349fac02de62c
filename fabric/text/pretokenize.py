"""How a text is cut into words before byte-pair merging: one row a pre-tokenizer of `tokenizer.ggml.pre`.

The patterns are those the models were trained with. The package `regex` knows the classes of letters, numbers and marks
by tables of its own, so words do not depend on the interpreter; a text of pure ASCII is cut by `re`, which is quicker,
with the classes spelled out. White space is spelled out in both: that of either package takes U+001C..1F too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fabric.errors import DataError

_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_ASCII = {
    r"\p{L}": "A-Za-z",
    r"\p{LC}": "A-Za-z",
    r"\p{N}": "0-9",
    r"\p{M}": "",
    r"\p{P}": r"!-#%-*,-/:;?@\[-\]_{}",
    r"\s": r"\t-\r ",
}

_FOREIGN = re.compile(r"[^\x00-\x7f]")
_SAFE = re.compile(r"(?<=[!-~]) (?=[A-Za-z])")
_NEAR = 32  # characters: a stretch beyond ASCII goes on for so many, since another is likely

_GPT2 = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+"
    r"|[\s]+(?![^\s])|[\s]+"
)
# Every digit alone, then GPT-2's pattern on what lies between: the same as one pattern in which a digit ends a piece.
_GPT2_DIGITS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+|[\p{N}]| ?[^\s\p{L}\p{N}]+"
    r"|[\s]+(?![^\s\p{N}])|[\s]+"
)
_LLAMA3 = (
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
    r"|[^\r\n\p{L}\p{N}]?[\p{L}]+|[\p{N}]{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|[\s]*[\r\n]+|[\s]+(?![^\s])|[\s]+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_QWEN35 = (
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|[\p{N}]| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|[\s]*[\r\n]+|[\s]+(?![^\s])|[\s]+"
)
_SEED = _QWEN2.replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}\r\n]+")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?(?:UPPER*LOWER+|UPPER+LOWER*)|[\p{N}]| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|[\s]*[\r\n]+|[\s]+(?![^\s])|[\s]+"
)
# Of letters outside ASCII none counts as upper or lower case only.
_TEKKEN = _TEKKEN.replace("UPPER", r"(?:(?![a-z])[\p{L}])").replace("LOWER", r"(?:(?![A-Z])[\p{L}])")
_GPT4O = _TEKKEN.replace(r"|[\p{N}]|", rf"(?:{_LLAMA3.split('|[^')[0]})?|[\p{{N}}]{{1,3}}|")
_DEFAULT = (r"[\p{P}$+<=>^~|]+", _GPT2, r"[\p{N}]+", r"[0-9][0-9][0-9]")
_CJK = r"(?:(?![\s])[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff])+"
_CODER = (r"[\r\n]", r"[\s]?[\p{L}]+", r"[\s]?[\p{P}]+", _CJK, r"[\p{N}]")
# Letters with case, but for scripts that got theirs late and mathematical ones.
_CASELESS = r"\u0560-\u0588\u10c7-\u10ff\u1c80-\u1c8a\u2d00-\u2d2d\ua790-\uab6f\U00010570-\U000105bf"
_CASELESS += r"\U00010d50-\U00010d85\U00016e40-\U00016eff\U0001d400-\U0001dfff"
_DEEPSEEK = (
    r"[\r\n]",
    rf"[\s]?(?:(?![{_CASELESS}])[\p{{LC}}])+",
    r"[\s]?(?:(?![\s])[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002])+",
    r"[\s]+\Z",
    _CJK,
    r"[\p{N}]+",
)


@dataclass(frozen=True)
class Pre:
    """One pre-tokenizer: patterns applied in turn, each to what the one before left whole or cut out."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a word that is itself a token is taken as it is
    add_bos: bool = False  # where the file does not say


_ROWS = {
    "default": Pre(_DEFAULT),
    "gpt-2 phi-2 olmo mellum trillion a.x-4.0": Pre((_GPT2,)),
    "smollm starcoder refact command-r minerva-7b": Pre((_GPT2_DIGITS,)),
    "llama-bpe llama3 llama-v3 falcon3 pixtral midm-2.0": Pre((_LLAMA3,), ignore_merges=True, add_bos=True),
    "dbrx smaug-bpe": Pre((_LLAMA3,)),
    "qwen2 deepseek-r1-qwen megrez stablelm2 hunyuan kormo": Pre((_QWEN2,)),
    "qwen35": Pre((_QWEN35,)),
    "tekken": Pre((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o llama4 kanana2": Pre((_GPT4O,)),
    "seed-coder": Pre((_SEED,)),
    "deepseek-coder": Pre(_CODER),
    "deepseek-llm": Pre(_DEEPSEEK),
}
PRE_TOKENIZERS = {name: row for names, row in _ROWS.items() for name in names.split()}


class Splitter:
    """Cuts text into words by one row of the table; the words joined are the text again."""

    def __init__(self, pre: Pre) -> None:
        self._patterns = pre.patterns
        self._ascii = _compile(pre.patterns, _ASCII, re.compile)
        self._unicode: tuple[re.Pattern[str], ...] | None = None

    def __call__(self, text: str) -> list[str]:
        if text.isascii():
            return _apply(self._ascii, text)
        if self._unicode is None:
            import regex

            self._unicode = _compile(self._patterns, {r"\s": _SPACE}, regex.compile)
        words: list[str] = []
        for part in _stretches(text):
            words += _apply(self._ascii if part.isascii() else self._unicode, part)
        return words


def find_pre(name: str) -> Pre:
    """The row of `tokenizer.ggml.pre`; DataError where there is none."""
    if name not in PRE_TOKENIZERS:
        raise DataError(f"the pre-tokenizer {name!r} is not supported; supported are {', '.join(PRE_TOKENIZERS)}")
    return PRE_TOKENIZERS[name]


def _stretches(text: str) -> Iterator[str]:
    """The text cut into stretches with and without characters beyond ASCII, whose classes are slow to tell.

    A cut is made only in front of a space that stands between a printable character and a letter of ASCII: there a word
    begins under every pattern of the table.
    """
    at = 0
    while found := _FOREIGN.search(text, at):
        left = found.start()
        while (left := text.rfind(" ", at, left)) > at and not _SAFE.match(text, left):
            pass
        if left > at:
            yield text[at:left]
        safe = _SAFE.search(text, found.end() + _NEAR)
        end = safe.start() if safe else len(text)
        yield text[max(left, at) : end]
        at = end
    if at < len(text):
        yield text[at:]


def _apply(patterns: tuple[re.Pattern[str], ...], text: str) -> list[str]:
    if len(patterns) == 1:  # a single pattern matches every character
        return patterns[0].findall(text)
    words = [text]
    for pattern in patterns:
        words = [part for word in words for part in _cut(pattern, word)]
    return words


def _cut(pattern: re.Pattern[str], word: str) -> Iterable[str]:
    end = 0
    for match in pattern.finditer(word):
        if match.start() > end:
            yield word[end : match.start()]
        end = match.end()
        yield match.group()
    if end < len(word):
        yield word[end:]


def _compile(
    patterns: tuple[str, ...], classes: dict[str, str], compile: Callable[[str], re.Pattern[str]]
) -> tuple[re.Pattern[str], ...]:
    compiled = []
    for pattern in patterns:
        for name, members in classes.items():
            pattern = pattern.replace(name, members)
        compiled.append(compile(pattern))
    return tuple(compiled)
