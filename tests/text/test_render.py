"""`template`'s function: what it writes trains exactly what `train` would have trained from the chat rows."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from fabric.data.records import read_records
from fabric.errors import DataError
from fabric.text.encode import EncodeReport, encode_rows
from fabric.text.render import RenderReport, render
from fabric.text.settings import RenderSettings
from fabric.text.template import ChatTemplate
from fabric.text.tokenizer import Tokenizer
from fabric.weights.gguf import GGUF
from tests.support.random_models import write_model

ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": "What does <|im_end|> mean?"},
            {"role": "assistant", "content": "The end of the fox"},
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "y"},
        ],
        "label": "The",
    },
    {"messages": [{"role": "user", "content": "no answer"}]},
    {"prompt": "the quick", "completion": " brown fox", "id": 7},
    {"text": "jumps over the lazy dog " * 9},
    {"text": "ab<|im_end|>", "train": [[1, 12]]},
    {"tokens": [5, 6, 7], "train": [0, 0, 1]},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model") / "m.gguf"))


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return str(path)


def run(data: str, model: str, **options: Any) -> tuple[list[dict[str, Any]], RenderReport]:
    out = io.BytesIO()
    report = render(RenderSettings(data, model, **options), out)
    return [json.loads(line) for line in out.getvalue().splitlines()], report


def encoded(path: str, model: str, ctx: int | None = None) -> list[tuple[list[int], list[int]]]:
    with GGUF.open(model) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf.metadata)
    template = ChatTemplate.choose(tokenizer)
    examples = list(encode_rows(read_records(path), tokenizer, template, ctx, EncodeReport()))
    template.close()
    return [(e.tokens.tolist(), e.train.tolist()) for e in examples]


def test_rendered_rows_train_what_the_chat_rows_would(data: str, model: str, tmp_path: Path) -> None:
    rows, report = run(data, model)
    assert rows[0]["label"] == "The" and "messages" not in rows[0]
    assert [rows[0]["text"][a:b] for a, b in rows[0]["train"]] == ["The end of the fox<|im_end|>", "y<|im_end|>"]
    assert rows[2:] == ROWS[2:], "rows that say what is trained go through as they are"
    assert (report.rows, report.written, report.answers, report.nothing_to_train) == (6, 6, 2, 1)
    again = tmp_path / "rendered.jsonl"
    again.write_text("\n".join(map(json.dumps, rows)))
    assert encoded(str(again), model) == encoded(data, model)


def test_token_rows_train_what_the_chat_rows_would(data: str, model: str, tmp_path: Path) -> None:
    rows, report = run(data, model, tokens=True, ctx=64)
    assert rows[0]["label"] == "The" and rows[1]["id"] == 7
    assert report.encoded is not None and report.encoded.windowed == 1 and report.written == len(rows) > 5
    assert report.nothing_to_train == 1
    again = tmp_path / "tokens.jsonl"
    again.write_text("\n".join(map(json.dumps, rows)))
    assert encoded(str(again), model) == encoded(data, model, 64)


def test_check_writes_nothing_and_shows_what_is_trained(data: str, model: str) -> None:
    rows, report = run(data, model, check=True)
    assert rows == []
    shown = report.to_json()
    assert shown["lengths"]["max"] == report.encoded.longest if report.encoded else False
    text = "".join(f"[{text}]" if trained else text for text, trained in report.sample)
    assert "[<|im_end|>]\n" in text and "user\nWhat" in text and json.dumps(shown)


def test_a_custom_template_is_used(data: str, model: str, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text(
        "{% for m in messages %}{{ m.role }}={{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant={% endif %}"
    )
    rows, _ = run(data, model, template=str(own))
    assert rows[0]["text"].startswith("user=What does")


def test_the_row_that_a_template_refuses_is_named(data: str, model: str, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match=r"rows.jsonl:1: the chat template failed: roles must alternate"):
        run(data, model, template=str(own))
