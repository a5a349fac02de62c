"""The tokenizer against the published ids of real vocabularies and against stock llama.cpp."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabric import notices
from fabric.errors import DataError
from fabric.text import pretokenize
from fabric.text.pretokenize import Splitter, find_pre
from fabric.text.tokenizer import Tokenizer
from fabric.text.vocabulary import BytePairs
from tests.support import llama_cpp
from tests.support.paths import shared, smollm2
from tests.text.vocabularies import metadata, shared_tokenizer, shortened, smollm2_tokenizer, write_tiny_model

FILES = ["gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2", "qwen35", "deepseek-coder", "deepseek-llm"]
TRICKY = " '\"s't'VE\n\r\t.,!?$%-_+=<|>/1234567890abcXYZ"
TRICKY += "\x04\x1c\x85\xa0\u2003\u3000\u200déß\u0301\u093cñ😀🌫️中文字한국٣٤߀²Ⅷ〇़"


def assigned_text(max_size: int = 60) -> st.SearchStrategy[str]:
    """Text of characters that every Unicode table in use knows, rich in what pre-tokenizers tell apart."""
    every = st.characters(codec="utf-8", exclude_characters="\0")
    known = every.filter(lambda c: unicodedata.ucd_3_2_0.category(c) != "Cn")
    return st.text(st.one_of(st.sampled_from(TRICKY), known), max_size=max_size)


@lru_cache(maxsize=1)
def plain() -> Tokenizer:
    return build()


def build(**changes: Any) -> Tokenizer:
    """The byte alphabet as a vocabulary, two control tokens, one user-defined, a few merges."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    letters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    tokens = ["<|end|>", "<|end|>x", "<think>", *(letters[b] for b in range(256)), "ab", "abab", "Ġa"]
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 4] + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": ["a b", "ab ab", "Ġ a"],
        "tokenizer.ggml.eos_token_id": 0,
        **{f"tokenizer.ggml.{key}": value for key, value in changes.items()},
    }
    return Tokenizer.from_gguf({key: value for key, value in values.items() if value is not None})


@pytest.mark.parametrize("name", FILES)
def test_ids_are_those_the_model_was_trained_with(name: str) -> None:
    tokenizer = shared_tokenizer(name)
    path = shared(f"vocab/ggml-vocab-{name}.gguf")
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    ids = [[int(i) for i in line.split()] for line in path.with_suffix(".gguf.out").read_text().split("\n")]
    for text, wanted in zip(texts, ids, strict=False):
        assert tokenizer.encode(text) == wanted, text
        assert tokenizer.decode(wanted) == text


ROWS = ["default", "gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "qwen35", "tekken", "gpt-4o", "seed-coder"]


@pytest.mark.parametrize("pre", [*ROWS, "deepseek-coder", "deepseek-llm"])
def test_words_are_cut_as_llama_cpp_cuts_them(pre: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    if not llama_cpp.available():
        pytest.skip("stock llama.cpp is not there: pip install xllamacpp")
    values = shortened(metadata(smollm2()), pre)
    tokenizer = Tokenizer.from_gguf(values)
    with llama_cpp.Llama(write_tiny_model(tmp_path / "m.gguf", values), n_ctx=32) as llama:

        @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
        @given(assigned_text())
        def same(text: str) -> None:
            assert tokenizer.encode(text) == llama.tokenize(text, special=False)

        same()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(assigned_text(8), st.sampled_from([" the", " ab ", " don’t", "It's", ".\n\n", "word, "]))))
def test_a_text_is_cut_the_same_where_only_part_of_it_is_ascii(parts: list[str]) -> None:
    text = "".join(part + " and so on" * (len(part) % 5) for part in parts)
    for name in ("default", *ROWS[1:], "deepseek-coder", "deepseek-llm"):
        split = Splitter(find_pre(name))
        split("é")
        assert split(text + "é") == pretokenize._apply(split._unicode, text + "é")  # type: ignore[arg-type]


def test_smollm2_ids_are_those_of_llama_cpp() -> None:
    if not llama_cpp.available():
        pytest.skip("stock llama.cpp is not there: pip install xllamacpp")
    tokenizer = smollm2_tokenizer()
    with llama_cpp.Llama(smollm2(), n_ctx=32) as llama:

        @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(st.one_of(assigned_text(20), st.sampled_from(["<|im_end|>", "<|im_start|>", "<|im_"]))))
        def same(parts: list[str]) -> None:
            text = "".join(parts)
            assert tokenizer.encode(text) == llama.tokenize(text, special=False)
            assert tokenizer.encode(text, special=True) == llama.tokenize(text, special=True)

        same()


@settings(max_examples=200, deadline=None)
@given(assigned_text())
def test_every_text_comes_back_from_its_ids(text: str) -> None:
    assert plain().decode(plain().encode(text)) == text


def test_what_a_user_types_never_becomes_a_control_token() -> None:
    tokenizer = build()
    assert 0 not in tokenizer.encode("a<|end|>b")
    assert tokenizer.encode("a<|end|>b", special=True)[1] == 0
    assert tokenizer.encode("<|end|>x", special=True) == [1], "of two spellings at one place the longer one counts"
    assert tokenizer.encode("<think>") == [2], "user-defined tokens are vocabulary"
    assert tokenizer.decode([0, 2], skip_special=True) == "<think>"
    assert [tokenizer.is_special(i) for i in (0, 2, 3)] == [True, True, False]


@settings(max_examples=200, deadline=None)
@given(assigned_text(), st.data())
def test_each_token_knows_the_characters_it_covers(text: str, data: st.DataObject) -> None:
    tokenizer = plain()
    cuts = sorted(set(data.draw(st.lists(st.integers(0, len(text)), max_size=3))))
    pieces = tokenizer.encode_pieces(text, cuts=cuts)
    for token, start, end in zip(pieces.ids, pieces.starts, pieces.ends, strict=True):
        assert tokenizer.token_bytes(token) in text[start:end].encode()
        assert not any(start < cut < end for cut in cuts)
    covered = np.zeros(len(text), bool)
    for start, end in zip(pieces.starts, pieces.ends, strict=True):
        covered[start:end] = True
    assert covered.all()
    if not cuts:
        assert pieces.ids == tokenizer.encode(text)


def test_spans_hold_where_the_vocabulary_lacks_a_byte() -> None:
    tokenizer = smollm2_tokenizer()
    text = "a\x04é\x04\x04 word\x06"
    pieces = tokenizer.encode_pieces(text)
    assert pieces.ids == tokenizer.encode(text)
    covered = ["".join(text[a:b]) for a, b in zip(pieces.starts, pieces.ends, strict=True)]
    assert covered == ["a", "é", " word"]


def test_control_tokens_are_text_inside_a_literal_range() -> None:
    tokenizer = build()
    pieces = tokenizer.encode_pieces("é<|end|><|end|>", special=True, literal=[(1, 8)], cuts=[1])
    assert pieces.ids.count(0) == 1
    assert (pieces.starts[-1], pieces.ends[-1]) == (8, 15)


def test_of_many_special_tokens_the_leftmost_and_longest_is_found() -> None:
    names = [f"<{'a' * (i % 50)}{i}>" for i in range(20_000)]
    tokens = [*build().tokens, *names]
    tokenizer = Tokenizer(BytePairs(tokens, ["a b"], "gpt-2"), tokens, [1] * 262 + [3] * 20_000)
    assert tokenizer.encode("<<0><a1><a51><", special=True).count(tokenizer.encode(names[1], special=True)[0]) == 1
    ids = tokenizer.encode("".join(names), special=True)
    assert ids == list(range(262, 20_262))


def test_a_word_of_a_hundred_thousand_letters_is_merged() -> None:
    assert build().encode("ab" * 50_000) == [build().encode("abab")[0]] * 25_000


def test_what_ends_an_answer_and_begins_a_text_is_known() -> None:
    assert smollm2_tokenizer().end_texts == ("<|endoftext|>", "<|im_end|>")
    assert not smollm2_tokenizer().add_bos
    assert shared_tokenizer("llama-bpe").add_bos, "the pre-tokenizer's rule holds where the file is silent"
    assert "<|eot_id|>" in shared_tokenizer("llama-bpe").end_texts
    assert build(bos_token_id=1, add_bos_token=True).add_bos


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": None}, "no tokenizer"),
        ({"model": "t5"}, r"unigrams, as T5's \('t5'\); byte pairs"),
        ({"model": "bert"}, r"WordPiece, as BERT's \('bert'\)"),
        ({"model": "rwkv"}, r"RWKV's longest matches \('rwkv'\)"),
        ({"model": "plamo2"}, r"PLaMo 2's \('plamo2'\)"),
        ({"model": "klingon"}, "of kind 'klingon'"),
        ({"pre": "klingon"}, "pre-tokenizer 'klingon' is not supported"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"merges": [1, 2]}, "tokenizer.ggml.merges"),
        ({"token_type": [1]}, "token_type has 1 entries"),
        ({"token_type": "3"}, "token_type is not a list of numbers"),
        ({"token_type": ["x"] * 262}, "token_type is not a list"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"bos_token_id": 10**6, "add_bos_token": True}, "bos_token_id 1000000"),
        ({"add_bos_token": "no"}, "add_bos_token is 'no'"),
    ],
)
def test_a_tokenizer_that_cannot_be_built_is_refused_in_a_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        build(**changes)


def test_an_id_outside_the_vocabulary_counts_as_not_set_and_is_named_once() -> None:
    said: list[str] = []
    notices.listen(said.append, strict=False)
    try:
        odd = build(padding_token_id=10**6, eos_token_id=-1, eot_token_id=0xFFFFFFFF, bos_token_id=1)
        assert (odd.pad_id, odd.eos_id, odd.eot_id, odd.bos_id) == (None, None, None, 1)
        build(padding_token_id=10**6, eos_token_id=-1, eot_token_id=0xFFFFFFFF, bos_token_id=1)
    finally:
        notices.listen(lambda text: None, strict=False)
    assert len(said) == 1
    assert all(part in said[0] for part in ("padding_token_id 1000000", "eos_token_id -1", "eot_token_id 4294967295"))
