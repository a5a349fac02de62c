"""Which type each matrix of a model gets in a file of a given type: the plain types, and the mixes of stock llama.cpp,
which give some matrices a step more than the rest. Leans on the formats and on the names and shapes of tensors alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from fabric.errors import UsageError
from fabric.weights.formats import BY_NAME, F16, FORMATS, Q8_0, Format, encodable
from fabric.weights.gguf import GGUF, TensorInfo

_Q4_K, _Q5_K, _Q6_K = (BY_NAME[name] for name in ("Q4_K", "Q5_K", "Q6_K"))

# What stands in for a type whose blocks are longer than the rows; F16 where that does not fit either.
_SHORTER = {"Q4_K": BY_NAME["Q5_0"], "Q5_K": BY_NAME["Q5_1"], "Q6_K": FORMATS[Q8_0]}

# Whether the i-th of n matrices "attn_v" or "ffn_down" gets more.
_Rule = Callable[[str, int, int], bool]


def _spread(role: str, i: int, n: int) -> bool:
    """The first and the last eighth, and every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _early(role: str, i: int, n: int) -> bool:
    return i < (4 if role == "attn_v" else n // 8)


@dataclass(frozen=True)
class Mix:
    """A value of `--type`: the type of most matrices, `general.file_type`, and which matrices get `more`."""

    base: Format
    file_type: int | None  # None: by the type that most elements have
    more: Format | None = None
    rule: _Rule = _spread
    fused: Format | None = None  # of every matrix that holds queries, keys and values


MIXES = {
    "q4_k_s": Mix(_Q4_K, 14, _Q5_K, _early),
    "q4_k_m": Mix(_Q4_K, 15, _Q6_K, _spread, _Q5_K),
    "q5_k_s": Mix(_Q5_K, 16),
    "q5_k_m": Mix(_Q5_K, 17, _Q6_K, _spread, _Q6_K),
}
_PLAIN_FILE_TYPES = {"Q4_K": 14, "Q5_K": 16}


def type_names() -> list[str]:
    """Return the values of `--type`, lower case: f32, f16, q4_0 ... q4_k_m."""
    return [*(row.name.lower() for row in encodable()), *MIXES]


def parse_type(name: str) -> Format:
    """Return the format called `name` in either case; UsageError lists those that can be written."""
    row = BY_NAME.get(name.upper())
    if row not in encodable():
        raise UsageError(_refusal(name, [format.name.lower() for format in encodable()]))
    return row


def parse_mix(name: str) -> Mix:
    """Return the mix or the plain type called `name` in either case; UsageError lists those that can be written."""
    if name.lower() in MIXES:
        return MIXES[name.lower()]
    row = BY_NAME.get(name.upper())
    if row not in encodable():
        raise UsageError(_refusal(name, type_names()))
    return Mix(row, _PLAIN_FILE_TYPES.get(row.name, row.file_type) if row.block > 1 else None)


def _refusal(name: str, known: list[str]) -> str:
    return f"the type {name!r} cannot be written; these can: {' '.join(known)}"


def choose_type(
    gguf: GGUF, info: TensorInfo, mix: Mix, output_type: Format | None = None, named: Format | None = None
) -> tuple[int, str | None]:
    """Return the type a matrix gets in a file of that mix, and why where neither the mix nor its base says so. `named`:
    the type asked for this very matrix.

    As in stock llama.cpp: the output head, or the embedding that serves as one, gets Q6_K in a file of smaller blocks,
    or Q8_0 where rows are not whole ones; other rows that are not whole blocks get shorter ones, or F16.
    """
    head = "output.weight" if "output.weight" in gguf.tensors else "token_embd.weight"
    cols, reason = info.shape[-1], None
    row = _raised(gguf, info, mix)
    if named:
        return named.type, None
    if info.name == head and output_type:
        row, reason = output_type, "it is the output head"
    elif info.name == head and mix.base.block > 1 and mix.base.type != Q8_0:
        row = FORMATS[Q8_0] if cols % mix.base.block else _Q6_K
        reason = "it is the output head"
    elif cols % row.block:
        reason = f"its rows of {cols} are not whole {row.name} blocks"
    while cols % row.block:
        row = _SHORTER.get(row.name, FORMATS[F16])
    return row.type, reason if row is not mix.base else None


def _raised(gguf: GGUF, info: TensorInfo, mix: Mix) -> Format:
    if mix.fused and info.name.endswith(".attn_qkv.weight"):
        return mix.fused
    found = re.fullmatch(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight", info.name)
    if not found:
        return mix.base
    role = found[2]
    alike = re.compile(rf"blk\.(\d+)\.{role}\.weight")
    blocks = sorted(int(match[1]) for name in gguf.tensors if (match := alike.fullmatch(name)))
    i, n = blocks.index(int(found[1])), len(blocks)
    if mix.more and mix.rule(role, i, n):
        return mix.more
    if mix.base is _Q4_K and role == "attn_v" and n == 80 and info.shape[0] < info.shape[1]:
        return _Q5_K  # models of 70 billion share few values among many heads: small matrices that matter
    return mix.base
