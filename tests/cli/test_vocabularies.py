"""The commands on small random models that carry real vocabularies and templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.cli.shell import fabric, one_sentence
from tests.support import llama_cpp
from tests.support.paths import gemma3, shared


class Model(NamedTuple):
    """A file, the template to give (none: its own, or the usual one), the end of an answer, how a row starts."""

    path: Path
    template: list[str]
    end: str
    begin: str


MODELS = {
    "gemma3": ("gemma3", "google-gemma-2-2b-it", "<end_of_turn>", "<bos>"),
    "gemma3 without a template": ("gemma3", None, "<end_of_turn>", "<bos>"),
    "llama-bpe": ("llama", "meta-llama-Llama-3.2-3B-Instruct", "<|eot_id|>", "<|begin_of_text|>"),
    "llama-spm": ("llama", None, "</s>", "<s>"),
    "phi-3": ("llama", None, "<|end|>", "<s>"),
    "qwen2": ("qwen2", "Qwen-Qwen3-0.6B", "<|im_end|>", "<|im_start|>"),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    pytest.importorskip("gguf", reason="the models are written by the gguf package")
    from tests.text.vocabularies import metadata, write_tiny_model

    architecture, template, end, begin = MODELS[request.param]
    name = request.param.split()[0]
    source = gemma3() if name == "gemma3" else shared(f"vocab/ggml-vocab-{name}.gguf")
    path = write_tiny_model(tmp_path_factory.mktemp("vocabulary") / "m.gguf", metadata(source), architecture)
    given = [] if template is None else ["--template", str(shared(f"templates/{template}.jinja"))]
    return Model(path, given, end, begin)


ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": f"Is </s> a {kind}? <end_of_turn>"},
            {"role": "assistant", "content": f"{answer}, für {kind}s…"},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": answer},
        ],
        "label": answer,
    }
    for kind, answer in (("tag", "Yes"), ("cat", "No"), ("dog", "No"))
]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def report(*arguments: str | Path) -> dict[str, Any]:
    done = fabric(*arguments, "--json")
    assert done.code == 0, done.err
    value: dict[str, Any] = json.loads(done.out or done.err)
    return value


def test_check_shows_what_train_trains_and_where_a_row_begins(model: Model, chats: Path, tmp_path: Path) -> None:
    told = report("template", chats, "-m", model.path, *model.template, "--check")
    texts = [text for text, _ in told["sample"]]
    trained = "".join(text for text, flag in told["sample"] if flag)
    assert trained in (
        f"Yes, für tags…{model.end}Yes{model.end}",
        f"Yes, für tags…{model.end}<think>\n\n</think>\n\nYes{model.end}",
    )
    assert texts[0] == model.begin and (texts.count(model.begin) == 1 or model.begin == "<|im_start|>")
    assert "Is </s> a tag? <end_of_turn>" in "".join(texts)
    assert told["nothing_to_train"] == 0 and told["rows"] == 3
    flags = ["--steps", "1", "--batch", "3", "--rank", "2", "--run-dir", tmp_path / "run", "--metrics", tmp_path / "m"]
    done = fabric("train", chats, "-m", model.path, *model.template, "-o", tmp_path / "a.gguf", *flags)
    assert done.code == 0, done.err
    [step] = [json.loads(line) for line in (tmp_path / "m").read_text().splitlines()]
    assert step["trained_tokens"] == told["trained_tokens"]


def test_eval_measures_the_tokens_that_template_wrote(model: Model, chats: Path, tmp_path: Path) -> None:
    told = report("eval", chats, "-m", model.path, *model.template)
    made = fabric("template", chats, "-m", model.path, *model.template, "--tokens", "-o", tmp_path / "rows.jsonl")
    assert made.code == 0, made.err
    assert report("eval", tmp_path / "rows.jsonl", "-m", model.path)["loss"] == told["loss"]
    assert "accuracy" in told, "labels are found behind a space that nobody sees, and behind a thought"


def test_generate_answers_from_the_prompt_that_training_showed(model: Model, chats: Path) -> None:
    done = fabric("generate", chats, "-m", model.path, *model.template, "--max-tokens", "4")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["reference"] for row in rows] == ["Yes", "No", "No"]
    assert all(row["answer_tokens"] <= 4 and isinstance(row["answer"], str) for row in rows)


def test_a_plain_prompt_goes_on_as_in_llama_cpp(model: Model) -> None:
    if not llama_cpp.available():
        pytest.skip("stock llama.cpp is not there: pip install xllamacpp")
    prompt, steps = " The fox, für Füchse", 6
    done = fabric(
        *("generate", "-m", model.path, "--prompt", prompt, "--raw", "--max-tokens", str(steps), "--temperature", "0"),
        *("--precision", "f32", "--json"),
    )
    assert done.code == 0, done.err
    with llama_cpp.Llama(model.path, n_ctx=64) as llama:
        ids = llama.tokenize(prompt, special=False, bos=True)
        for _ in range(steps):
            ids.append(int(llama.logits(ids)[-1].argmax()))
    from fabric.text.tokenizer import Tokenizer
    from tests.text.vocabularies import metadata

    start = len(ids) - steps
    answer = Tokenizer.from_gguf(metadata(model.path)).decode(ids[start:], skip_special=True, follows=ids[start - 1])
    assert json.loads(done.out)["answer"] == answer


def test_a_tokenizer_that_is_not_known_is_refused_in_one_sentence(tmp_path: Path, chats: Path) -> None:
    pytest.importorskip("gguf", reason="the models are written by the gguf package")
    from tests.text.vocabularies import metadata, write_tiny_model

    values = metadata(shared("vocab/ggml-vocab-gpt-2.gguf"))
    path = write_tiny_model(tmp_path / "m.gguf", {**values, "tokenizer.ggml.pre": "klingon"})
    one_sentence(fabric("template", chats, "-m", path), 65, "the pre-tokenizer 'klingon' is not supported")
    path = write_tiny_model(tmp_path / "m.gguf", {**values, "tokenizer.ggml.model": "bert"})
    one_sentence(fabric("eval", chats, "-m", path), 65, "WordPiece, as BERT's ('bert')")
