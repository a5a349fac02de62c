"""The files that prepare reads: formats told or given, positions of bad rows, hostile bytes."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.data import raw
from fabric.data.lines import Lines
from fabric.data.prepare import prepare
from fabric.data.raw import format_of, read_rows
from fabric.data.settings import PrepareSettings
from fabric.errors import DataError, FabricError, MissingInputError, UsageError
from tests.data.preparing import chat, prepared, run, write

PAIRS = [{"question": "Hi", "answer": "Hello"}, {"question": "1, 2?", "answer": 'three\n"3"'}]
RECORDS = [chat("Hi", "Hello"), chat("1, 2?", 'three\n"3"')]
CSV = 'question,answer\r\nHi,Hello\r\n\r\n"1, 2?","three\n""3"""\r\n'
JSONL = "".join(json.dumps(row) + "\n" for row in PAIRS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", JSONL),
        ("rows.jsonl", "\ufeff\n  \n" + JSONL.rstrip("\n")),
        ("rows", JSONL),
        ("rows.json", json.dumps(PAIRS)),
        ("rows.json", "\ufeff" + json.dumps(PAIRS, indent=4)),
        ("rows.json", JSONL),
        ("rows", "\n[\n" + json.dumps(PAIRS, indent=1)[1:]),
        ("rows", "[" + JSONL.strip().replace("\n", ",") + "]"),
        ("rows.csv", CSV),
        ("rows.csv", "\ufeff" + CSV),
        ("rows.data", CSV),
        ("rows.tsv", CSV.replace("question,answer", "question\tanswer").replace("Hi,", "Hi\t").replace('",', '"\t')),
        ("rows", CSV.replace("question,answer", "question\tanswer").replace("Hi,", "Hi\t").replace('",', '"\t')),
    ],
)
def test_the_format_of_a_file_is_told(tmp_path: Path, name: str, content: str) -> None:
    assert prepared(tmp_path / name, content) == RECORDS


SEMICOLONS = 'question;answer\r\nHi;Hello\r\n\r\n"1, 2?";"three\n""3"""\r\n'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", CSV.encode(), []),
        ("rows.csv", b"\xef\xbb\xbf" + CSV.encode(), ["UTF-8 with a byte-order mark, with commas"]),
        ("rows.csv", SEMICOLONS.encode(), ["UTF-8, with semicolons"]),
        ("rows", SEMICOLONS.encode(), ["UTF-8, with semicolons"]),
        ("rows.csv", SEMICOLONS.replace(";", "|").encode(), ["UTF-8, with bars"]),
        ("rows.csv", SEMICOLONS.replace(";", "\t").encode(), ["UTF-8, with tabs"]),
        ("rows.tsv", CSV.encode(), ["UTF-8, with commas"]),
        ("rows.csv", b"\xef\xbb\xbfsep=;\r\n" + SEMICOLONS.encode(), ["UTF-8 with a byte-order mark, with semicolons"]),
        ("rows", b"sep=,\n" + CSV.encode(), []),
        ("rows.csv", CSV.encode("utf-16"), ["UTF-16, with commas"]),
        ("rows", SEMICOLONS.encode("utf-16-be"), ["UTF-16, with semicolons"]),
        ("rows.csv", b"\xfe\xff" + SEMICOLONS.replace(";", "\t").encode("utf-16-be"), ["UTF-16, with tabs"]),
        ("rows.jsonl", JSONL.encode("utf-16-le"), ["UTF-16"]),
        ("rows.json", json.dumps(PAIRS).encode("utf-16"), ["UTF-16"]),
    ],
)
def test_tables_of_any_office_are_read_and_what_was_found_is_said(
    tmp_path: Path, name: str, content: bytes, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    monkeypatch.setattr("fabric.notices._show", heard.append)
    assert prepared(tmp_path / name, content) == RECORDS
    assert [text.partition("read as ")[2].partition(" between")[0] for text in heard if "unused" not in text] == said


def test_a_separator_that_is_given_is_not_guessed_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    odd = "question~answer\nHi, you;~Hello\n"
    assert prepared(path, odd, separator="~") == [chat("Hi, you;", "Hello")]
    assert prepared(tmp_path / "rows", odd, separator="~") == [chat("Hi, you;", "Hello")]
    with pytest.raises(DataError, match=r"rows.csv:2: the fields \('question~answer'\)"):
        prepared(path, "question~answer\nHi~Hello\n", format="csv")
    for wrong in ({"separator": ";;"}, {"separator": '"'}, {"separator": ";", "format": "jsonl"}):
        with pytest.raises(UsageError, match="--separator"):
            prepared(path, odd, **wrong)


def test_lines_that_end_in_carriage_returns_alone_are_lines(tmp_path: Path) -> None:
    content = 'question,answer\rHi,Hello\r"a\rb",c\r,\r'
    records, report = run_lenient(tmp_path / "rows.csv", content)
    assert records == [chat("Hi", "Hello"), chat("a\rb", "c")]
    assert report.bad_rows[0].startswith(f"{tmp_path}/rows.csv:5: ")
    with pytest.raises(DataError, match=r"rows.csv:2: the row is not CSV: a carriage return stands outside quotes"):
        prepared(tmp_path / "rows.csv", "question,answer\nHi,Hel\rlo\n")


def run_lenient(path: Path, content: str) -> tuple[list[dict[str, Any]], Any]:
    write(path, content)
    return run(PrepareSettings(inputs=(str(path),), on_error="skip"))


def test_text_that_is_not_what_its_mark_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.csv:5: from about here on the text is not valid UTF-16"):
        prepared(tmp_path / "a.csv", CSV.encode("utf-16")[:-1])
    with pytest.raises(DataError, match=r"not valid UTF-16"):
        prepared(tmp_path / "a.jsonl", b"\xff\xfe\x00\xd8a\x00")


def test_a_table_without_a_telling_name_is_known_by_mapped_fields(tmp_path: Path) -> None:
    fields = {"prompt": "q", "completion": "a"}
    assert prepared(tmp_path / "rows", "q,a\nHi,Hello\n", fields=fields) == [chat("Hi", "Hello")]
    with pytest.raises(UsageError, match=r"the format of .*rows cannot be told"):
        prepared(tmp_path / "rows", "q,a\nHi,Hello\n")
    assert prepared(tmp_path / "rows", "q,a\nHi,Hello\n", format="csv", fields=fields) == [chat("Hi", "Hello")]


def test_plain_text_is_one_record_or_one_a_paragraph(tmp_path: Path) -> None:
    text = "\r\nOne\n  more.\n\n \t\nTwo.\n"
    assert prepared(tmp_path / "a.txt", text) == [{"text": "One\n  more.\n\n \t\nTwo."}]
    assert prepared(tmp_path / "a.txt", text, format="paragraphs") == [{"text": "One\n  more."}, {"text": "Two."}]
    with pytest.raises(DataError, match=r"a.txt:6: the text is not valid UTF-8"):
        prepared(tmp_path / "a.txt", text.encode() + b"\xff", format="paragraphs")


def test_several_files_are_read_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", JSONL)
    write(tmp_path / "b.csv", CSV)
    inputs = (str(tmp_path / "b.csv"), str(tmp_path / "a.jsonl"))
    assert run(PrepareSettings(inputs=inputs))[0] == RECORDS * 2


def test_rows_of_a_named_pipe_are_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(JSONL))
    writer.start()
    records, _ = run(PrepareSettings(inputs=(str(pipe),)))
    writer.join()
    assert records == RECORDS


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.jsonl", JSONL + '\n{"question": \n' + JSONL, "a.jsonl:4: the line is not JSON"),
        ("a.jsonl", JSONL.encode() + b'{"text": "\xff"}\n' + JSONL.encode(), "a.jsonl:3: the line is not valid UTF-8"),
        ("a.jsonl", JSONL + '{"text": "\\u0000"}\n' + JSONL, "a.jsonl:3: a string contains a NUL"),
        ("a.jsonl", JSONL + '{"text": NaN}\n' + JSONL, "a.jsonl:3: the line is not JSON"),
        ("a.jsonl", JSONL + '{"text": "\\ud83d"}\n' + JSONL, "a.jsonl:3: a string contains \\ud83d, half of a"),
        ("a.jsonl", JSONL + '{"text": "a", "text": "b"}\n' + JSONL, "a.jsonl:3: the key 'text' stands twice"),
        ("a.jsonl", JSONL + '{"x": ' + "[" * 900 + "]" * 900 + ', "text": "a"}\n' + JSONL, "a.jsonl:3: "),
        ("a.json", "[" + '\n{"question": 1},' + JSONL.replace("\n", ",\n") + "{}]", "a.json:2: the fields"),
        ("a.csv", CSV + "Hi\n" + CSV.partition("\n")[2], "a.csv:6: the row has 1 cells, the header 2"),
        ("a.csv", CSV + '"Hi" x,Hello\n' + CSV.partition("\n")[2], "a.csv:6: the row is not CSV"),
        ("a.csv", CSV.encode() + b"Hi,\xe9\n" + CSV.partition("\n")[2].encode(), "a.csv:6: the row is not valid UTF-8"),
        ("a.csv", CSV + "Hi,a\0b\n" + CSV.partition("\n")[2], "a.csv:6: "),
    ],
)
def test_bad_rows_are_named_and_can_be_skipped(tmp_path: Path, name: str, content: Any, where: str) -> None:
    write(tmp_path / name, content)
    with pytest.raises(DataError) as stopped:
        run(PrepareSettings(inputs=(str(tmp_path / name),)))
    assert str(stopped.value).startswith(f"{tmp_path}/{where}")
    records, report = run(PrepareSettings(inputs=(str(tmp_path / name),), on_error="skip"))
    assert records in (RECORDS * 2, RECORDS) and report.bad_rows[0] == str(stopped.value)
    assert report.bad == (1 if name != "a.json" else 2)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", json.dumps(PAIRS)[:-1] + "\n", "a.json:2: the JSON array is cut short"),
        ("a.json", json.dumps(PAIRS)[:-9], "a.json:1: from here on the text is not JSON"),
        ("a.json", json.dumps(PAIRS).replace(", {", " {"), "a.json:1: '{' where JSON has , or ]"),
        ("a.json", json.dumps(PAIRS) + "\n{}", "a.json:2: more text after the end"),
        ("a.json", "[" + '{"a":' * 100000, "a.json:1: the row is nested too deeply"),
        ("a.json", b'[{"text": "\xff"}]', "a.json:1: the text from here on is not valid UTF-8"),
        ("a.csv", "question,,answer\n", "a.csv:1: a name in the header is empty or doubled"),
        ("a.csv", "question,question\n", "a.csv:1: a name in the header is empty or doubled"),
        ("a.csv", b"question,answer\xff\n", "a.csv:1: the row is not valid UTF-8; save the table as UTF-8"),
        ("a.csv", "question,answer\n", "a.csv: there are no rows"),
        ("a.jsonl", "", "a.jsonl: there are no rows"),
        ("a.txt", "\n\n", "a.txt: there are no rows"),
    ],
)
def test_files_that_cannot_be_read_on_stop_also_where_bad_rows_are_skipped(
    tmp_path: Path, name: str, content: Any, reason: str
) -> None:
    with pytest.raises(DataError) as stopped:
        prepared(tmp_path / name, content, on_error="skip")
    assert str(stopped.value).startswith(f"{tmp_path}/{reason}")


def test_an_unclosed_quote_loses_no_more_than_the_rest_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", CSV + '"Hi,Hello\n' + "x,y\n" * 100)
    records, report = run(PrepareSettings(inputs=(str(tmp_path / "a.csv"),), on_error="skip"))
    assert records == RECORDS
    assert report.bad_rows == [f"{tmp_path}/a.csv:6: the row is not CSV: a quoted cell has no end"]


def test_lines_beyond_the_limit_are_refused_and_the_next_ones_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "MAX_LINE_BYTES", 100)
    long = json.dumps({"text": "x" * 1000}) + "\n"
    write(tmp_path / "a.jsonl", JSONL + long + JSONL)
    records, report = run(PrepareSettings(inputs=(str(tmp_path / "a.jsonl"),), on_error="skip"))
    assert records == RECORDS * 2 and report.bad_rows[0].startswith(f"{tmp_path}/a.jsonl:3: the line is longer")
    for name, form in (("a.txt", "text"), ("a.txt", "paragraphs"), ("a.csv", "csv")):
        with pytest.raises(DataError, match="longer than"):
            prepared(tmp_path / name, "text\n" + "x" * 1000, format=form)


def test_a_record_that_no_command_could_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = '{"name": "f", "arguments": ' + '{"a":' * 97 + "1" + "}" * 98
    turns = [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": deep}]
    with pytest.raises(DataError, match=r"a.jsonl:1: the record is nested too deeply"):
        prepared(tmp_path / "a.jsonl", [{"conversations": turns}])
    for module in ("raw", "lines", "jsonl"):
        monkeypatch.setattr(f"fabric.data.{module}.MAX_LINE_BYTES", 1 << 20)
    with pytest.raises(DataError, match=r"a.txt:1: the record is longer than 1 MiB"):
        prepared(tmp_path / "a.txt", '"' * (1 << 20))


def test_a_missing_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", JSONL)
    out = io.BytesIO()
    for missing, error in ((tmp_path / "b.jsonl", MissingInputError), (tmp_path, DataError)):
        with pytest.raises(error):
            prepare(PrepareSettings(inputs=(str(tmp_path / "a.jsonl"), str(missing))), out)
    assert out.getvalue() == b""


def test_progress_reaches_the_size_of_the_files(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", JSONL * 10_000)
    write(tmp_path / "b.json", json.dumps(PAIRS))
    calls: list[tuple[int, int]] = []
    inputs = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.json"))
    prepare(PrepareSettings(inputs=inputs), io.BytesIO(), lambda done, total: calls.append((done, total)))
    size = sum(Path(path).stat().st_size for path in inputs)
    assert len(calls) > 2 and calls == sorted(calls) and calls[-1] == (size, size)


def test_numbers_that_pass_through_keep_their_spelling(tmp_path: Path) -> None:
    numbers = "[123456789012345678901,0.1234567890123456789,1.0e2,-0,-0.0,1E+400]"
    line = f'{{"text":"a","n":{numbers},"o":{{"p":[1.50]}}}}\n'
    (tmp_path / "a.jsonl").write_text(line.replace(",1E+400", ""))
    out = io.BytesIO()
    prepare(PrepareSettings(inputs=(str(tmp_path / "a.jsonl"),)), out)
    assert out.getvalue().decode() == line.replace(",1E+400", "")
    with pytest.raises(DataError, match=r"a.jsonl:1: the number 1E\+400 is larger than any that a double holds"):
        prepared(tmp_path / "a.jsonl", line)
    table = prepared(tmp_path / "a.jsonl", '{"question":"How much?","answer":1.50}\n')
    assert table == [chat("How much?", "1.50")]


@settings(deadline=None)
@given(
    items=st.lists(
        st.dictionaries(st.text('ab"\\[]{},é\n'), st.integers(-9, 2**53) | st.text('ab"\\[]{},é\n')), max_size=6
    ),
    indent=st.sampled_from([None, 0, 3]),
    escaped=st.booleans(),
    sniffed=st.integers(1, 9),
)
def test_a_json_array_gives_the_same_rows_however_it_is_cut_into_chunks(
    items: list[dict[str, Any]], indent: int | None, escaped: bool, sniffed: int
) -> None:
    content = json.dumps(items, indent=indent, ensure_ascii=escaped).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw, "SNIFFED_BYTES", sniffed)
        patch.setattr("fabric.data.lines.SNIFFED_BYTES", sniffed)
        rows = list(read_rows(Lines(io.BytesIO(content), "a"), "json", lambda names: False))
    assert [row for _, row in rows] == items


@settings(deadline=None)
@given(
    content=st.binary(max_size=60) | st.text('[]{}":,\\ \n\t\0aé', max_size=60).map(str.encode),
    form=st.sampled_from(["auto", "jsonl", "json", "csv", "tsv", "text", "paragraphs"]),
    name=st.sampled_from(["a", "a.csv", "a.json", "a.txt"]),
)
def test_any_bytes_end_in_rows_or_in_one_sentence(content: bytes, form: str, name: str) -> None:
    try:
        lines, known = Lines(io.BytesIO(content), name), lambda names: "a" in names
        rows = list(read_rows(lines, format_of(lines, form, known), known))
    except FabricError as error:
        rows = [(name, error)]
    for where, row in rows:
        assert where.startswith(name)
        if isinstance(row, FabricError):
            assert "\n" not in str(row) or "\\n" in repr(row)
