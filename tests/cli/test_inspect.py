"""What is inside a file, and how two differ."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.shell import fabric, one_sentence


def test_two_files_differ_in_what_was_done_to_one_of_them(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged.gguf"
    assert fabric("merge", "-m", tiny, "-a", adapter, "-o", merged, "--type", "keep").code == 0
    told = json.loads(fabric("inspect", merged, tiny, "--json").out)
    changed = set(told["tensors"]["changed"])
    pairs = {t["name"].rsplit(".", 1)[0] for t in json.loads(fabric("inspect", adapter, "--json").out)["tensors"]}
    assert changed == pairs and told["tensors"]["only_this"] == told["tensors"]["only_other"] == []
    whole = len(json.loads(fabric("inspect", tiny, "--json").out)["tensors"])
    assert told["equal_tensors"] == whole - len(changed)
    assert [step["command"] for step in told["history"]["this file"]] == ["train", "merge"]
    assert told["history"]["the other"] == []
    text = fabric("inspect", merged, tiny).out.decode()
    assert "root mean square difference" in text and all(name in text for name in changed)


def test_metadata_and_tensors_of_one_file_only_are_named(tiny: Path, adapter: Path) -> None:
    told = json.loads(fabric("inspect", tiny, adapter, "--json").out)
    assert "tokenizer.ggml.tokens" in told["metadata"]["only_this"]
    assert "adapter.lora.alpha" in told["metadata"]["only_other"]
    assert told["equal_tensors"] == 0 and "token_embd.weight" in told["tensors"]["only_this"]
    assert "no difference" in fabric("inspect", tiny, tiny).out.decode()
    piped = fabric("inspect", "-", tiny, stdin=tiny.read_bytes())
    assert "no difference" in piped.out.decode(), piped.err


def test_the_chat_template_comes_alone(tiny: Path, adapter: Path) -> None:
    template = fabric("inspect", tiny, "--chat-template").out.decode()
    assert template.startswith("{%") and "add_generation_prompt" in template
    assert json.loads(fabric("inspect", tiny, "--chat-template", "--json").out)["chat_template"] == template.rstrip(
        "\n"
    )
    assert fabric("inspect", adapter, "--chat-template").out.decode() == template, "with which it was trained"
    one_sentence(fabric("inspect", tiny, tiny, "--chat-template"), 2, "--chat-template")
    one_sentence(fabric("inspect", "-", "-", stdin=b"GGUF"), 2, "stdin")
