"""Stock llama.cpp prompts a tuned Gemma base exactly as it was trained, to the last token, by what the file says."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.shell import fabric
from tests.support.paths import gemma3

TALK = [
    {"role": "user", "content": "Which is the first stop of the ferry?"},
    {"role": "assistant", "content": "Pellmoor."},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": "Tarn Quay."},
]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The base has no chat template; one step on a conversation gives the merged model one."""
    base, folder = gemma3(), tmp_path_factory.mktemp("gemma")
    (folder / "rows.jsonl").write_text(json.dumps({"messages": TALK}) + "\n")
    run = ("--steps", "1", "--rank", "2", "--modules", "attn_q", "--ctx", "64", "--run-dir", folder / "run")
    trained = fabric("train", folder / "rows.jsonl", "-m", base, "-o", folder / "a.gguf", *run, timeout=300)
    assert trained.code == 0, trained.err
    merge = ("merge", "-m", base, "-a", folder / "a.gguf", "-o", folder / "tuned.gguf", "--type", "keep")
    merged = fabric(*merge, timeout=300)
    assert merged.code == 0, merged.err
    yield folder
    (folder / "tuned.gguf").unlink()


def test_stock_llama_cpp_prompts_a_tuned_base_as_it_was_trained(tuned: Path) -> None:
    xllamacpp = pytest.importorskip("xllamacpp", reason="this parity needs stock llama.cpp: pip install xllamacpp")
    rendered = fabric("template", tuned / "rows.jsonl", "-m", gemma3(), "--tokens", timeout=120)
    [row] = map(json.loads, rendered.out.splitlines())
    starts = [i for i, flag in enumerate(row["train"]) if flag and not row["train"][i - 1]]
    ends = [i for i, flag in enumerate(row["train"]) if flag and not (row["train"] + [0])[i + 1]]
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_gpu_layers = str(tuned / "tuned.gguf"), 256, 0
    server = xllamacpp.Server(params)

    def ask(path: str, body: dict[str, Any]) -> dict[str, Any]:
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(server.listening_address + path, data, kind)) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    for answer, start in enumerate(starts):
        prompt = ask("/apply-template", {"messages": TALK[: 2 * answer + 1]})["prompt"]
        tokens = ask("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})["tokens"]
        assert tokens == row["tokens"][:start]
    assert len({row["tokens"][end] for end in ends}) == 1 and len(starts) == 2
    [end] = {row["tokens"][end] for end in ends}
    props = json.load(urllib.request.urlopen(server.listening_address + "/props"))
    inspected = fabric("inspect", tuned / "tuned.gguf", "--json", timeout=120)
    assert json.loads(inspected.out)["metadata"]["tokenizer.ggml.eot_token_id"] == end, "what ends an answer there too"
    assert "<start_of_turn>" in props["chat_template"]
