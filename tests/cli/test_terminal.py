"""Names, rows and models of strangers never act on a terminal: what would is spelled out."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest

from tests.cli.shell import Ended, fabric, on_terminal, one_sentence

ESC = "\x1b[31m"
ACTING = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def quiet(ended: Ended) -> str:
    """Both streams, in which nothing acts on a terminal."""
    seen = ended.out.decode() + ended.err
    assert not ACTING.search(seen), repr(seen)
    return seen


@pytest.fixture(scope="module")
def hostile(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, whose architecture, name, tensors and keys would colour a terminal."""
    content = tiny.read_bytes()
    for name in (b"blk.0", b"llama", b"model"):
        content = content.replace(name, ESC.encode())
    path = tmp_path_factory.mktemp("hostile") / f"{ESC}.gguf"
    path.write_bytes(content.replace(b"random", b"r\x9b\x7f\x07\xff\r"))
    return path


def test_whatever_is_inside_a_model_is_shown_spelled_out(hostile: Path, tiny: Path) -> None:
    told = quiet(fabric("inspect", hostile, "--tensors"))
    assert told.count("\\x1b[31m") > 10
    assert "\\x1b[31m" in quiet(fabric("inspect", tiny, hostile))
    lost = ["quantize", hostile, "--type", "q8_0", "--errors", "-o", hostile.parent / "q.gguf"]
    assert "\\x1b[31m" in quiet(fabric(*lost))
    values = fabric("inspect", hostile, "--json")
    quiet(values)
    assert json.loads(values.out)["architecture"] == ESC
    assert json.loads(values.out)["path"].endswith(f"{ESC}.gguf")
    assert ESC in fabric("inspect", hostile, "--json").out.decode().encode().decode("unicode_escape")


@pytest.mark.parametrize("name", ["train", "merge", "eval", "generate"])
def test_an_error_spells_out_what_it_names(name: str, hostile: Path, rows: Path, adapter: Path, tmp_path: Path) -> None:
    line = {
        "train": ["train", rows, "-m", hostile, "-o", tmp_path / "a.gguf"],
        "merge": ["merge", "-m", hostile, "-a", adapter, "-o", tmp_path / "m.gguf"],
        "eval": ["eval", rows, "-m", hostile],
        "generate": ["generate", "-m", hostile, "--prompt", "x"],
    }[name]
    ended = fabric(*line, cwd=tmp_path)
    one_sentence(ended, 65, "\\x1b[31m")
    quiet(ended)
    assert "\\x1b[31m" in fabric(*line, "--debug", cwd=tmp_path).err and ESC not in fabric(*line, "--debug").err


def test_rows_their_fields_and_labels_are_shown_spelled_out(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / f"{ESC}rows.jsonl"
    row = {"prompt": "Is it?", "completion": f"yes{ESC}", "label": f"yes{ESC}", f"field{ESC}": "\u202e\x9b"}
    other = {"prompt": "Is it?", "completion": "no\n", "label": "no"}
    path.write_text(json.dumps(row) + "\n" + json.dumps(other) + "\n")
    told = quiet(fabric("eval", path, "-m", tiny))
    assert "yes\\x1b[31m" in told
    quiet(fabric("eval", path, "-m", tiny, "--markdown"))
    scores = tmp_path / "scores.jsonl"
    assert fabric("eval", path, "-m", tiny, "--rows", scores).code == 0
    assert json.loads(scores.read_text().splitlines()[0])["label"] == f"yes{ESC}"
    path.write_text(json.dumps({f"a{ESC}\nfabric: all is well": 1}) + "\n")
    one_sentence(fabric("prepare", path), 65, "\\x1b[31m", "no known shape")
    one_sentence(fabric("prepare", tmp_path / f"{ESC}\nmissing"), 66, "\\x1b[31m missing")


def test_data_is_raw_in_a_file_and_harmless_on_a_terminal(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "one \x9b31m \u202e two \x7f"}, ensure_ascii=False) + "\n")
    plain = fabric("prepare", path)
    assert json.loads(plain.out) == {"text": "one \x9b31m \u202e two \x7f"} and b"\xc2\x9b" in plain.out
    for line in (["prepare", path], ["template", path, "-m", tiny], ["template", path, "-m", tiny, "--tokens"]):
        code, seen = on_terminal(*line, stream="stdout", env={"NO_COLOR": "1"})
        assert code == 0 and not ACTING.search(seen.replace("\r\n", "\n")), repr(seen)
    code, seen = on_terminal("prepare", path, stream="stdout")
    assert json.loads(seen) == {"text": "one \x9b31m \u202e two \x7f"}


def test_what_a_model_writes_cannot_act_on_a_terminal(tiny: Path) -> None:
    line = ["generate", "-m", tiny, "--prompt", "x", "--raw", "--temperature", "9"]
    many = ["--choices", "30"]
    assert ACTING.search(fabric(*line, *many).out.decode()), "the random model writes no controls: nothing is tested"
    for more in ([], many, [*many, "--json"]):
        code, seen = on_terminal(*line, *more, stream="stdout")
        assert code == 0 and not ACTING.search(seen.replace("\r\n", "\n")), repr(seen)


def test_names_of_runs_are_harmless_in_every_kind_of_plot(tmp_path: Path) -> None:
    from xml.etree import ElementTree

    runs = [tmp_path / f"{ESC}{name}.jsonl" for name in "ab"]
    for path in runs:
        path.write_text("".join(json.dumps({"step": i, f"loss{ESC}": 2.0 / i}) + "\n" for i in range(1, 9)))
    line = ["plot", *runs, "-c", f"loss{ESC}", "--title", f"{ESC}title\x07"]
    told = quiet(fabric(*line, env={"NO_COLOR": "1"}))
    assert told.count("\\x1b[31m") >= 4
    svg = fabric(*line, "--svg", "-o", "-")
    assert "\\x1b[31mtitle\\x07" in "".join(ElementTree.fromstring(svg.out).itertext())
    assert fabric(*line, "-o", tmp_path / "x.png").code == 0
    one_sentence(fabric("plot", runs[0], "-c", "speed"), 65, "\\x1b[31m")


def test_no_message_is_endless(tiny: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "long.gguf"
    writer = gguf.GGUFWriter(path, "a" * 3_000_000 + "z")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    for line in (["inspect", path], ["generate", "-m", path, "--prompt", "x"]):
        assert len(quiet(fabric(*line))) < 3000
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"k" * 100_000 + str(i): 1 for i in range(20)}) + "\n")
    assert len(fabric("prepare", rows).err) < 3000


def test_numbers_that_json_has_not_are_strings_in_reports_and_no_warning_is_shown(
    tiny: Path, rows: Path, adapter: Path, tmp_path: Path
) -> None:
    content = adapter.read_bytes()
    assert content.count(b'"lr":0.0002') == 1
    path = tmp_path / "a.gguf"
    path.write_bytes(content.replace(b'"lr":0.0002', b'"lr":   NaN'))

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    told = json.loads(fabric("inspect", path, "--json").out, parse_constant=refuse)
    assert told["history"][0]["settings"]["lr"] == "NaN"
    at = content.index(b"adapter.lora.alpha") + len(b"adapter.lora.alpha") + 4
    path.write_bytes(content[:at] + struct.pack("<f", 3e38) + content[at + 4 :])
    one_sentence(fabric("eval", rows, "-m", tiny, "-a", path), 65, "not a number")
    one_sentence(fabric("merge", "-m", tiny, "-a", path, "-o", tmp_path / "m.gguf"), 65, "too large")
