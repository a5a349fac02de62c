"""SentencePiece vocabularies: ids of stock llama.cpp, every text back, and what is trained beside invisible spaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabric.data.records import Record, parse_record
from fabric.errors import DataError
from fabric.text.encode import encode, prompt_ids
from fabric.text.tokenizer import Tokenizer
from tests.support import llama_cpp
from tests.support.paths import gemma3, shared
from tests.text.test_tokenizer import assigned_text
from tests.text.vocabularies import gemma3_tokenizer, metadata, shared_tokenizer, write_tiny_model

PIECES = ("a", "b", "ab", "▁", "▁a", "▁ab", "▁▁", "b▁a", "bb", "é", "ab▁ab", "ab▁b")
SCORES = (-9, -9, -1, -5, -2, -1.5, -3, -0.5, -1, -9, -0.25, -0.75)
SPECIALS = ("<unk>", "<s>", "</s>", "<tag>")


def build(**changes: Any) -> Tokenizer:
    """Four specials (the last one user-defined), 256 bytes and a few pieces, some with a space inside."""
    tokens = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 260 + [float(score) for score in SCORES],
        "tokenizer.ggml.token_type": [2, 3, 3, 4] + [6] * 256 + [1] * len(PIECES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **{f"tokenizer.ggml.{key}": value for key, value in changes.items()},
    }
    return Tokenizer.from_gguf({key: value for key, value in values.items() if value is not None})


NAMES = ["llama-spm", "phi-3", "gemma-3"]
MARKS = [
    "<s>",
    "</s>",
    "<unk>",
    "<|user|>",
    "<|end|>\n",
    "<0x41>",
    "<start_of_turn>",
    "<td>",
    "[PAD32012]",
    " ",
    "  ",
    "\n",
]


def named(name: str) -> tuple[dict[str, Any], Tokenizer]:
    if name == "gemma-3":
        return metadata(gemma3()), gemma3_tokenizer()
    return metadata(shared(f"vocab/ggml-vocab-{name}.gguf")), shared_tokenizer(name)


def marked_text() -> st.SearchStrategy[str]:
    """Text with what looks like special tokens, without the vocabulary's own sign for a space."""
    parts = st.one_of(assigned_text(20), st.sampled_from(MARKS), st.sampled_from(["The", " quick", "ly ", "über"]))
    return st.lists(parts, max_size=8).map(lambda parts: "".join(parts).replace("▁", ""))


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_llama_cpp(name: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    if not llama_cpp.available():
        pytest.skip("stock llama.cpp is not there: pip install xllamacpp")
    values, tokenizer = named(name)
    model = gemma3() if name == "gemma-3" else write_tiny_model(tmp_path / "m.gguf", values)
    with llama_cpp.Llama(model, n_ctx=32) as llama:

        @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
        @given(marked_text())
        def same(text: str) -> None:
            assert tokenizer.encode(text) == llama.tokenize(text, special=False)
            assert tokenizer.encode(text, special=True) == llama.tokenize(text, special=True)
            assert prompt_ids(tokenizer, text) == llama.tokenize(text, special=False, bos=True)

        same()


@pytest.mark.parametrize("name", [*NAMES, "small"])
def test_every_text_comes_back_from_its_ids(name: str) -> None:
    tokenizer = build() if name == "small" else named(name)[1]

    @settings(max_examples=300, deadline=None)
    @given(st.text(st.one_of(st.sampled_from("ab ▁é\n"), st.characters(codec="utf-8"))), st.sampled_from([None, 1, 9]))
    def back(text: str, follows: int | None) -> None:
        ids = tokenizer.encode(text, follows=follows)
        assert tokenizer.decode(ids, follows=follows) == text
        assert not any(tokenizer.tokens[i] in ("<s>", "</s>", "<unk>") for i in ids)

    back()


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab é\n▁"), max_size=30), st.data())
def test_each_token_knows_the_characters_it_covers(text: str, data: st.DataObject) -> None:
    tokenizer = build(add_space_prefix=data.draw(st.booleans()))
    text += data.draw(st.sampled_from(["", "<tag>", "<tag>b", "<s> "]))
    cuts = sorted(set(data.draw(st.lists(st.integers(0, len(text)), max_size=3))))
    pieces = tokenizer.encode_pieces(text, special=True, cuts=cuts)
    at = 0
    for k, (start, end) in enumerate(zip(pieces.starts.tolist(), pieces.ends.tolist(), strict=True)):
        before = pieces.ids[k - 1] if k else None
        shown = tokenizer.decode([pieces.ids[k]], follows=before)
        assert "\ufffd" in shown or shown == text[start:end]
        assert start <= at <= end and not any(start < cut < end for cut in cuts)
        at = end
    assert at == len(text)


@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from("ab \né"), max_size=24))
def test_cutting_a_text_into_words_changes_no_id(text: str) -> None:
    tokenizer = build(add_space_prefix=False)
    assert tokenizer.encode(text) == tokenizer._vocabulary._word(text)  # type: ignore[attr-defined]


def row(tokenizer: Tokenizer, **fields: Any) -> tuple[list[int], list[int]]:
    record: Record = parse_record(fields, "rows.jsonl:1")
    [example] = encode(record, tokenizer, None)
    return example.tokens.tolist(), example.train.tolist()


def test_a_completion_goes_on_where_its_prompt_ends() -> None:
    tokenizer = build()
    ids, train = row(tokenizer, prompt="ab", completion=" ab")
    assert [tokenizer.tokens[i] for i in ids] == ["<s>", "▁ab", "▁ab", "</s>"], "no second space in front"
    assert train == [0, 0, 1, 1]


def test_the_invisible_space_behind_an_answers_end_is_not_trained() -> None:
    tokenizer = build()
    text = "<s>ab</s>bb<s>ab</s>"
    ids, train = row(tokenizer, text=text, train=[[3, 9], [14, 20]])
    assert [tokenizer.tokens[i] for i in ids] == ["<s>", "▁ab", "</s>", "▁", "bb", "<s>", "▁ab", "</s>"]
    assert train == [0, 1, 1, 0, 0, 0, 1, 1]


def test_control_tokens_of_phi_3_swallow_the_white_space_behind_them() -> None:
    tokenizer = shared_tokenizer("phi-3")
    text = "<|user|>\nHi<|end|>\n<|assistant|>\nYes<|end|>\n"
    start = text.index("Yes")
    ids, train = row(tokenizer, text=text, train=[[start, start + len("Yes<|end|>")]])
    spelled = [tokenizer.tokens[i] for i in ids]
    assert spelled == ["<s>", "<|user|>", "▁Hi", "<|end|>", "<|assistant|>", "▁Yes", "<|end|>"]
    assert train == [0, 0, 0, 0, 0, 1, 1]
    ids, train = row(tokenizer, text=text.replace("Yes", "\nYes"), train=[[start, start + len("\nYes<|end|>")]])
    assert tokenizer.decode(ids[5:], follows=ids[4]) == "\nYes<|end|>", "an answer keeps its own"


def test_what_ends_an_answer_is_what_the_model_says() -> None:
    assert shared_tokenizer("phi-3").end_texts == ("<|endoftext|>", "<|end|>")
    assert set(gemma3_tokenizer().end_texts) == {"<eos>", "<end_of_turn>"}, "</s> is a tag there"
    assert gemma3_tokenizer().add_bos and build().add_bos and not build(add_bos_token=False).add_bos


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scores": None}, "tokenizer.ggml.scores is not a list of numbers"),
        ({"scores": ["x"] * 272}, "tokenizer.ggml.scores is not a list of numbers"),
        ({"scores": [1.0]}, "tokenizer.ggml.scores has 1 entries for 272 tokens"),
        ({"tokens": ["<unk>"] * 272}, "lacks the token <0x00> for a byte"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_refused_in_a_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        build(**changes)


def test_scores_that_are_no_numbers_lose_against_those_that_are() -> None:
    scores = [float("nan")] * 260 + [float(score) for score in SCORES]
    scores[260 + PIECES.index("▁ab")] = float("nan")
    tokenizer = build(scores=scores)
    assert [tokenizer.tokens[i] for i in tokenizer.encode("ab")] == ["▁ab"], "but nothing stands against it here"
    assert tokenizer.decode(tokenizer.encode("ab ab b")) == "ab ab b"
