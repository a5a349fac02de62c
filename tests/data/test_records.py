"""Records as they are read: what is accepted, and the sentence for what is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabric.data import jsonl
from fabric.data.records import parse_record, read_records
from fabric.errors import DataError, MissingInputError

CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (CHAT, "chat"),
        ({**CHAT, "tools": [{"type": "function"}], "label": "x"}, "chat"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"function": {}}]}]}, "chat"),
        ({"messages": [{"role": "developer", "content": [{"type": "text", "text": "t"}]}]}, "chat"),
        ({"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]}, "chat"),
        ({"prompt": "p", "completion": "c"}, "completion"),
        ({"text": "t"}, "text"),
        ({"text": "text", "train": [[0, 1], [1, 4]], "literal": [[2, 3]]}, "rendered"),
        ({"tokens": [1, 2], "train": [0, 1]}, "tokens"),
    ],
)
def test_every_kind_of_record_is_known_and_its_other_fields_survive(row: dict[str, Any], kind: str) -> None:
    record = parse_record({**row, "label": "kept"}, "f:1")
    assert (record.kind, record.extra) == (kind, {"label": "kept"})


def test_a_prompt_alone_is_a_record_only_where_prompts_are_asked_for() -> None:
    assert parse_record({"prompt": "p"}, "f:1", prompts=True).kind == "prompt"
    with pytest.raises(DataError, match="f:1: the object has neither"):
        parse_record({"prompt": "p"}, "f:1")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "not JSON"),
        (b'{"text": "a"} {"text": "b"}', "not JSON"),
        (b'{"text": NaN}', "not JSON: NaN"),
        (b'{"text": "\xff"}', "not valid UTF-8"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b'{"text": "a", "text": "b"}', "the key 'text' stands twice"),
        (b'{"text": "a", "x": [{"k": 1, "j": 2, "k": 1}]}', "the key 'k' stands twice"),
        (b'{"text": "a", "x": 1e999}', "the number 1e999 is larger"),
        (b'{"text": "a", "x": [-1e400]}', "the number -1e400 is larger"),
        (b'{"text": "a", "x": ' + b"7" * 5000 + b"}", "too many digits"),
        (b'{"text": "a\\u0000b"}', "NUL"),
        (b'{"te\\u0000xt": "b"}', "NUL"),
        (b"[" * 100_000, "nested|not JSON"),
        (b'{"text": ' + b"[" * 101 + b"]" * 101 + b"}", "nested too deeply"),
        (b"[1]", "a record is a JSON object, this is a list"),
        (b"null", "this is missing or null"),
        (b"{}", "has neither"),
        (b'{"text": 3}', "'text' is a number; it must be a string"),
        (b'{"prompt": "p", "completion": null}', "'completion' is missing or null"),
        (b'{"prompt": ["p"], "completion": ""}', "'prompt': message 1 is a string"),
        (b'{"prompt": [], "completion": ""}', "'prompt' is an empty list"),
        (b'{"prompt": "", "completion": [{"role": "user"}]}', "'completion': message 1: 'content' is missing"),
        (b'{"messages": []}', "'messages' is an empty list"),
        (b'{"messages": "hi"}', "'messages' is a string"),
        (b'{"messages": ["hi"]}', "message 1 is a string"),
        (b'{"messages": [{"role": "bot", "content": "x"}]}', "message 1 has the role 'bot'"),
        (b'{"messages": [{"role": "user"}]}', "message 1: 'content' is missing"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "has the type 'image_url'"),
        (b'{"messages": [{"role": "user", "content": ["x", 1]}]}', "a part of 'content' is a number"),
        (b'{"messages": [{"role": "user", "content": 1}]}', "'content' is a number"),
        (b'{"messages": [{"role": "user", "content": "x", "tool_calls": 1}]}', "'tool_calls'"),
        (b'{"messages": [{"role": "user", "content": "x"}], "tools": {}}', "'tools' is not a list"),
        (b'{"text": "abc", "train": [[0, 4]]}', "leaves the text, which has 3 characters"),
        (b'{"text": "abc", "train": [[1, 1]]}', "is empty"),
        (b'{"text": "abc", "train": [[1, 2], [0, 1]]}', "out of order"),
        (b'{"text": "abc", "train": [[0, 1.5]]}', "not \\[start, end\\]"),
        (b'{"text": "abc", "train": 1}', "'train' is a number"),
        (b'{"text": "abc", "train": [], "literal": [[-1, 2]]}', "'literal' range"),
        (b'{"tokens": [1, 2], "train": [1]}', "'train' has 1 entries for 2 tokens"),
        (b'{"tokens": [1, -2], "train": [1, 1]}', "'tokens' is not a list of token ids"),
        (b'{"tokens": [1, true], "train": [1, 1]}', "'tokens' is not a list of token ids"),
        (b'{"tokens": [1, 99999999999], "train": [1, 1]}', "'tokens' is not a list of token ids"),
        (b'{"tokens": [1, 2], "train": [1, 2]}', "'train' is not a list of 0 and 1"),
        (b'{"tokens": [1, 2]}', "'train' is not a list of 0 and 1"),
    ],
)
def test_a_bad_line_is_named_with_file_and_line(line: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=f"rows.jsonl:3: .*({said})") as caught:
        list(read_records(str(path)))
    assert "\n" not in str(caught.value)


def test_rows_before_a_bad_line_are_still_handed_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\nx\n')
    rows = read_records(str(path))
    assert [next(rows).data["text"], next(rows).data["text"]] == ["one", "two"]
    with pytest.raises(DataError):
        next(rows)


def test_byte_order_mark_carriage_returns_and_a_missing_last_newline_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"text": "é\\u00e9"}\r\n  \r\n{"text": "\\\\u0000"}'.encode())
    assert [r.data["text"] for r in read_records(str(path))] == ["éé", "\\u0000"]
    assert [r.source for r in read_records(str(path))] == [f"{path}:1", f"{path}:3"]


def test_a_missing_file_is_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        list(read_records(str(tmp_path / "none.jsonl")))


def test_rows_come_through_a_pipe() -> None:
    script = "from fabric.data.records import read_records; print([(r.source, r.kind) for r in read_records('-')])"
    done = subprocess.run([sys.executable, "-c", script], input=b'{"text": "a"}\n', stdout=subprocess.PIPE, check=True)
    assert done.stdout.decode().strip() == "[('stdin:1', 'text')]"


def test_a_line_without_end_is_refused_before_memory_is_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "' + b"x" * (2 << 20))
    with pytest.raises(DataError, match="longer than 1 MiB"):
        list(read_records(str(path)))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=80), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: (
    st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["text", "train", "tokens", "messages", "role"]), x)
), max_leaves=8).map(lambda value: json.dumps(value).encode())))  # fmt: skip
def test_any_bytes_are_a_record_or_a_sentence(line: bytes) -> None:
    try:
        parse_record(jsonl.parse_line(line, "f:1"), "f:1")
    except DataError as error:
        assert str(error).startswith("f:1: ")


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(
        ["1.50", "-0", "-0.0", "1e2", "1E+5", "12345678901234567890123", "0.1234567890123456789012", "5e-324"]
    ),
)
def test_what_is_read_is_written_to_the_letter(value: Any, number: str) -> None:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if "\\u0000" in text:
        return
    line = f'{{"a":{number},"b":[{number},{text}]}}'.encode()
    assert jsonl.dumps(jsonl.parse_line(line, "f:1")) == line
