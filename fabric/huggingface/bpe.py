"""tokenizer.json, as the `tokenizers` library writes it: byte-level BPE, and SentencePiece vocabularies (BPE with byte
fallback). A part of it that changes ids and that GGUF cannot express is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from fabric.core.merging import Words
from fabric.errors import DataError
from fabric.fields import Fields, short
from fabric.huggingface.folder import MOST_VOCABULARY, Folder
from fabric.huggingface.vocabulary import BYTE, UNKNOWN, Added, Vocabulary, check_ids
from fabric.notices import notice

NAME = "tokenizer.json"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
QWEN35 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = (
    TEKKEN.replace(r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _ENDING)
    .replace(r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _ENDING)
    .replace(r"|\p{N}|", r"|\p{N}{1,3}|")
)
# (how words are cut, whether a word that is a token is taken as it is): tokenizer.ggml.pre
_PRE = {
    ("gpt2", False): "gpt-2", ("digits", False): "smollm", (LLAMA3, True): "llama-bpe", (LLAMA3, False): "smaug-bpe",
    (QWEN2, False): "qwen2", (QWEN35, False): "qwen35", (TEKKEN, True): "tekken", (GPT4O, False): "gpt-4o",
}  # fmt: skip
_MOST_STEPS = 16  # of a normalizer or a pre-tokenizer


def read_tokenizer_json(folder: Folder, by_merges: bool = False) -> Vocabulary:
    """The vocabulary of tokenizer.json. `by_merges`: that of pieces is written with its merges. Raises DataError."""
    described = folder.json(NAME, MOST_VOCABULARY)
    model = described.child("model")
    if model.get("type") != "BPE":
        raise model.wrong("type", "BPE")
    tokens, merges = check_ids(described.where, model.get("vocab")), _merges(model)
    for key, nothing in (("dropout", 0), ("continuing_subword_prefix", ""), ("end_of_word_suffix", "")):
        model.only(key, nothing, why="cannot be expressed in GGUF")
    if model.flag("byte_fallback", False):
        vocabulary = _sentencepiece(described, model, tokens, merges, by_merges)
    else:
        vocabulary = _byte_level(described, model, tokens, merges)
    for i, token in _added(described):
        vocabulary.place(i, token)
    vocabulary.edges = _edges(described)
    return vocabulary


def byte_level(
    where: str, tokens: dict[int, str], merges: list[tuple[str, str]], cut: str, ignore_merges: bool
) -> Vocabulary:
    """Byte-level BPE whose words are cut by `cut`: a pattern, "gpt2" or "digits"."""
    pre = _PRE.get((cut, ignore_merges))
    if pre is None and (cut, not ignore_merges) in _PRE and _all_merge(tokens, merges):
        pre = _PRE[cut, not ignore_merges]  # words that are tokens come out as themselves either way
    if pre is None:
        told = " with ignore_merges" if ignore_merges else ""
        raise DataError(f"{where}: its pre_tokenizer cuts words in a way that is not known here{told}: {short(cut)}")
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
    }
    return Vocabulary(where, metadata, tokens)


def _byte_level(described: Fields, model: Fields, tokens: dict[int, str], merges: list[tuple[str, str]]) -> Vocabulary:
    for step in _steps(described, "normalizer"):
        if step.get("type") != "NFC":
            raise step.error("type", f"is {short(step.get('type'))}, which cannot be expressed in GGUF")
        notice(f"{described.where}: the normalizer NFC has no place in GGUF: other forms of a text get other ids")
    if any(" " in part for merge in merges for part in merge):
        raise DataError(f"{described.where}: a token of model.merges has a space in it, which GGUF cannot express")
    return byte_level(described.where, tokens, merges, _cut(described), model.flag("ignore_merges", False))


def _sentencepiece(
    described: Fields, model: Fields, tokens: dict[int, str], merges: list[tuple[str, str]], by_merges: bool
) -> Vocabulary:
    """Scores are the ranks of the merges that make a token: merging by them is merging by rank."""
    model.only("ignore_merges", False, why="cannot be expressed in GGUF for a SentencePiece vocabulary")
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    never = float(-len(merges) - 1)
    unknown = model.text("unk_token", "")
    types = {i: BYTE for i, text in tokens.items() if _is_byte(text)}
    types |= {i: UNKNOWN for i, text in tokens.items() if text == unknown}
    scores = {i: float(-ranks[text]) if text in ranks else never for i, text in tokens.items()}
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": _prepends(described),
    }
    if by_merges and all(set(text) == {"\n"} for text in ranks if "\n" in text):  # readers cut texts at line ends
        metadata |= {
            "tokenizer.ggml.model": "gemma4",
            "tokenizer.ggml.pre": "gemma4",
            "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
        }
    return Vocabulary(described.where, metadata, tokens, types, scores)


def _merges(model: Fields) -> list[tuple[str, str]]:
    merges, vocab, found = model.get("merges"), model.get("vocab"), []
    if not isinstance(merges, list):
        raise model.wrong("merges", "a list of pairs")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not str or type(pair[1]) is not str:
            raise model.error("merges", f"has {short(merge)}, which is no pair of two tokens")
        left, right = pair
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise model.error("merges", f"has {short(merge)}, whose parts or whole model.vocab lacks")
        found.append((left, right))
    return found


def _all_merge(tokens: dict[int, str], merges: list[tuple[str, str]]) -> bool:
    """Whether every token, taken as a word, merges to itself."""
    places = sorted(tokens)
    pairs, texts = [f"{left} {right}" for left, right in merges], [tokens[i] for i in places]
    ranks = np.append(np.arange(len(pairs)), np.full(len(texts), -1))
    ids = np.append(np.full(len(pairs), -1), np.array(places))
    word = Words([*pairs, *texts], ranks, ids, joint=" ")
    made = {left + right for left, right in merges}
    return all(word(tokens[i]) == [i] for i in places if tokens[i] in made)


# ---- the parts ----


def _steps(described: Fields, key: str) -> list[Fields]:
    """The steps of a normalizer or a pre-tokenizer: one, several in a Sequence, or none."""
    first, found = described.child(key), []
    waiting = [first] if first.values else []
    while waiting:
        step = waiting.pop(0)
        if step.get("type") != "Sequence":
            found.append(step)
            continue
        inner = "normalizers" if key == "normalizer" else "pretokenizers"
        several = step.get(inner)
        if not isinstance(several, list) or len(several) + len(found) > _MOST_STEPS:
            raise step.wrong(inner, f"a list of at most {_MOST_STEPS} steps")
        waiting = [Fields({inner: one}, step.where, step.prefix).child(inner) for one in several] + waiting
    return found


def _cut(described: Fields) -> str:
    """How words are cut: a pattern, "gpt2" or "digits" (GPT-2's pattern, every digit alone)."""
    steps = _steps(described, "pre_tokenizer")
    kinds = [step.get("type") for step in steps]
    if kinds and kinds[-1] == "ByteLevel":
        steps[-1].only("add_prefix_space", False, why="cannot be expressed in GGUF for byte-level BPE")
        own = steps[-1].flag("use_regex", True)
        if kinds == ["ByteLevel"] and own:
            return "gpt2"
        if kinds == ["Digits", "ByteLevel"] and own and steps[0].flag("individual_digits", False):
            return "digits"
        if kinds == ["Split", "ByteLevel"] and not own:
            how = (str(steps[0].get("behavior")).lower(), steps[0].flag("invert", False))
            if how in (("isolated", False), ("removed", True)):
                return steps[0].child("pattern").text("Regex")
    raise DataError(f"{described.where}: pre_tokenizer {short('+'.join(map(str, kinds)))} is not known here")


def _prepends(described: Fields) -> bool:
    """Whether a text gets a space before its first word. DataError for steps that a SentencePiece model has not."""
    found = False
    for step in _steps(described, "normalizer"):
        kind = step.get("type")
        if kind == "Prepend":
            step.only("prepend", "▁")
            found = True
        elif kind != "Replace" or (step.child("pattern").get("String"), step.get("content")) != (" ", "▁"):
            raise step.error("type", f"is {short(kind)}, which cannot be expressed in GGUF")
    for step in _steps(described, "pre_tokenizer"):
        kind = step.get("type")
        if kind == "Metaspace":
            step.only("replacement", "▁")
            scheme = step.text("prepend_scheme", "always" if step.flag("add_prefix_space", False) else "never")
            found = found or scheme in ("first", "always")
            if scheme == "first":
                told = "in GGUF a text behind a special token gets a space in front too (prepend_scheme first)"
                notice(f"{described.where}: {told}")
        elif kind != "Split" or step.child("pattern").get("String") not in (" ", "▁"):
            raise step.error("type", f"is {short(kind)}, which cannot be expressed in GGUF for SentencePiece")
    return found


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _added(described: Fields) -> Iterable[tuple[int, Added]]:
    rows = described.get("added_tokens")
    if rows is not None and not isinstance(rows, list):
        raise described.wrong("added_tokens", "a list")
    for row in rows or []:
        fields = Fields({"row": row}, described.where, "added_tokens.").child("row")
        yield fields.size("id", least=0), added_token(fields)


def added_token(row: Fields) -> Added:
    """A token as the library spells it, in either of its files."""
    strips = [row.flag(flag, False) for flag in ("lstrip", "rstrip", "single_word")]
    return Added(row.text("content"), row.flag("special", False), any(strips))


def _edges(described: Fields) -> tuple[list[str], list[str]]:
    """What the post-processor puts before and behind a text."""
    post = described.child("post_processor")
    steps = [post] if post.values else []
    if post.get("type") == "Sequence":
        several = post.get("processors")
        if not isinstance(several, list) or len(several) > _MOST_STEPS:
            raise post.wrong("processors", "a list of steps")
        steps = [Fields({"step": one}, post.where, post.prefix).child("step") for one in several]
    before: list[str] = []
    behind: list[str] = []
    for step in steps:
        kind = step.get("type")
        if kind == "TemplateProcessing":
            texts = _template(step)
            before, behind = texts[0] + before, behind + texts[1]
        elif kind != "ByteLevel":
            raise step.error("type", f"is {short(kind)}, which cannot be expressed in GGUF")
    return before, behind


def _template(step: Fields) -> tuple[list[str], list[str]]:
    pieces: Any = step.get("single")
    if not isinstance(pieces, list) or not all(isinstance(piece, dict) for piece in pieces):
        raise step.wrong("single", "a list of pieces")
    texts = [Fields(piece, step.where, f"{step.prefix}single.").child("SpecialToken").get("id") for piece in pieces]
    middle = [i for i, piece in enumerate(pieces) if "Sequence" in piece]
    special = step.child("special_tokens")
    if len(middle) != 1 or not all(isinstance(text, str) for i, text in enumerate(texts) if i != middle[0]):
        raise step.wrong("single", "special tokens around one text")

    def spelled(name: str) -> list[str]:
        told = special.child(name).get("tokens")
        return told if isinstance(told, list) and all(isinstance(text, str) for text in told) else [name]

    before = [text for name in texts[: middle[0]] for text in spelled(name)]
    return before, [text for name in texts[middle[0] + 1 :] for text in spelled(name)]
