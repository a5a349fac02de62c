"""How a text is cut into words before byte-pair merging: one row a pre-tokenizer of `tokenizer.ggml.pre`.

The patterns are those the models were trained with. The package `regex` knows the classes of letters, numbers and marks
by tables of its own, so words do not depend on the interpreter; a text of pure ASCII is cut by `re`, which is quicker,
with the classes spelled out. White space is spelled out in both: that of either package takes U+001C..1F too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from fabric.errors import DataError

_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_ASCII = {
    r"\p{L}": "A-Za-z",
    r"\p{LC}": "A-Za-z",
    r"\p{N}": "0-9",
    r"[\p{M}]": r"[^\x00-\x7f]",
    r"\p{M}": "",
    r"\p{P}": r"!-#%-*,-/:;?@\[-\]_{}",
    r"\p{S}": r"$+<=>\^`|~",
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


_CONTRACTIONS = _LLAMA3.split("|[^")[0]
_SPACES = r"|[\s]*[\r\n]+|[\s]+(?![^\s])|[\s]+"
_JAIS2 = _LLAMA3.replace(
    r"|[\s]+(?![^\s])|[\s]+",
    "".join(rf"|[\s]{{{n}}}(?![^\s])" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2")) + r"|[\s]",
)
_MINICPM5 = (r"[\p{N}]{1,3}", _LLAMA3.replace("{1,3}", "+"))
_HAN = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ebef\U0002f800-\U0002fa1f]"
_KIMI = (
    rf"{_HAN}+|[^\r\n\p{{L}}\p{{N}}]?(?:(?!{_HAN})[\p{{L}}])+(?:{_CONTRACTIONS})?|[\p{{N}}]{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_SPACES}"
)
_MARKED = (  # words with their combining marks
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+(?:{_CONTRACTIONS})?|[\p{{N}}]{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_SPACES}"
)
_PUNCTUATED = (  # a mark of ASCII and the letters behind it are one word
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + _SPACES
)
_KANA = r"\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff"
_DEEPSEEK3 = (r"[\p{N}]{1,3}", rf"[{_KANA}]+", _PUNCTUATED)
_SPARK = (*_DEEPSEEK3[:2], _PUNCTUATED.replace(r"[\r\n]*|[\s]*[\r\n]+", r"|[\r\n]"), r"[\p{N}]")
_YOUTU = (
    r"[\uac00-\ud7a3\u3131-\u318e]+"
    r"|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    rf"|[\u3105-\u312f]+|[{_KANA}]+",
    _MARKED.replace("{1,3}", ""),
)
_ASIAN = (
    r"[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e00-\u0e7f"
    r"\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_BAILING = _QWEN2.replace(r"|[\s]*[\r\n]+|", r"|[\s]*[\r\n]|")
_EXAONE_MOE = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:[\p{{L}}][\p{{M}}]*(?: [\p{{L}}][\p{{M}}]*)*)+|[\p{{N}}]"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|[\s]*[\r\n]|[\s]+(?![^\s])|[\s]+"
)
_POEM = r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_CHAMELEON = (
    *(r"<sentinel:[0-9]+>", r"IMGIMG[A-I]{1,4}Z", r"[\t\n]|    |  ", r"[\p{N}]", r"[\p{P}!-/:-@\[-`{-~]"),
    _GPT2,
)
_LINES = r"[^\n]+|[\n]+"


@dataclass(frozen=True)
class Threes:
    """A step that cuts runs of digits into threes counted from their end; what is left over in front stays with what
    stands before the run. `ends`: a word ends with the run."""

    run: str
    ends: bool

    def cuts(self, start: int, end: int) -> Iterable[int]:
        """Where a run is cut."""
        if self.ends:
            return range(start + ((end - start) % 3 or 3), end + 1, 3)
        return range(start + (end - start) % 3, end, 3)


@dataclass(frozen=True)
class Pre:
    """One pre-tokenizer: steps applied in turn, each to what the one before left whole or cut out."""

    steps: tuple[str | Threes, ...]
    ignore_merges: bool = False  # a word that is itself a token is taken as it is
    add_bos: bool = False  # where the file does not say
    always_bos: bool = False  # whatever it says
    across: bool = False  # words may reach across spaces
    plain: bool = False  # symbols are characters, not bytes under other names
    spelled: bool = False  # of which a space is spelled U+2581
    line_ends: bool = False  # a run of line ends that is a token is taken as it is


_ROWS = {
    "default": Pre(_DEFAULT),
    "gpt-2 phi-2 olmo mellum trillion a.x-4.0 mpt jais granite-docling exaone4 gigachat modern-bert jina-es jina-de"
    " jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe": Pre((_GPT2,)),
    "smollm starcoder refact command-r minerva-7b codeshell exaone mellum2": Pre((_GPT2_DIGITS,)),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": Pre(
        (_LLAMA3,), ignore_merges=True, add_bos=True
    ),
    "dbrx smaug-bpe glm4 glm5 chatglm-bpe": Pre((_LLAMA3,)),
    "jais-2": Pre((_JAIS2,)),
    "minicpm5": Pre(_MINICPM5, ignore_merges=True),
    "qwen2 deepseek-r1-qwen megrez stablelm2 hunyuan kormo f2llmv2 grok-2 solar-open": Pre((_QWEN2,)),
    "ufakzeka": Pre((_QWEN2[len(_CONTRACTIONS) + 1 :],)),
    "laguna": Pre((_LINES, _QWEN2)),
    "qwen35": Pre((_QWEN35,)),
    "bailingmoe bailingmoe2 llada-moe": Pre((_BAILING,)),
    "exaone-moe": Pre((_EXAONE_MOE,), across=True),
    "tekken": Pre((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": Pre((_GPT4O,)),
    "granite-embed-multi-97m": Pre((_GPT4O.replace(r"[\p{L}])", r"[\p{L}\p{M}])"),), ignore_merges=True),
    "tiny_aya cohere2moe": Pre((Threes(r"[\p{N}]+", ends=True), _MARKED)),
    "kimi-k2": Pre((_KIMI,)),
    "seed-coder": Pre((_SEED,)),
    "deepseek-coder": Pre(_CODER),
    "deepseek-llm": Pre(_DEEPSEEK),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": Pre(_DEEPSEEK3),
    "spark2_5": Pre(_SPARK),
    "afmoe": Pre((Threes(r"[\p{N}]+", ends=True), _ASIAN, _PUNCTUATED)),
    "youtu": Pre(_YOUTU, ignore_merges=True),
    "falcon": Pre((r"[\p{P}$+<=>^~|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "poro-chat bloom gpt3-finnish": Pre((_POEM,)),
    "viking": Pre((_POEM, r"[\p{N}]")),
    "chameleon": Pre(_CHAMELEON, add_bos=True),
    "superbpe": Pre((r"[\p{N}]+", Threes("[0-9]+", ends=False)), across=True),
    "whitespace": Pre((r"[^\s]+",), plain=True),
    "sarvam-moe": Pre((_LINES,), across=True, plain=True, spelled=True),
    "gemma4 granite-embed-multi-311m": Pre(
        (_LINES,), always_bos=True, across=True, plain=True, spelled=True, line_ends=True
    ),
}
PRE_TOKENIZERS = {name: row for names, row in _ROWS.items() for name in names.split()}


class Splitter:
    """Cuts text into words by one row of the table; the words joined are the text again."""

    def __init__(self, pre: Pre) -> None:
        self._pre = pre
        self._ascii = _compile(pre.steps, _ASCII, re.compile)
        self._unicode: tuple[_Step, ...] | None = None

    def __call__(self, text: str) -> list[str]:
        if text.isascii():
            return _apply(self._ascii, text)
        if self._unicode is None:
            import regex

            self._unicode = _compile(self._pre.steps, {r"\s": _SPACE}, regex.compile)
        if self._pre.across:
            return _apply(self._unicode, text)
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
    begins under every row of the table, but for those whose words reach across spaces.
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


_Step = tuple[re.Pattern[str], Threes | None]


def _apply(steps: tuple[_Step, ...], text: str) -> list[str]:
    words = [text]
    for pattern, threes in steps:
        if threes:
            words = [part for word in words for part in _cut_threes(pattern, threes, word)]
        else:
            words = [part for word in words for part in _cut(pattern, word)]
    return words


def _cut(pattern: re.Pattern[str], word: str) -> list[str]:
    parts: list[str] = pattern.findall(word)
    if sum(map(len, parts)) == len(word):  # most patterns match every character
        return parts
    parts, end = [], 0
    for match in pattern.finditer(word):
        if match.start() > end:
            parts.append(word[end : match.start()])
        end = match.end()
        parts.append(match.group())
    if end < len(word):
        parts.append(word[end:])
    return parts


def _cut_threes(pattern: re.Pattern[str], threes: Threes, word: str) -> list[str]:
    cuts = [cut for match in pattern.finditer(word) for cut in threes.cuts(*match.span()) if 0 < cut < len(word)]
    return [word[a:b] for a, b in pairwise((0, *cuts, len(word))) if a < b]


def _compile(
    steps: tuple[str | Threes, ...], classes: dict[str, str], compile: Callable[[str], re.Pattern[str]]
) -> tuple[_Step, ...]:
    compiled = []
    for step in steps:
        pattern = step.run if isinstance(step, Threes) else step
        for name, members in classes.items():
            pattern = pattern.replace(name, members)
        compiled.append((compile(pattern), step if isinstance(step, Threes) else None))
    return tuple(compiled)
