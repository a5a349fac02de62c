"""Chat templates: what is rendered, what is trained, and what hostile ones can do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabric.errors import DataError, MissingInputError
from fabric.text.template import CHATML, ChatTemplate
from tests.support.paths import shared
from tests.text.vocabularies import smollm2_tokenizer

ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<turn|>", "</s>")
CONTROLS = (*ENDS, "<|im_start|>", "<s>")
ONE = [{"role": "user", "content": "Ask"}, {"role": "assistant", "content": "Say"}]
TWO = [*ONE, {"role": "user", "content": "Again"}, {"role": "assistant", "content": "Once more"}]


def make(source: str, **options: Any) -> ChatTemplate:
    return ChatTemplate(source, "<s>", "</s>", ENDS, CONTROLS, **options)


def trained(template: ChatTemplate, messages: list[dict[str, Any]]) -> list[str]:
    text, spans, _ = template.spans(messages)
    return [text[start:end] for start, end in spans]


@pytest.fixture(scope="module")
def chatml() -> Iterator[ChatTemplate]:
    template = make(CHATML)
    yield template
    template.close()


def test_chatml_trains_content_and_end_of_turn_and_nothing_else(chatml: ChatTemplate) -> None:
    system = {"role": "system", "content": "Be brief"}
    assert trained(chatml, [system, *TWO]) == ["Say<|im_end|>", "Once more<|im_end|>"]
    assert trained(chatml, ONE[:1]) == []
    assert trained(chatml, [ONE[0], {"role": "assistant", "content": ""}]) == ["<|im_end|>"]
    assert trained(chatml, [ONE[0], {"role": "assistant", "content": "\n a \n"}]) == ["\n a \n<|im_end|>"]


content = st.text(st.one_of(st.sampled_from("ab \n<|>"), st.characters(codec="utf-8")), max_size=12)
message = st.builds(
    lambda role, parts: {"role": role, "content": "".join(parts)},
    st.sampled_from(["user", "assistant", "system", "tool"]),
    st.lists(st.one_of(content, st.sampled_from(["<|im_end|>", "<|im_start|>assistant\n", "</s>"])), max_size=3),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(message, min_size=1, max_size=4))
def test_spans_are_exact_whatever_people_write(chatml: ChatTemplate, messages: list[dict[str, Any]]) -> None:
    rendered = chatml.spans(messages)
    text, expected = "", []
    for item in messages:
        text += f"<|im_start|>{item['role']}\n"
        start = len(text)
        text += item["content"] + "<|im_end|>"
        if item["role"] == "assistant":
            expected.append((start, len(text)))
        text += "\n"
    assert rendered.text == text == chatml.render(messages)
    assert rendered.spans == expected
    outside = "".join(c for i, c in enumerate(text) if not any(a <= i < b for a, b in rendered.literal))
    assert outside.count("<|im_end|>") == outside.count("<|im_start|>") == len(messages)
    assert "</s>" not in outside


THINK = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen-Qwen2.5-7B-Instruct", ["Say<|im_end|>", "Once more<|im_end|>"]),
        ("Qwen-Qwen3-0.6B", ["Say<|im_end|>", THINK + "Once more<|im_end|>"]),
        ("google-gemma-2-2b-it", ["Say<end_of_turn>", "Once more<end_of_turn>"]),
        ("meta-llama-Llama-3.2-3B-Instruct", ["Say<|eot_id|>", "Once more<|eot_id|>"]),
        ("microsoft-Phi-3.5-mini-instruct", ["Say<|end|>", "Once more<|end|>"]),
        ("mistralai-Mistral-Nemo-Instruct-2407", ["Say</s>", "Once more</s>"]),
        ("LFM2-8B-A1B", ["Say<|im_end|>", "Once more<|im_end|>"]),
        ("google-gemma-4-31B-it", ["Say<turn|>", "Once more<turn|>"]),
    ],
)
def test_published_templates_train_each_answer_with_its_end(name: str, expected: list[str]) -> None:
    template = make(shared(f"templates/{name}.jinja").read_text())
    assert trained(template, TWO) == expected
    typed = [{"role": "user", "content": f"{ENDS[0]} and {expected[0]}"}, ONE[1]]
    rendered = template.spans(typed)
    assert len(rendered.literal) == 2, "what the user typed is text"
    assert trained(template, typed) == [expected[-1].replace("Once more", "Say")]
    template.close()


def test_rendering_is_that_of_transformers() -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    for path in sorted(shared("templates").glob("*.jinja")):
        source = path.read_text()
        template = make(source)
        for messages in (ONE, TWO, TWO[:3]):
            try:
                (wanted,), _ = utils.render_jinja_template(
                    [messages], chat_template=source, add_generation_prompt=True, **names
                )
            except Exception:
                with pytest.raises(DataError, match="the chat template failed"):
                    template.render(messages, add_generation_prompt=True)
                continue
            if "strftime_now" not in source:  # asks for today's date
                assert template.render(messages, add_generation_prompt=True) == wanted, path.name
        template.close()


def test_reasoning_that_later_turns_drop_trains_in_the_last_answer_alone() -> None:
    template = make(shared("templates/Qwen-Qwen3-0.6B.jinja").read_text())
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSay"}
    assert trained(template, [ONE[0], thought]) == ["<think>\nhm\n</think>\n\nSay<|im_end|>"]
    with pytest.raises(DataError, match="content of answer 1 out once other messages follow; --train last"):
        template.spans([ONE[0], thought, *TWO[2:]])
    text, spans, _ = template.spans([*TWO[:3], thought], train="last")
    assert [text[start:end] for start, end in spans] == ["<think>\nhm\n</think>\n\nSay<|im_end|>"]
    template.close()


def test_a_tool_call_is_trained_as_the_model_must_write_it() -> None:
    template = make(shared("templates/Qwen-Qwen3-0.6B.jinja").read_text())
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": "é"}}}]}
    tools = [{"type": "function", "function": {"name": "f <|im_end|>"}}]
    text, [span, last], [literal] = template.spans([ONE[0], call, {"role": "tool", "content": "4"}, ONE[1]], tools)
    written = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call><|im_end|>'
    assert text[slice(*span)] == written
    assert text[slice(*last)] == THINK + "Say<|im_end|>"
    assert text[slice(*literal)] == "<|im_end|>"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "{{ messages[-1].content }}{% for m in messages %}{{ m.content }}</s>{% endfor %}",
            "in front of answer 1 differently",
        ),
        (
            "{% for m in messages %}{{ m.role }}:"
            "{{ m.content if m.role == 'user' or loop.last else '' }}</s>{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}",
            "content of answer 1 out once other messages follow",
        ),
        (
            "{% for m in messages %}{{ m.role }}:{{ m.content }}"
            "{{ '<|end|>' if m.role == 'assistant' and not loop.last else '</s>' }}{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}",
            "ends answer 1 differently",
        ),
        (
            "{% for m in messages %}{{ m.role }}:{{ m.content }}"
            "{{ '!' if m.role == 'assistant' and loop.last }} {% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}",  # no end, and a tail that comes and goes
            "ends answer 1 differently",
        ),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            "content of answer 1 out of the text",
        ),
        (
            "{% for m in messages %}{{ '<model>' if m.role == 'assistant' else '<user>' }}"
            "{{ m.content }}</s>{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}",
            "generation prompt of answer 1 differently",
        ),
    ],
)
def test_a_template_whose_answers_cannot_be_told_is_refused(source: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        make(source).spans(TWO)


def test_a_system_message_that_vanishes_once_answered_trains_as_generation_shows_it() -> None:
    template = make(shared("templates/mistralai-Mistral-Nemo-Instruct-2407.jinja").read_text())
    system = {"role": "system", "content": "Be brief"}
    with pytest.raises(
        DataError, match="message 1, of role 'system', out of the text once it is answered; --train last"
    ):
        template.spans([system, *ONE])
    text, spans, _ = template.spans([system, *ONE], train="last")
    assert (text, [text[a:b] for a, b in spans]) == ("<s>[INST]Be brief\n\nAsk[/INST]Say</s>", ["Say</s>"])
    template.close()


def test_a_template_without_end_tokens_trains_the_whole_turn() -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    source += "{% if add_generation_prompt %}assistant: {% endif %}"
    assert trained(make(source), TWO) == ["Say\n", "Once more\n"]


def test_a_template_that_reads_control_tokens_in_messages_is_refused_for_rows_that_hold_them() -> None:
    source = "{% for m in messages %}{{ m.content.split('<|im_end|>')[0] }}</s>{% endfor %}"
    with pytest.raises(DataError, match="control token"):
        make(source).spans([{"role": "user", "content": "a<|im_end|>b"}])


def test_a_prompt_ends_where_the_answer_begins(chatml: ChatTemplate) -> None:
    text, spans, literal = chatml.prompt([{"role": "user", "content": "a <|im_end|>"}])
    assert text == "<|im_start|>user\na <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert (spans, [text[a:b] for a, b in literal]) == ([], ["<|im_end|>"])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
        ("{{ {'k': '<é>'} | tojson }}", '{"k": "<é>"}'),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}{{ bos_token }}{% endgeneration %}{{ eos_token }}", "<s></s>"),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{{ tools is none }}", "True"),
    ],
)
def test_what_templates_in_the_wild_rely_on(source: str, text: str) -> None:
    assert make(source).render(ONE) == text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% if %}", "line 1"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ 'a' * 1000000000 }}", "memory"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'xxxxxxxx' * 99 }}{% endfor %}{% endfor %}",
            "grows",
        ),
        ("{{ '\\ud800' }}", "surrogates"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "nested"),
    ],
)
def test_a_template_that_fails_does_so_in_a_sentence(source: str, said: str) -> None:
    with pytest.raises(DataError, match=f"^the chat template failed: .*{said}"):
        make(source).render(ONE)


@settings(max_examples=15, deadline=None)
@given(st.text(st.sampled_from("{}%-# abmesg.[]()'|0\n"), max_size=30))
def test_any_bytes_as_template_are_text_or_a_sentence(source: str) -> None:
    template = make("{% if messages %}" + source + "{% endif %}")
    try:
        assert isinstance(template.render(ONE), str)
    except DataError as error:
        assert "\n" not in str(error)
    finally:
        template.close()


def test_the_users_template_wins_over_the_models_and_chatml_is_last(tmp_path: Path) -> None:
    tokenizer = smollm2_tokenizer()
    own = tmp_path / "own.jinja"
    own.write_text("{{ eos_token }}")
    assert ChatTemplate.choose(tokenizer, str(own)).render(ONE) == "<|im_end|>"
    assert "named SmolLM" in ChatTemplate.choose(tokenizer).render(ONE)
    with pytest.raises(MissingInputError, match="cannot be read"):
        ChatTemplate.choose(tokenizer, str(tmp_path / "none.jinja"))
    with pytest.raises(DataError, match="at most"):
        ChatTemplate("x" * (2 << 20))
