"""What an adapter says is used, or named."""

from __future__ import annotations

from pathlib import Path

from tests.cli.shell import fabric, one_sentence
from tests.support.edited import edited


def test_what_an_adapter_asks_for_and_nobody_does_is_named_and_refused_where_that_is_asked_for(
    tiny: Path, adapter: Path, rows: Path, tmp_path: Path
) -> None:
    keys = {"adapter.lora.prompt_prefix": "Be brief.", "llama.rope.freq_base": 5.0, "adapter.lora.task_name": "harbour"}
    other = edited(adapter, tmp_path / "other.gguf", keys)
    said = "other.gguf: 2 metadata keys are not used: adapter.lora.prompt_prefix, llama.rope.freq_base"
    for command in (
        ["eval", rows, "-m", tiny, "-a", other],
        ["merge", "-m", tiny, "-a", other, "-o", tmp_path / "m.gguf"],
    ):
        done = fabric(*command)
        assert done.code == 0 and done.err.count(said) == 1, done.err
        one_sentence(fabric(*command, "--strict"), 65, said)
