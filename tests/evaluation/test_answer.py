from __future__ import annotations

import pytest

from fabric.generation.answer import Answer
from fabric.text.tokenizer import Tokenizer
from fabric.weights.gguf import GGUF


@pytest.fixture(scope="module")
def tokenizer(model: str) -> Tokenizer:
    with GGUF.open(model) as gguf:
        return Tokenizer.from_gguf(gguf.metadata)


def grow(answer: Answer, ids: list[int]) -> list[str]:
    """What is told after each token, until the answer stops, and at its end."""
    told = []
    for token in ids:
        answer.add(token)
        told.append(answer.news())
        if answer.stopped:
            break
    answer.close()
    return [*told, answer.news()]


def test_a_character_of_several_tokens_is_told_when_it_is_whole(tokenizer: Tokenizer) -> None:
    text = "the café – 狐 fox"
    ids = tokenizer.encode(text, follows=0)
    assert len(ids) > len(text.split()), "no character is cut: the test shows nothing"
    told = grow(Answer(tokenizer, 0), ids)
    assert "".join(told) == text and not any("\ufffd" in piece for piece in told)


def test_an_answer_that_ends_within_a_character_ends_with_a_replacement(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ok 狐", follows=0)
    answer = Answer(tokenizer, 0)
    assert "".join(grow(answer, ids[:-1])) == "ok \ufffd" == answer.text


def test_nothing_of_a_stop_text_is_told_and_what_only_begins_like_one_is(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the quick fox and the lazy dog", follows=0)
    stopped = Answer(tokenizer, 0, ("lazy cat", "and the l"))
    told = grow(stopped, ids)
    assert stopped.stopped and "".join(told) == "the quick fox " == stopped.text
    whole = Answer(tokenizer, 0, ("the lazy cat", "dog house"))
    told = grow(whole, ids)
    assert not whole.stopped and "".join(told) == "the quick fox and the lazy dog"
    assert told[-1] == "dog"  # it might have been a house
