"""One wrong value anywhere in a stranger's folder ends in a result or in one sentence, within the memory of a small
machine; nothing is left half written.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.shell import environment, fabric, one_sentence
from tests.support import foreign
from tests.support.paths import REPOSITORY

MUST_BE_REFUSED = (
    "config.json hidden_size = ", "config.json num_attention_heads = ", "config.json intermediate_size = ",
    "config.json rope_parameters = 'x'", "config.json rope_parameters = [1]", "config.json rope_parameters = nan",
    "header of model.embed_tokens.weight: shape = [140737488355328, 0]", "tokenizer.json model.vocab = ",
    "adapter_config.json r = ", "adapter_config.json use_rslora = 'x'", "adapter_config.json alpha_pattern = [",
)  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("malformed")
    line = [sys.executable, "-m", "tests.huggingface.malformed", str(folder)]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_wrong_value_ends_in_one_sentence_or_in_a_model(told: list[dict[str, object]]) -> None:
    assert len(told) > 4000
    for case in told:
        lines = str(case["said"]).splitlines()
        assert case["code"] in (0, 65), case
        assert float(str(case["seconds"])) < 5, case
        if case["code"] == 65:
            assert len(lines) == 1 and lines[0].startswith("fabric convert: ") and lines[0].isprintable(), case
            assert not case["left"], case


@pytest.mark.parametrize("start", MUST_BE_REFUSED)
def test_what_every_model_needs_is_checked(start: str, told: list[dict[str, object]]) -> None:
    found = [case for case in told if start in str(case["case"])]
    assert found
    assert {case["code"] for case in found if "= missing" not in str(case["case"])} == {65}


def test_paths_of_an_index_stay_inside_the_folder(tmp_path: Path) -> None:
    files = foreign.checkpoint()
    files.weights = "part.safetensors"
    good = dict.fromkeys(files.tensors, "part.safetensors")
    files.json["model.safetensors.index.json"] = {"weight_map": good}
    folder = files.write(tmp_path / "hf")
    (tmp_path / "outside.safetensors").write_bytes((folder / "part.safetensors").read_bytes())
    assert fabric("convert", folder, "-o", tmp_path / "m.gguf").code == 0
    for place in (
        "../outside.safetensors",
        str(tmp_path / "outside.safetensors"),
        "a/../../outside.safetensors",
        "",
        ".",
    ):
        files.json["model.safetensors.index.json"] = {"weight_map": {**good, "lm_head.weight": place}}
        ended = fabric("convert", files.write(folder), "-o", tmp_path / "m.gguf")
        one_sentence(ended, 65, "model.safetensors.index.json", "not the name of a file in this folder")
    config = files.json["config.json"]
    files.json["config.json"] = {**config, "transformers_weights": "../outside.safetensors"}
    one_sentence(fabric("convert", files.write(folder), "-o", tmp_path / "m.gguf"), 65, "config.json", "this folder")
    files.json["config.json"] = config
    files.json["model.safetensors.index.json"] = {"weight_map": {**good, "lm_head.bias": "part.safetensors"}}
    one_sentence(fabric("convert", files.write(folder), "-o", tmp_path / "m.gguf"), 65, "lacks", "lm_head.bias")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json"])
def test_what_is_no_file_is_not_waited_for(name: str, tmp_path: Path) -> None:
    folder = foreign.checkpoint().write(tmp_path / "hf")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    ended = fabric("convert", folder, "-o", tmp_path / "m.gguf", timeout=20)
    if name == "generation_config.json":
        assert ended.code == 0, ended.err
    else:
        one_sentence(ended, 65 if name == "config.json" else 66)


def test_tensors_that_share_bytes_do_not_make_a_file_that_is_larger_than_its_folder(tmp_path: Path) -> None:
    files = foreign.checkpoint()
    first = {"dtype": "F32", "shape": [8, 8], "data_offsets": [0, 256]}
    files.header = {"model.layers.0.self_attn.q_proj.weight": first, "model.layers.0.self_attn.o_proj.weight": first}
    ended = fabric("convert", files.write(tmp_path / "hf"), "-o", tmp_path / "m.gguf")
    one_sentence(ended, 65, "model.safetensors", "header lies")


@pytest.mark.parametrize(
    ("pattern", "code"),
    [
        (r"(([a-z0-9._]+)+)+!", 0),
        (r"(.*)*q_proj", 0),
        (r"(?=q)q_proj", 65),
        ("(" * 500 + ")" * 500, 65),
        ("[", 65),
        (r"((((a|b|[a-z.])*)*)*)*!" * 20, 0),
    ],
)
def test_a_pattern_of_an_adapter_ends_in_time(pattern: str, code: int, tmp_path: Path) -> None:
    base = foreign.checkpoint().write(tmp_path / "base")
    assert fabric("convert", base, "-o", tmp_path / "base.gguf").code == 0
    files = foreign.adapter()
    files.json["adapter_config.json"]["alpha_pattern"] = {pattern: 3}
    folder = files.write(tmp_path / "peft")
    ended = fabric("convert", folder, "-m", tmp_path / "base.gguf", "-o", tmp_path / "a.gguf", timeout=40)
    assert ended.code == code, ended
    if code:
        one_sentence(ended, 65, "adapter_config.json")


def test_a_huge_table_of_patterns_ends_in_time(tmp_path: Path) -> None:
    base = foreign.checkpoint().write(tmp_path / "base")
    assert fabric("convert", base, "-o", tmp_path / "base.gguf").code == 0
    files = foreign.adapter()
    files.json["adapter_config.json"]["rank_pattern"] = {f"x{i}.y_proj": 2 for i in range(200_000)}
    ended = fabric("convert", files.write(tmp_path / "peft"), "-m", tmp_path / "base.gguf", "-o", tmp_path / "a.gguf")
    one_sentence(ended, 65, "takes too long")


def test_values_that_a_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    files = foreign.checkpoint()
    files.tensors["lm_head.weight"] = np.full((12, 8), 1e6, np.float32)
    ended = fabric("convert", files.write(tmp_path / "hf"), "--type", "f16", "-o", tmp_path / "m.gguf")
    one_sentence(ended, 65, "lm_head.weight", "F16")
    assert not (tmp_path / "m.gguf").exists()
