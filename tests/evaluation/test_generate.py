from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fabric.errors import DataError, UsageError
from fabric.evaluation.evaluate import evaluate
from fabric.evaluation.settings import EvalSettings
from fabric.generation.decoding import FEED_TOKENS, answers
from fabric.generation.generate import generate
from fabric.generation.model import open_model, open_text
from fabric.generation.settings import GenerateSettings
from fabric.models.inference import Decoder
from fabric.text.tokenizer import Tokenizer
from fabric.weights.gguf import GGUF
from fabric.weights.settings import AdapterInput
from tests.evaluation.conftest import Writer
from tests.parity import ours
from tests.support.paths import smollm2

AdapterMaker = Callable[..., AdapterInput]
PROMPTS = ["the quick", "the old man and his cat", "is", "what is it that the dog", "in there"]


def run(model: str, **settings: Any) -> list[dict[str, Any]]:
    return list(
        generate(
            GenerateSettings(model, **{"device": "cpu", "precision": "f32", "threads": 2, "max_tokens": 12, **settings})
        )
    )


def tokenizer_of(model: str) -> Tokenizer:
    with GGUF.open(model) as gguf:
        return Tokenizer.from_gguf(gguf.metadata)


def greedy(model: str, ids: list[int], tokenizer: Tokenizer, most: int) -> list[int]:
    """Without a cache: everything anew for each token."""
    answer: list[int] = []
    while len(answer) < most:
        token = int(np.argmax(ours.logits(model, ids + answer)[-1]))
        if token in tokenizer.end_ids:
            break
        answer.append(token)
    return answer


def test_the_cache_changes_nothing(model: str, rows_file: Writer) -> None:
    tokenizer = tokenizer_of(model)
    answers = run(model, data=rows_file("p.jsonl", [{"prompt": text} for text in PROMPTS]), batch=2)
    for text, row in zip(PROMPTS, answers, strict=True):
        expected = greedy(model, tokenizer.encode(text), tokenizer, 12)
        assert row["answer"] == tokenizer.decode(expected, skip_special=True)
        assert row["answer_tokens"] == len(expected)
        assert row["prompt"] == text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_answered_together_are_answered_as_alone(temperature: float, model: str, rows_file: Writer) -> None:
    long = "the lesson in the house on the hill " * (FEED_TOKENS // 8)  # more than one feed holds
    rows = [{"prompt": text, "id": i} for i, text in enumerate([*PROMPTS, long, *PROMPTS[:2]])]
    data = rows_file("p.jsonl", rows)
    assert len(tokenizer_of(model).encode(long)) > FEED_TOKENS
    alone = run(model, data=data, batch=1, temperature=temperature)
    assert [row["id"] for row in alone] == list(range(len(rows)))
    for batch in (3, 8):
        assert run(model, data=data, batch=batch, temperature=temperature) == alone


def test_an_answer_that_is_there_is_set_aside(model: str, rows_file: Writer) -> None:
    user = {"role": "user", "content": "what is it?"}
    chat = {"messages": [user, {"role": "assistant", "content": "a fox"}], "label": "fox"}
    text = f"<|im_start|>user\n{user['content']}<|im_end|>\n<|im_start|>assistant\n"
    rendered = {"text": text + "a fox", "train": [[len(text), len(text) + 5]]}
    rows = [chat, {"messages": [user]}, rendered, {"prompt": "it", "completion": " is"}, {"prompt": "it"}]
    first, again, third, completed, plain = run(model, data=rows_file("p.jsonl", rows))
    assert first["messages"] == [user] and first["reference"] == "a fox" and first["label"] == "fox"
    assert first["answer"] == again["answer"] == third["answer"] and "reference" not in again
    assert third["text"] == text and third["reference"] == "a fox"
    assert completed["reference"] == " is" and completed["answer"] == plain["answer"]


def test_one_prompt_is_a_turn_or_raw_text(model: str, rows_file: Writer) -> None:
    rows = [{"messages": [{"role": "user", "content": "the dog"}]}, {"text": "the dog"}]
    asked, continued = run(model, data=rows_file("p.jsonl", rows))
    assert run(model, prompt="the dog")[0]["answer"] == asked["answer"]
    assert run(model, prompt="the dog", raw=True)[0]["answer"] == continued["answer"]


def test_answers_end_where_they_are_told(model: str, rows_file: Writer) -> None:
    whole = run(model, prompt="the quick", raw=True)[0]
    assert whole["finish"] == "length" and whole["answer_tokens"] == 12
    assert run(model, prompt="the quick", raw=True, max_tokens=5)[0]["answer_tokens"] == 5
    ids = len(tokenizer_of(model).encode("the quick"))
    assert run(model, prompt="the quick", raw=True, ctx=ids + 4)[0]["answer_tokens"] == 5  # the last one is not fed
    stop = whole["answer"][4:6]
    stopped = run(model, prompt="the quick", raw=True, stop=("nowhere", stop))[0]
    assert stopped["finish"] == "stop"
    assert stopped["answer"] == whole["answer"][: whole["answer"].index(stop)]
    wild = run(model, prompt="the quick", raw=True, temperature=1000.0, max_tokens=480)[0]
    assert wild["finish"] == "stop" and wild["answer_tokens"] < 480  # an end token came up among 320


def test_a_seed_gives_the_same_answers_and_another_seed_others(model: str) -> None:
    first = run(model, prompt="the", temperature=1.0, seed=1)
    assert run(model, prompt="the", temperature=1.0, seed=1) == first
    assert run(model, prompt="the", temperature=1.0, seed=2) != first
    assert run(model, prompt="the", temperature=1.0, top_k=1) == run(model, prompt="the")


def test_choices_differ_and_the_first_is_the_answer_alone(model: str, rows_file: Writer) -> None:
    data = rows_file("p.jsonl", [{"prompt": text, "id": i} for i, text in enumerate(PROMPTS)])
    rows = run(model, data=data, temperature=1.0, choices=3)
    assert [(row["id"], row["choice"]) for row in rows] == [(i, k) for i in range(len(PROMPTS)) for k in range(3)]
    for first, *others in (rows[at : at + 3] for at in range(0, len(rows), 3)):
        assert len({row["answer"] for row in (first, *others)}) == 3
    assert run(model, data=data, temperature=1.0, choices=3, batch=1) == rows
    (alone,) = run(model, prompt=PROMPTS[0], raw=True, temperature=1.0)
    assert alone["answer"] == rows[0]["answer"]


def test_choices_compute_their_prompt_once(model: str) -> None:
    class Counting(Decoder):
        fed = 0

        def logits(self, tokens: Any, *others: Any) -> Any:
            self.fed += len(tokens)
            return super().logits(tokens, *others)

    tokenizer = tokenizer_of(model)
    first, other = (tokenizer.encode(text * 9) for text in PROMPTS[:2])
    settings = GenerateSettings(model, max_tokens=5, temperature=1.0, device="cpu", threads=2, precision="f32")
    for lanes in (1, 2, 5):
        with open_text(model, None) as text, open_model(text, settings, contextlib.nullcontext) as (opened, _):
            decoder = Counting(opened.weights, lanes * 128, 128, lanes, "f32")
            prompts = [first] * 3 + [other] * 2
            found = list(answers(settings, tokenizer, decoder, prompts, lanes, 128))
            decoder.close()
        written = sum(len(lane.answer.tokens) - (finish == "length") for lane, finish in found)
        assert decoder.fed == len(first) + 2 + len(other) + 1 + written


def test_a_penalty_keeps_the_model_from_repeating_itself(model: str) -> None:
    def most_repeated(**settings: float) -> int:
        text = run(model, prompt="the quick", raw=True, max_tokens=60, **settings)[0]["answer"]
        return max(text.count(text[at : at + 4]) for at in range(len(text) - 3))

    assert most_repeated() > 4, "the model does not repeat itself: the test shows nothing"
    assert most_repeated(repeat_penalty=5.0) <= 2
    assert run(model, prompt="the quick", raw=True, repeat_penalty=9.0, repeat_window=0) == run(
        model, prompt="the quick", raw=True
    )


def test_the_system_message_is_the_first_of_the_conversation(model: str, rows_file: Writer) -> None:
    messages = [{"role": "system", "content": "the fox"}, {"role": "user", "content": "the dog"}]
    (told,) = run(model, data=rows_file("p.jsonl", [{"messages": messages}]))
    assert run(model, prompt="the dog", system="the fox")[0]["answer"] == told["answer"]


def test_an_adapter_changes_answers_by_its_scale_only(model: str, rows_file: Writer, adapter: AdapterMaker) -> None:
    data = rows_file("p.jsonl", [{"prompt": text} for text in PROMPTS])
    base = run(model, data=data)
    assert run(model, data=data, adapters=(adapter(b_std=0.0),)) == base
    assert run(model, data=data, adapters=(adapter(scale=0.0),)) == base
    assert run(model, data=data, adapters=(adapter(b_std=0.5),)) != base


def test_rows_that_cannot_be_answered_are_named(model: str, rows_file: Writer) -> None:
    long = rows_file("long.jsonl", [{"prompt": "the"}, {"prompt": "fox and dog " * 40}])
    with pytest.raises(DataError, match=r"long.jsonl:2: the prompt has \d+ tokens"):
        run(model, data=long, ctx=20)
    with pytest.raises(DataError, match=r"long.jsonl:2: the prompt has \d+ tokens.* 512;"):
        run(model, data=rows_file("long.jsonl", [{"prompt": "the"}, {"prompt": "fox and dog " * 400}]), ctx=4000)
    with pytest.raises(DataError, match=r"e.jsonl:1: the prompt is empty"):
        run(model, data=rows_file("e.jsonl", [{"prompt": ""}]))
    with pytest.raises(DataError, match=r"t.jsonl:1: token rows"):
        run(model, data=rows_file("t.jsonl", [{"tokens": [1, 2], "train": [0, 1]}]))
    with pytest.raises(DataError, match=r"a.jsonl:1: the only message is an answer"):
        run(model, data=rows_file("a.jsonl", [{"messages": [{"role": "assistant", "content": "yes"}]}]))
    assert run(model, data=rows_file("none.jsonl", [])) == []


def test_settings_that_make_no_sense_are_refused(model: str) -> None:
    for wrong in (
        {}, {"prompt": "a", "data": "b"}, {"data": "b", "raw": True}, {"prompt": "a", "max_tokens": 0},
        {"prompt": "a", "temperature": -1.0}, {"prompt": "a", "top_p": 0.0}, {"prompt": "a", "top_k": -1},
        {"prompt": "a", "stop": ("",)}, {"prompt": "a", "batch": 0}, {"prompt": "a", "min_p": 1.5},
        {"prompt": "a", "repeat_penalty": 0.0}, {"prompt": "a", "repeat_window": -1}, {"prompt": "a", "choices": 2},
        {"data": "b", "system": "s"}, {"prompt": "a", "raw": True, "system": "s"},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            run(model, **wrong)


def test_a_real_model_answers_and_finds_its_own_words_likely(rows_file: Writer) -> None:
    model = str(smollm2())
    row = run(model, prompt="What is the capital of France? Answer in one sentence.", max_tokens=40)[0]
    assert "Paris" in row["answer"] and row["finish"] == "stop"
    written = run(model, prompt="The old man and the sea", raw=True, max_tokens=48)[0]

    def perplexity(text: str) -> float:
        rows = [{"prompt": "The old man and the sea", "completion": text}]
        return evaluate(
            EvalSettings(rows_file("t.jsonl", rows), model, device="cpu", precision="f32", threads=2)
        ).score.perplexity

    assert 20 * perplexity(written["answer"]) < perplexity(" green ideas sleep furiously on seven lawful tables")
