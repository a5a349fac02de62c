"""Megabytes of English a second and core, ours and a peer's on the same vocabulary, one after the other:

    python benchmarks/tokenizer.py ../shared/vocab/ggml-vocab-llama-bpe.gguf gemma.gguf ... [--text FILE] [--rounds 3]

The text is the documentation that comes with Python, a docstring or a topic at a time, or the paragraphs of FILE. The
peer is `tokenizers` for byte pairs and `sentencepiece` for scored pieces, where they are installed. Seconds are the
process's own. `first` is a tokenizer that has seen nothing yet, `later` the best of the rounds after it.
"""

from __future__ import annotations

import argparse
import ast
import struct
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fabric.text.pretokenize import PRE_TOKENIZERS  # noqa: E402
from fabric.text.tokenizer import Tokenizer  # noqa: E402
from fabric.weights.gguf import GGUF  # noqa: E402

Encode = Callable[[str], list[int]]


def english(path: str | None) -> list[str]:
    """Texts of some hundred to some thousand characters."""
    if path is not None:
        return [part for part in Path(path).read_text(encoding="utf-8").split("\n\n") if part.strip()]
    from pydoc_data.topics import topics

    texts = list(topics.values())
    for module in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                texts.append(text)
    return texts


def ours(values: Mapping[str, Any]) -> Encode:
    """The tokenizer of this project."""
    return Tokenizer.from_gguf(values).encode


def tokenizers(values: Mapping[str, Any]) -> Encode:
    """The Rust library behind Transformers."""
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Peer

    row = PRE_TOKENIZERS[values["tokenizer.ggml.pre"]]
    vocabulary = {text: i for i, text in enumerate(values["tokenizer.ggml.tokens"])}
    merges = [tuple(pair.split(" ")) for pair in values["tokenizer.ggml.merges"]]
    peer = Peer(models.BPE(vocabulary, merges, ignore_merges=row.ignore_merges))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in row.patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    peer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, last])
    return lambda text: peer.encode(text, add_special_tokens=False).ids


def sentencepiece(values: Mapping[str, Any]) -> Encode:
    """Google's C++ library, given the model file that its sentencepiece_model.proto describes."""
    from sentencepiece import SentencePieceProcessor

    def number(value: int) -> bytes:
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value])

    def field(key: int, value: int | bytes) -> bytes:
        if isinstance(value, int):
            return number(key << 3) + number(value)
        return number(key << 3 | 2) + number(len(value)) + value

    def piece(text: str, score: float, kind: int) -> bytes:
        kind = 5 if kind == 2 and text != "<unk>" else kind  # one unknown token is all it allows
        spelled = text.replace(" ", "▁").encode()
        return field(1, field(1, spelled) + number(2 << 3 | 5) + struct.pack("<f", score) + field(3, kind))

    rows = zip(*(values[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")), strict=True)
    pieces = b"".join(piece(*row) for row in rows)
    prefix = int(values.get("tokenizer.ggml.add_space_prefix", True))
    rules = field(1, b"identity") + field(3, prefix) + field(4, 0) + field(5, 1)
    peer = SentencePieceProcessor()
    peer.LoadFromSerializedProto(pieces + field(2, field(3, 2) + field(35, 1)) + field(3, rules))
    encode: Encode = peer.encode
    return encode


def main() -> None:
    """The command of the module's first lines."""
    parser = argparse.ArgumentParser(description="Tokenizers: megabytes a second of one core.")
    parser.add_argument("models", nargs="+", help="GGUF files; their vocabularies are enough")
    parser.add_argument("--text", help="a file of English instead of Python's documentation")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    texts = english(args.text)
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts)} texts, {size:.2f} MB\n{'':28}{'':14}{'first':>8}{'later':>8}  MB/s")
    for path in args.models:
        with GGUF.open(path) as gguf:
            values = dict(gguf.metadata)
        peer = tokenizers if values["tokenizer.ggml.model"] == "gpt2" else sentencepiece
        made: dict[str, list[list[int]]] = {}
        for build in (ours, peer):
            try:
                encode = build(values)
            except ImportError as error:
                print(f"{Path(path).stem[:28]:28}{build.__name__:14}{error}")
                continue
            rates = []
            for _ in range(1 + args.rounds):
                start = time.process_time()
                made[build.__name__] = [encode(text) for text in texts]
                rates.append(size / (time.process_time() - start))
            print(f"{Path(path).stem[:28]:28}{build.__name__:14}{rates[0]:8.1f}{max(rates[1:]):8.1f}")
        if len(made) == 2:
            same = sum(a == b for a, b in zip(*made.values(), strict=True))
            print(f"{'':28}equal ids for {same} of {len(texts)} texts")


if __name__ == "__main__":
    main()
