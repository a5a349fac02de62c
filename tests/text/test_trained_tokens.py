"""Published templates with real vocabularies: what trains are answers and their end tokens, whatever they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fabric.data.records import parse_record
from fabric.errors import DataError
from fabric.text.encode import encode, encode_spans
from fabric.text.template import ChatTemplate
from fabric.text.tokenizer import Tokenizer
from tests.support.paths import shared, smollm2
from tests.text.vocabularies import gemma3_tokenizer, metadata, shared_tokenizer, smollm2_tokenizer

Answers = Callable[[Sequence[str]], list[str]]


class Chat(NamedTuple):
    """A template, the vocabulary of a model that has it, and what it makes of answers."""

    template: str | None  # None: the model's own
    tokenizer: Callable[[], Tokenizer]
    end: str
    answers: Answers
    system: bool = True


@lru_cache(maxsize=1)
def nemo_tokenizer() -> Tokenizer:
    """SmolLM2's words under Mistral's rules and with Mistral's control tokens."""
    values = metadata(smollm2())
    names = {1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]"}
    tokens = [names.get(i, text) for i, text in enumerate(values["tokenizer.ggml.tokens"])]
    changes = {"tokens": tokens, "pre": "tekken", "bos_token_id": 1, "eos_token_id": 2, "add_bos_token": True}
    return Tokenizer.from_gguf({**values, **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}})


def as_said(answers: Sequence[str]) -> list[str]:
    return list(answers)


def trimmed(answers: Sequence[str]) -> list[str]:
    return [answer.strip() for answer in answers]


def thought(answers: Sequence[str]) -> list[str]:
    """Qwen3's last answer starts with its reasoning, here none."""
    return [*answers[:-1], "<think>\n\n</think>\n\n" + answers[-1].lstrip("\n")]


CHATS = {
    "Qwen2.5": Chat("Qwen-Qwen2.5-7B-Instruct", lambda: shared_tokenizer("qwen2"), "<|im_end|>", as_said),
    "Qwen3": Chat("Qwen-Qwen3-0.6B", lambda: shared_tokenizer("qwen2"), "<|im_end|>", thought),
    "Gemma": Chat("google-gemma-2-2b-it", gemma3_tokenizer, "<end_of_turn>", trimmed, system=False),
    "Llama 3.2": Chat("meta-llama-Llama-3.2-3B-Instruct", lambda: shared_tokenizer("llama-bpe"), "<|eot_id|>", trimmed),
    "Phi-3.5": Chat("microsoft-Phi-3.5-mini-instruct", lambda: shared_tokenizer("phi-3"), "<|end|>", as_said),
    "Mistral Nemo": Chat("mistralai-Mistral-Nemo-Instruct-2407", nemo_tokenizer, "</s>", as_said, system=False),
    "Mistral, SentencePiece": Chat(
        "mistralai-Mistral-Nemo-Instruct-2407", lambda: shared_tokenizer("llama-spm"), "</s>", as_said, system=False
    ),
    "SmolLM2": Chat(None, smollm2_tokenizer, "<|im_end|>", as_said),
    "ChatML, Gemma": Chat(None, gemma3_tokenizer, "<end_of_turn>", as_said),
    "ChatML, Llama 2": Chat(None, lambda: shared_tokenizer("llama-spm"), "</s>", as_said),
}
LOOKALIKES = ["<|im_end|>", "</s>", "<end_of_turn>", "<|eot_id|>", "<|end|>\n", "<|user|>", "[INST]", "<bos>", "<s>"]
said = st.lists(
    st.one_of(
        st.text(st.one_of(st.sampled_from("ab \n.▁é"), st.characters(codec="utf-8")), max_size=8),
        st.sampled_from([*LOOKALIKES, " word", "\n\n", "  ", "The answer is 42."]),
    ),
    max_size=4,
).map("".join)


@pytest.fixture(params=CHATS)
def chat(request: pytest.FixtureRequest) -> Iterator[tuple[Chat, Tokenizer, ChatTemplate]]:
    chosen = CHATS[request.param]
    path = None if chosen.template is None else str(shared(f"templates/{chosen.template}.jinja"))
    tokenizer = chosen.tokenizer()
    template = ChatTemplate.choose(tokenizer, path)
    yield chosen, tokenizer, template
    template.close()


def trained(tokenizer: Tokenizer, ids: list[int], train: list[int]) -> list[str]:
    """What each run of trained tokens adds to the text in front of it."""
    runs, at = [], 0
    for flag, run in groupby(train):
        length = len(list(run))
        if flag:
            runs.append(tokenizer.decode(ids[at : at + length], follows=ids[at - 1]))
        at += length
    return runs


def controls(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    return [i for i in ids if tokenizer.tokens[i] in tokenizer.control_texts]


def test_trained_tokens_are_the_answers_and_their_ends(chat: tuple[Chat, Tokenizer, ChatTemplate]) -> None:
    chosen, tokenizer, template = chat

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(said, said), min_size=1, max_size=4), said, st.booleans())
    def exact(turns: list[tuple[str, str]], order: str, with_order: bool) -> None:
        whole = " ".join(answer for _, answer in turns)
        assume(tokenizer.decode(tokenizer.encode(whole)) == whole)  # some vocabularies lack bytes
        messages = [{"role": "system", "content": order}] if with_order and chosen.system else []
        alone = len(messages) + 1
        for question, answer in turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        record = parse_record({"messages": messages}, "rows.jsonl:1")
        try:
            [example] = encode(record, tokenizer, template)
        except DataError as error:
            assert chosen.answers is thought and "answer" in str(error), "which drops line ends of the last answer only"
            assert any(answer.startswith("\n\n\n") for _, answer in turns[:-1])
            return
        ids, train = example.tokens.tolist(), example.train.tolist()
        wanted = [answer + chosen.end for answer in chosen.answers([answer for _, answer in turns])]
        assert trained(tokenizer, ids, train) == wanted
        if tokenizer.add_bos:
            assert ids[0] == tokenizer.bos_id and ids.count(tokenizer.bos_id) == 1
        innocent = [{**message, "content": message["content"] and "x"} for message in messages]
        [other] = encode(parse_record({"messages": innocent}, "rows.jsonl:1"), tokenizer, template)
        assert controls(tokenizer, ids) == controls(tokenizer, other.tokens.tolist()), "what people write stays text"
        rendered = template.prompt(messages[:alone])
        prompt = encode_spans(tokenizer, rendered.text, [], rendered.literal)[0]
        assert ids[: train.index(1)] == prompt, "training shows what generation will show"

    exact()


WEATHER = {"type": "function", "function": {"name": "weather", "description": "<|im_end|> of day", "parameters": {}}}
CALL = {"id": "123456789", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
CALLED = {
    "Qwen2.5": '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>',
    "Qwen3": '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>',
    "Llama 3.2": '{"name": "weather", "parameters": {"city": "Zürich"}}<|eot_id|>',
    "Mistral Nemo": '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Zürich"}, "id": "123456789"}]</s>',
}


def test_tool_calls_are_trained_as_the_model_must_write_them(
    chat: tuple[Chat, Tokenizer, ChatTemplate], request: pytest.FixtureRequest
) -> None:
    chosen, tokenizer, template = chat
    called = CALLED.get(request.node.callspec.params["chat"])
    if called is None:
        return  # this template knows no tools
    messages = [
        {"role": "user", "content": "And today?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "sun", "tool_call_id": CALL["id"]},
        {"role": "assistant", "content": "Sunny."},
    ]
    record = parse_record({"messages": messages, "tools": [WEATHER]}, "rows.jsonl:1")
    [example] = encode(record, tokenizer, template)
    runs = trained(tokenizer, example.tokens.tolist(), example.train.tolist())
    assert runs == [called, chosen.answers(["Sunny."])[0] + chosen.end]


def test_a_system_message_that_a_template_does_not_know_is_refused_by_row() -> None:
    template = ChatTemplate.choose(gemma3_tokenizer(), str(shared("templates/google-gemma-2-2b-it.jinja")))
    turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    with pytest.raises(DataError, match=r"^rows.jsonl:1: the chat template failed: System role not supported$"):
        encode(parse_record({"messages": turns}, "rows.jsonl:1"), gemma3_tokenizer(), template)
    template.close()
