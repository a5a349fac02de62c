"""The chat template that a result was trained with ships with it, and commands that use another one say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.shell import fabric, one_sentence
from tests.text import kinds

ASKS = "{% for m in messages %}{{ m.role + ': ' + m.content + '<|end|>\n' }}{% endfor %}"
ASKS += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
KEYS = ("tokenizer.chat_template", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template and one without, rows, and adapters that were trained with `own.jinja`, with
    `chatml.jinja`, and on texts."""
    pytest.importorskip("gguf", reason="the tiny model is written by the gguf package")
    folder = tmp_path_factory.mktemp("carried")
    kinds.write_model(folder / "m.gguf")
    kinds.write_model(folder / "bare.gguf", template=False)
    (folder / "own.jinja").write_text(ASKS)
    (folder / "chatml.jinja").write_text(kinds.CHATML)
    chat = {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "North."}]}
    (folder / "chat.jsonl").write_text(4 * (json.dumps(chat) + "\n"))
    (folder / "texts.jsonl").write_text(4 * (json.dumps({"text": "By the ferry hall."}) + "\n"))
    train(folder, "own.gguf", "chat.jsonl", "--template", "own.jinja")
    train(folder, "chatml.gguf", "chat.jsonl", "--template", "chatml.jinja")
    train(folder, "texts.gguf", "texts.jsonl")
    return folder


def train(folder: Path, output: str, rows: str, *flags: str, model: str = "m.gguf") -> str:
    size = () if "--full" in flags or "-a" in flags else ("--rank", "2")
    run = ("--steps", "1", "--ctx", "64", "--run-dir", f"run-{output}", *size)
    done = fabric("train", rows, "-m", model, "-o", output, *run, *flags, cwd=folder)
    assert done.code == 0, done.err
    return done.err


def carried(file: Path) -> dict[str, Any]:
    metadata = json.loads(fabric("inspect", file, "--json").out)["metadata"]
    return {key.rpartition(".")[2]: metadata[key] for key in KEYS if key in metadata}


def end_id(folder: Path) -> int:
    from fabric.text.tokenizer import Tokenizer
    from fabric.weights.gguf import GGUF

    with GGUF.open(folder / "m.gguf") as gguf:
        return list(Tokenizer.from_gguf(gguf.metadata).tokens).index("<|end|>")


def test_adapters_merged_and_full_models_carry_it_with_the_token_that_ends_answers(folder: Path) -> None:
    told = {"chat_template": ASKS, "eot_token_id": end_id(folder)}
    assert carried(folder / "own.gguf") == told
    done = fabric("merge", "-m", "m.gguf", "-a", "own.gguf", "-o", "merged.gguf", cwd=folder)
    assert done.code == 0 and "the merged model has the chat template that own.gguf was trained with" in done.err
    assert carried(folder / "merged.gguf") == told
    err = train(folder, "full.gguf", "chat.jsonl", "--template", "own.jinja", "--full")
    assert "the chat template own.jinja is used, not the model's own" in err
    assert carried(folder / "full.gguf") == told
    for file in ("own.gguf", "merged.gguf", "full.gguf"):
        shown = fabric("inspect", "--chat-template", file, cwd=folder)
        assert (shown.code, shown.out.decode(), shown.err) == (0, ASKS + "\n", "")
    rendered = fabric("template", "chat.jsonl", "-m", "merged.gguf", cwd=folder)
    assert json.loads(rendered.out.splitlines()[0])["text"] == "user: Where?<|end|>\nassistant: North.<|end|>\n"
    quantized = fabric("quantize", "merged.gguf", "--type", "q8_0", "-o", "q.gguf", cwd=folder)
    assert quantized.code == 0 and carried(folder / "q.gguf") == told


def test_a_template_that_was_chosen_by_the_vocabulary_is_carried_too(folder: Path) -> None:
    shown = fabric("inspect", "--chat-template", "bare.gguf", cwd=folder)
    assert shown.code == 0 and "no chat template in it; commands use ChatML" in shown.err
    train(folder, "bare-adapter.gguf", "chat.jsonl", model="bare.gguf")
    assert carried(folder / "bare-adapter.gguf") == {"chat_template": shown.out.decode().removesuffix("\n")}
    done = fabric("merge", "-m", "bare.gguf", "-a", "bare-adapter.gguf", "-o", "no-longer-bare.gguf", cwd=folder)
    assert done.code == 0
    again = fabric("inspect", "--chat-template", "no-longer-bare.gguf", cwd=folder)
    assert (again.out, again.err) == (shown.out, "")


def test_an_adapter_of_texts_carries_none_and_commands_use_the_models(folder: Path) -> None:
    assert carried(folder / "texts.gguf") == {}
    one_sentence(
        fabric("inspect", "--chat-template", "texts.gguf", cwd=folder), 65, "an adapter without a chat template"
    )
    done = fabric("eval", "chat.jsonl", "-m", "m.gguf", "-a", "texts.gguf", cwd=folder)
    assert done.code == 0 and "chat template" not in done.err


def test_commands_with_an_adapter_use_its_template_and_say_so_as_when_they_use_another(folder: Path) -> None:
    def loss(*flags: str) -> tuple[float, str]:
        done = fabric("eval", "chat.jsonl", "-m", "m.gguf", "--precision", "f32", "--json", *flags, cwd=folder)
        assert done.code == 0, done.err
        return json.loads(done.out)["loss"], done.err

    by_itself, said = loss("-a", "own.gguf")
    assert "the chat template of own.gguf is used, not the model's own" in said
    named, quiet = loss("-a", "own.gguf", "--template", "own.jinja")
    assert by_itself == named and "chat template" not in quiet
    other, told = loss("-a", "own.gguf", "--template", "chatml.jinja")
    assert other != named and "chatml.jinja is used, not the one that own.gguf was trained with" in told
    _, about = loss("-a", "chatml.gguf", "-a", "own.gguf")
    assert "the chat template of own.gguf is used, not the one that chatml.gguf was trained with" in about
    spoken = fabric("generate", "--prompt", "Where?", "-m", "m.gguf", "-a", "own.gguf", "--max-tokens", "2", cwd=folder)
    assert spoken.code == 0 and "the chat template of own.gguf is used" in spoken.err
    talked = fabric(
        "generate", "--chat", "-m", "m.gguf", "-a", "own.gguf", "--max-tokens", "2", cwd=folder, stdin=b"a\nb\n"
    )
    assert talked.code == 0 and talked.err.count("the chat template of own.gguf is used") == 1
    assert "chat template" in train(folder, "own2.gguf", "chat.jsonl", "-a", "own.gguf")
    assert carried(folder / "own2.gguf")["chat_template"] == ASKS, "training that goes on keeps it"
    train(folder, "own3.gguf", "texts.jsonl", "-a", "own.gguf")
    assert carried(folder / "own3.gguf")["chat_template"] == ASKS, "also on texts"


def test_merging_adapters_of_two_templates_says_which_one_the_model_gets(folder: Path) -> None:
    flags = ("merge", "-m", "m.gguf", "-a", "own.gguf", "-a", "chatml.gguf", "-o", "both.gguf")
    done = fabric(*flags, cwd=folder)
    said = "the merged model has the chat template of chatml.gguf, not the one that own.gguf was trained with"
    assert done.code == 0 and said in done.err
    assert carried(folder / "both.gguf")["chat_template"] == kinds.CHATML
    one_sentence(fabric(*flags, "--strict", cwd=folder), 65, said, "--strict")


@pytest.mark.parametrize("kind", ["text", "tokens", "nameless"])
def test_rows_that_are_rendered_already_ship_their_template(kind: str, folder: Path) -> None:
    flags = ("template", "chat.jsonl", "-m", "bare.gguf", *(["--tokens"] if kind == "tokens" else []))
    for name, more in (("custom", ["--template", "own.jinja"]), ("default", [])):
        made = [json.loads(line) for line in fabric(*flags, *more, cwd=folder).out.splitlines()]
        assert len(made) == 4 and len({row["template_hash"] for row in made}) == 1
        for row in made if kind == "nameless" else []:
            del row["template_hash"]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    train(folder, f"{kind}-named.gguf", "custom.jsonl", "--template", "own.jinja", model="bare.gguf")
    assert carried(folder / f"{kind}-named.gguf") == {"chat_template": ASKS, "eot_token_id": end_id(folder)}
    said = train(folder, f"{kind}-unnamed.gguf", "custom.jsonl", model="bare.gguf")
    assert "name theirs with --template" in said and carried(folder / f"{kind}-unnamed.gguf") == {}
    said = train(folder, f"{kind}-default.gguf", "default.jsonl", model="bare.gguf")
    chosen = fabric("inspect", "--chat-template", "bare.gguf", cwd=folder).out.decode().removesuffix("\n")
    if kind == "nameless":
        assert "name theirs with --template to ship it" in said and carried(folder / f"{kind}-default.gguf") == {}
        return
    assert "chat template" not in said and carried(folder / f"{kind}-default.gguf") == {"chat_template": chosen}
    told = "custom.jsonl: 4 rows have been rendered with another chat template than the one in use"
    done = fabric("eval", "custom.jsonl", "-m", "bare.gguf", cwd=folder)
    assert done.code == 0 and told in done.err
    wrong = ("train", "default.jsonl", "-m", "bare.gguf", "-o", "no.gguf", "--template", "own.jinja", "--strict")
    one_sentence(fabric(*wrong, cwd=folder), 65, "rendered with another chat template", "--strict")


def test_a_template_for_rows_that_are_no_conversations_has_no_effect(folder: Path) -> None:
    useless = train(folder, "useless.gguf", "texts.jsonl", "--template", "own.jinja")
    assert "own.jinja: no row is a conversation, so this chat template has no effect" in useless
    assert carried(folder / "useless.gguf") == {}
