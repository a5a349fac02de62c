"""tekken.json, Mistral's own file of a byte-level vocabulary: tokens by rank, from which the merges follow, behind a
fixed number of special tokens.
"""

from __future__ import annotations

import base64
import binascii

from fabric.fields import Fields
from fabric.huggingface.bpe import byte_level
from fabric.huggingface.folder import MOST_VOCABULARY, Folder
from fabric.huggingface.vocabulary import Added, Vocabulary
from fabric.text.vocabulary import BYTE_TO_CHAR

NAME = "tekken.json"
# What files before version 8 may leave out: their special tokens by rank, as mistral-common has them.
_OLD_VERSIONS = ("v1", "v2", "v3", "v7")
_OLD_SPECIAL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
    "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
_LONGEST = 1024  # bytes of a token
_MOST_SPECIAL = 1 << 16


def read_tekken(folder: Folder) -> Vocabulary:
    """The vocabulary of tekken.json. Raises DataError."""
    described = folder.json(NAME, MOST_VOCABULARY)
    config = described.child("config")
    special = _special(described)
    n_special = config.size("default_num_special_tokens", len(special), least=len(special), most=_MOST_SPECIAL)
    rows = described.get("vocab")
    if not isinstance(rows, list) or not rows:
        raise described.wrong("vocab", "a list of tokens")
    kept = config.size("default_vocab_size", len(rows) + n_special, least=n_special + 1) - n_special
    ranks: dict[bytes, int] = {}
    for rank, row in enumerate(rows[:kept]):
        token = _bytes(Fields({"row": row}, described.where, "vocab.").child("row"))
        if ranks.setdefault(token, rank) != rank:
            raise described.error("vocab", f"has the token of rank {rank} twice")
    spelled = {token: "".join(BYTE_TO_CHAR[byte] for byte in token) for token in ranks}
    merges = [(spelled[left], spelled[right]) for left, right in _merges(ranks)]
    tokens = {n_special + rank: spelled[token] for token, rank in ranks.items()}
    vocabulary = byte_level(described.where, tokens, merges, config.text("pattern"), ignore_merges=True)
    for i in range(n_special):
        vocabulary.place(i, Added(special[i] if i < len(special) else f"<SPECIAL_{i}>", control=True))
    usual = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    vocabulary.special = {name: text for name, text in usual.items() if text in special}
    vocabulary.edges = (["<s>"], []) if "<s>" in special else ([], [])
    return vocabulary


def _special(described: Fields) -> list[str]:
    """Texts of the special tokens, by rank."""
    rows = described.get("special_tokens")
    if rows is None and described.child("config").text("version", "") in _OLD_VERSIONS:
        return [*_OLD_SPECIAL]
    if not isinstance(rows, list) or not rows or len(rows) > _MOST_SPECIAL:
        raise described.wrong("special_tokens", "a list of special tokens")
    texts: dict[int, str] = {}
    for row in rows:
        fields = Fields({"row": row}, described.where, "special_tokens.").child("row")
        texts[fields.size("rank", least=0, most=_MOST_SPECIAL)] = fields.text("token_str")
    if sorted(texts) != list(range(len(rows))):
        raise described.error("special_tokens", f"do not have the ranks 0 to {len(rows) - 1}")
    return [texts[rank] for rank in range(len(rows))]


def _bytes(row: Fields) -> bytes:
    try:
        token = base64.b64decode(row.text("token_bytes"), validate=True)
    except (binascii.Error, ValueError):
        token = b""
    if not 0 < len(token) <= _LONGEST:
        raise row.wrong("token_bytes", f"1 to {_LONGEST} bytes in base64")
    return token


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every way to make a token of two, by the rank of what is made: merging by rank is merging the best pair first."""
    merges = []
    for token in sorted(ranks, key=lambda token: ranks[token]):
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [(left, right) for left, right in halves if left in ranks and right in ranks]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges
