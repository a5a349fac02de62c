"""Rows of every shape that data sets have: what each becomes, and what is said of a row that has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.data.records import read_records
from fabric.data.settings import PrepareSettings
from fabric.data.shapes import normalized
from fabric.errors import DataError
from tests.data.preparing import chat, prepared, run
from tests.support.paths import shared

HELLO = chat("Hi", "Hello")
BRIEF = {"messages": [{"role": "system", "content": "Be brief."}, *HELLO["messages"]]}
TURNS = {"messages": [*chat("First?", "Pellmoor.")["messages"], *chat("And then?", "Tarn Quay.")["messages"]]}
CALL = {"type": "function", "function": {"name": "tide", "arguments": {"port": "Pellmoor", "hours": 1.5}}}
TOOL = {"type": "function", "function": {"name": "tide"}}


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"prompt": "Hi", "completion": "Hello"}, HELLO),
        ({"prompt": "Hi", "response": "Hello"}, HELLO),
        ({"question": "Hi", "answer": "Hello"}, HELLO),
        ({"input": "Hi", "output": "Hello"}, HELLO),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, HELLO),
        ({"instruction": "Hi", "output": "Hello"}, HELLO),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, chat("Add\n\n1 2", "3")),
        ({"instruction": "Who?", "context": "Ann ran.", "response": "Ann"}, chat("Who?\n\nAnn ran.", "Ann")),
        ({"question": "Hi", "text": "Q: Hi\nA: Hello"}, HELLO),
        ({"question": "6 * 7", "answer": 42}, chat("6 * 7", "42")),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, HELLO),
        ({"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}, HELLO),
        ({**HELLO, "prompt": "Hi", "prompt_id": 7}, {**HELLO, "prompt_id": 7}),
        ({"text": "Once."}, {"text": "Once."}),
        ({"messages": None, "conversation": "Hi.", "prompt": "Hi", "response": "Hello"},
         {**HELLO, "conversation": "Hi."}),
        ({"conversation": HELLO["messages"]}, HELLO),
        ({"text": "Once.", "title": "T"}, {"text": "Once.", "title": "T"}),
        ({"prompt": "Hi", "completion": "Hello", "label": "x", "n": 3}, {**HELLO, "label": "x", "n": 3}),
        ({"prompt": "Hi", "completion": "Hello", "system": "Be brief."}, BRIEF),
        ({"system_prompt": "Be brief.", "question": "Hi", "response": "Hello"}, BRIEF),
        ({"instruction": "", "input": "Hi", "output": "Hello"}, HELLO),
        ({"instruction": "Hi", "input": None, "output": "Hello", "history": [], "system": ""}, HELLO),
        ({"query": "Hi", "response": "Hello"}, HELLO),
        ({"problem": "Hi", "solution": "Hello"}, HELLO),
        ({"instruction": "Who?", "input": "Ann", "context": ["A.", "B."], "output": "x"},
         chat("Who?\n\nAnn\n\nA.\n\nB.", "x")),
        *(({prompt: "Who?", below: "Ann ran.", answer: "Ann"}, chat("Who?\n\nAnn ran.", "Ann"))
          for prompt, below, answer in (("question", "context", "answer"), ("prompt", "context", "completion"),
                                        ("prompt", "input", "response"), ("query", "input", "response"),
                                        ("input", "context", "output"), ("question", "context", "response"))),
        ({"instruction": "And then?", "output": "Tarn Quay.", "history": [["First?", "Pellmoor."]]}, TURNS),
        ({"instruction": "And then?", "output": "Tarn Quay.", "history": '[["First?", "Pellmoor."]]'}, TURNS),
        ({"prompt": "And then?", "response": "Tarn Quay.", "history": TURNS["messages"][:2]}, TURNS),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
          "system": "Be brief."}, BRIEF),
        ({"messages": [{"role": "developer", "content": "Be brief."}, *HELLO["messages"]]},
         {"messages": [{"role": "developer", "content": "Be brief."}, *HELLO["messages"]]}),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                       {"role": "assistant", "content": ["Hello"], "name": None}]}, HELLO),
        ({"prompt": HELLO["messages"][:1], "completion": HELLO["messages"][1:]}, HELLO),
        ({"prompt": "Hi", "completion": HELLO["messages"][1:]}, HELLO),
        ({"prompt": TURNS["messages"][:3], "completion": TURNS["messages"][3:], "tools": [{"name": "t"}]},
         {"messages": [TURNS["messages"][0], {**TURNS["messages"][1], "train": False}, *TURNS["messages"][2:]],
          "tools": [{"name": "t"}]}),
    ],
)  # fmt: skip
def test_rows_of_known_data_sets_need_no_flags(tmp_path: Path, row: dict[str, Any], record: dict[str, Any]) -> None:
    assert prepared(tmp_path / "rows.jsonl", [row]) == [record]


def test_tools_calls_and_names_of_a_chat_survive(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    row = {
        "messages": [
            {"role": "user", "content": "1 + 1", "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "Two."},
        ],
        "tools": [{"type": "function", "function": {"name": "add"}}],
    }
    assert prepared(tmp_path / "rows.jsonl", [row]) == [row]
    assert prepared(tmp_path / "rows.jsonl", [row], normalize=True) == [row]


SPOKEN = [
    {"role": "user", "content": "Tide?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "Ask.", "weight": 0},
    {"role": "tool", "content": "low", "tool_call_id": "c1"},
    {"role": "assistant", "content": "Low.", "train": False},
    {"role": "assistant", "content": "Low at six.", "weight": 1},
]
SHAREGPT = [
    {"from": "human", "value": "Tide?"},
    {"from": "gpt", "value": "", "tool_calls": [CALL], "reasoning_content": "Ask.", "weight": 0},
    {"from": "observation", "value": "low", "tool_call_id": "c1"},
    {"from": "gpt", "value": "Low.", "train": False},
    {"from": "gpt", "value": "Low at six.", "weight": 1},
]


@pytest.mark.parametrize("field", ["messages", "conversations"])
@pytest.mark.parametrize("turns", [SPOKEN, SHAREGPT])
@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]])
def test_calls_thoughts_tools_and_weights_survive_in_every_spelling(
    tmp_path: Path, field: str, turns: list[Any], tools: Any
) -> None:
    assert prepared(tmp_path / "rows.jsonl", [{field: turns, "tools": tools}]) == [
        {"messages": SPOKEN, "tools": [TOOL]}
    ]


def test_calls_that_are_turns_of_their_own_become_calls(tmp_path: Path) -> None:
    asked = json.dumps(CALL["function"])
    spoken = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    rest = [
        {"from": "human", "value": "Tide?"},
        {"from": "observation", "value": "low"},
        {"from": "gpt", "value": "Low."},
    ]
    turns = [rest[0], {"from": "function_call", "value": asked}, *rest[1:]]
    (record,) = prepared(tmp_path / "rows.jsonl", [{"conversations": turns}])
    assert record["messages"][1] == spoken and record["messages"][2] == {"role": "tool", "content": "low"}
    old = {"role": "assistant", "content": None, "function_call": CALL["function"]}
    (record,) = prepared(tmp_path / "rows.jsonl", [{"messages": [rest[0], old, *rest[1:]]}])
    assert record["messages"][1] == {**spoken, "content": None}
    turns[1]["value"] = "tide(Pellmoor)"
    with pytest.raises(DataError, match=r"rows.jsonl:1: 'conversations': message 2 is a string, and not JSON"):
        prepared(tmp_path / "rows.jsonl", [{"conversations": turns}])


def test_what_only_a_chat_can_hold_is_never_lost_in_other_records(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    thought = {"messages": [HELLO["messages"][0], {**HELLO["messages"][1], "reasoning_content": "Greet."}]}
    masked = {"messages": [*TURNS["messages"][:1], {**TURNS["messages"][1], "weight": 0}, *TURNS["messages"][2:]]}
    for row, said in (({**HELLO, "tools": [TOOL]}, "'tools'"), (thought, "'reasoning_content'")):
        for kind in ("completion", "text"):
            with pytest.raises(DataError, match=f"rows.jsonl:1: {said} can only be in a chat"):
                prepared(path, [row], as_record=kind)
    with pytest.raises(DataError, match="one answer of this row must not"):
        prepared(path, [masked], as_record="text")


def test_fields_without_effect_are_counted_by_name(tmp_path: Path) -> None:
    rows = [
        {**HELLO, "id": 1, "label": "x"},
        {"prompt": "Hi", "completion": "Hello", "id": 2, "text": "Hi Hello", "empty": []},
        {"messages": [{**HELLO["messages"][0], "mood": "good"}, HELLO["messages"][1]], "system": None},
        {"conversations": [{"from": "human", "value": "Hi", "lang": "en"}, {"from": "gpt", "value": "Hello"}]},
        {**BRIEF, "system": "Be long."},
        {**BRIEF, "system": "Be brief."},
    ]
    path = tmp_path / "rows.jsonl"
    records = prepared(path, rows)
    unused = run(PrepareSettings(inputs=(str(path),)))[1].unused
    assert unused == {"id": 2, "text": 1, "mood": 1, "lang": 1, "system": 1}
    assert records[0]["id"] == 1 and records[2]["messages"][0]["mood"] == "good" and records[4]["system"] == "Be long."
    kept = run(PrepareSettings(inputs=(str(path),), keep=("id",)))[1].unused
    assert kept == {"mood": 1, "lang": 1}, "what was named is used, and what was not is left out as asked for"
    template = PrepareSettings(inputs=(str(path),), prompt_template="{id}: {prompt}", on_error="skip")
    assert run(template)[1].unused == {"text": 1}


def test_the_biomedical_rows_become_question_and_labelled_answer(tmp_path: Path) -> None:
    path = shared("data/biomedical_qa/train.jsonl")
    sources = [json.loads(line) for line in path.read_text().splitlines()]
    records, report = run(PrepareSettings(inputs=(str(path),), keep=("label",)))
    assert report.written == len(sources) == 264
    for source, record in zip(sources, records, strict=True):
        question, answer = record["messages"]
        assert question == {"role": "user", "content": source["question"]}
        assert f"Q: {question['content']}\nA: {answer['content']}" == source["text"]
        assert record["label"] == source["label"] and answer["content"].startswith(source["label"] + ".")
        assert record.keys() == {"messages", "label"}


def test_fields_of_other_names_can_be_mapped(tmp_path: Path) -> None:
    row = {"ask": "Hi", "say": "Hello", "class": "x", "messages": "not these", "note": 1}
    fields = {"prompt": "ask", "completion": "say", "label": "class"}
    assert prepared(tmp_path / "rows.jsonl", [row], fields=fields) == [{**HELLO, "label": "x", "note": 1}]
    both = {"prompt": "ask", "completion": "class", "label": "class"}
    assert prepared(tmp_path / "rows.jsonl", [row], fields=both, keep=("label",)) == [chat("Hi", "x", label="x")]
    row = {"question": "Hi", "answer": "Hello", "body": "Once."}
    assert prepared(tmp_path / "rows.jsonl", [row], fields={"text": "body"}, keep=()) == [{"text": "Once."}]


def test_the_kind_of_record_can_be_chosen(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "completion": "Hello", "system": "Be brief."}
    path = tmp_path / "rows.jsonl"
    assert prepared(path, [row], as_record="completion") == [{"prompt": "Be brief.\n\nHi", "completion": "Hello"}]
    assert prepared(path, [row], as_record="text") == [{"text": "Be brief.\n\nHi\n\nHello"}]
    assert prepared(path, [HELLO, {"text": "Once."}], as_record="completion") == [
        {"prompt": "Hi", "completion": "Hello"},
        {"text": "Once."},
    ]
    long = {"messages": HELLO["messages"] * 2}
    with pytest.raises(DataError, match=r"rows.jsonl:1: only one question with its answer can be a completion"):
        prepared(path, [long], as_record="completion")


def test_a_system_message_is_given_only_where_there_is_none(tmp_path: Path) -> None:
    own = {"messages": [{"role": "system", "content": "Own."}, *HELLO["messages"]]}
    records = prepared(tmp_path / "rows.jsonl", [own, HELLO], system="Given.")
    assert [record["messages"][0]["content"] for record in records] == ["Own.", "Given."]
    assert all(len(record["messages"]) == 3 for record in records)


def test_a_prompt_template_builds_prompts_from_fields(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"title": "On tea", "body": "Hot {prompt}.", "class": "food"}
    settings = {"fields": {"completion": "class"}, "prompt_template": "{{Title}} {title}: {body}"}
    assert prepared(path, [row], **settings) == [chat("{Title} On tea: Hot {prompt}.", "food")]
    row = {"instruction": "Add", "input": "1 2", "output": "3"}
    assert prepared(path, [row], prompt_template="Task: {prompt}") == [chat("Task: Add\n\n1 2", "3")]
    row = {"question": "Who?", "context": "Ann ran.", "answer": "Ann"}
    placed = prepared(path, [row], prompt_template="{context}\n{prompt}")
    assert placed == [chat("Ann ran.\nWho?", "Ann")], "what a template places is not put below the prompt as well"
    with pytest.raises(DataError, match=r"rows.jsonl:1: the prompt template names 'titel'"):
        prepared(path, [row], prompt_template="{titel}")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1], "a row is a JSON object"),
        ({"a": 1, "b": 2}, r"the fields \('a', 'b'\) have no known shape"),
        ({}, r"the fields \(none\)"),
        ({"prompt": "Hi", "completion": "  "}, "no message of the assistant trains"),
        ({"prompt": "\n", "completion": "Hello"}, "the prompt is empty"),
        ({"prompt": "Hi", "completion": ["Hello"]}, "'completion': message 1 is a string"),
        ({"prompt": "Hi", "completion": {"a": 1}}, "'completion' is not a text"),
        ({"prompt": "Hi", "completion": None}, "'completion' is not a text"),
        ({"prompt": "Hi", "completion": True}, "'completion' is not a text"),
        ({"text": " \n"}, "the text is empty"),
        ({"question": "Hi", "text": "Hello"}, "no line that begins with 'A:'"),
        ({"tokens": [1], "train": [1]}, "rendered already"),
        ({"text": "x", "train": [[0, 1]]}, "rendered already"),
        ({"messages": []}, "'messages' is an empty list"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "no message of the assistant trains"),
        ({"messages": [{"role": "boss", "content": "Hi"}]}, "boss"),
        ({"messages": "Hi"}, "'messages' is"),
        ({"conversations": {"from": "human"}}, r"the fields \('conversations'\) have no known shape"),
        ({"prompt": "a", "completion": [{"role": "assistant", "content": "b", "weight": 0}]}, "the assistant trains"),
        ({"conversations": []}, "'conversations' is an empty list"),
        ({"conversations": [{"from": "alien", "value": "Hi"}]}, "'conversations': message 1 has the role 'alien'"),
        ({"conversations": [{"from": ["human"], "value": "Hi"}]}, "message 1 has the role"),
        ({"conversations": [{"from": "human", "value": 1}]}, "message 1: 'content' is a number"),
        ({"conversations": ["Hi"]}, "message 1 is a string"),
        ({"prompt": "a", "completion": "b", "history": [["a"]]}, "'history' holds ..a'., which is no pair"),
        ({"prompt": "a", "completion": "b", "history": "none"}, "'history' is a string, and not JSON"),
        ({"question": "a", "context": {"b": 1}, "answer": "c"}, "'context' is not a text"),
        ({**HELLO, "tools": "add"}, "'tools' is a string, and not JSON"),
        ({**HELLO, "tools": {"a": 1}}, "'tools' is not a list"),
    ],
)
def test_a_row_without_sense_is_named_with_its_line(tmp_path: Path, row: Any, reason: str) -> None:
    with pytest.raises(DataError, match=f"rows.jsonl:2: .*{reason}"):
        prepared(tmp_path / "rows.jsonl", [HELLO, row])


def test_a_mapped_field_that_is_missing_is_never_ignored(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:1: the row has no field 'lable'; it has 'prompt', 'completion'"):
        prepared(tmp_path / "rows.jsonl", [{"prompt": "Hi", "completion": "Hello"}], fields={"label": "lable"})
    with pytest.raises(DataError, match=r"rows.jsonl:1: the fields .* have no known shape"):
        prepared(tmp_path / "rows.jsonl", [{"question": "Hi", "text": "x"}], fields={"prompt": "question"})


def test_normalizing_keeps_indentation_and_paragraphs(tmp_path: Path) -> None:
    raw = "\ufeff Cafe\u0301\u00a0au  lait \r\n    if x:\u2003\r\r\n\tpass\t\n"
    record = prepared(tmp_path / "rows.jsonl", [{"prompt": "Hi", "completion": raw.lstrip("\ufeff")}], normalize=True)
    assert record == [chat("Hi", "Caf\u00e9 au  lait\n    if x:\n\n\tpass")]
    assert prepared(tmp_path / "rows.jsonl", [{"text": raw}]) == [{"text": raw}]


@settings(deadline=None)
@given(st.text(st.sampled_from("a \t\n\r\u00a0\u0301\u2000\u2028e\x1c\x85")))
def test_normalizing_twice_changes_nothing(text: str) -> None:
    assert normalized(normalized(text)) == normalized(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-1, 1) | st.text("ab \0\n", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "user", "tool_calls"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
field_names = st.sampled_from(
    ["prompt", "completion", "text", "messages", "tools", "system", "question", "answer", "conversations", "train", "x"]
)
turns = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": st.none() | st.text("ab ")},
        optional={"tool_calls": st.just([{"a": 1}]) | json_values},
    ),
    max_size=3,
)
any_row = st.dictionaries(field_names, json_values | turns, max_size=4)


@settings(deadline=None)
@given(
    rows=st.lists(any_row, min_size=1, max_size=5),
    kind=st.sampled_from(["chat", "completion", "text"]),
    template=st.none() | st.just("<{prompt}{x}>"),
    normalize=st.booleans(),
)
def test_whatever_a_row_holds_the_next_command_can_read_the_result(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], kind: Any, template: str | None, normalize: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    try:
        records = prepared(
            path, rows, as_record=kind, prompt_template=template, normalize=normalize, system="S", on_error="skip"
        )
    except DataError as error:
        assert "none of the" in str(error)
        return
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [record.data for record in read_records(str(path))] == records
