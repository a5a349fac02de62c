"""A model in several files is one model in every command, by whichever part is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="the small models are written by the gguf package")

from fabric.weights.gguf import GGUF
from tests.cli.shell import Ended, fabric, one_sentence, shell
from tests.support.edited import split
from tests.support.random_models import write_model
from tests.support.shapes import SMALL

ROWS = '{"messages":[{"role":"user","content":"the fox"},{"role":"assistant","content":"the dog"}]}\n'


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("whole") / "w.gguf", SMALL["llama"])


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> list[Path]:
    (tmp_path / "rows.jsonl").write_text(ROWS * 4)
    return split(whole, tmp_path)


def test_training_and_all_that_follows_give_what_the_whole_file_gives(
    whole: Path, parts: list[Path], tmp_path: Path
) -> None:
    results = []
    for name, model in (("whole", whole), ("split", parts[0])):
        script = f"""
            fabric train rows.jsonl -m {model} -o {name}.gguf --steps 2 --ctx 64 -q --run-dir {name}.run
            fabric merge -m {model} -a {name}.gguf -o {name}-merged.gguf -q
            fabric quantize {model} --type q4_0 -o {name}-q.gguf -q
            fabric eval rows.jsonl -m {model} -a {name}.gguf --json | jq .nll > {name}.json
            fabric generate -m {model} -a {name}.gguf --prompt 'the' --temperature 0 --max-tokens 5 > {name}.txt
            fabric template rows.jsonl -m {model} > {name}.jsonl
        """
        ended = shell(f"set -e\n{script}", tmp_path)
        assert ended.code == 0, ended.err
        with GGUF.open(tmp_path / f"{name}.gguf") as a, GGUF.open(tmp_path / f"{name}-merged.gguf") as m:
            arrays = [bytes(file.data(tensor)) for file in (a, m) for tensor in file.tensors]
            assert not any(key.startswith("split.") for file in (a, m) for key in file.metadata)
        told = [(tmp_path / f"{name}{ending}").read_bytes() for ending in (".json", ".txt", ".jsonl")]
        results.append((arrays, told))
    assert results[0] == results[1]


def test_any_part_names_the_model(whole: Path, parts: list[Path]) -> None:
    first, *others = [json.loads(fabric("inspect", part, "--json").out) for part in parts]
    assert (first["parts"], first["kind"], first["architecture"]) == (3, "model", "llama")
    assert first["parameters"] == json.loads(fabric("inspect", whole, "--json").out)["parameters"]
    assert [{**other, "path": first["path"]} for other in others] == [first, first]
    assert b"3 files" in fabric("inspect", parts[1]).out


def test_a_run_on_a_split_model_resumes_from_where_it_stood(parts: list[Path], tmp_path: Path) -> None:
    line = ("train", "rows.jsonl", "-m", parts[1].name, "-o", "a.gguf", "--ctx", "64", "--run-dir", "run")
    assert fabric(*line, "--steps", "2", cwd=tmp_path).code == 0
    ended = fabric("resume", "run", "-o", "b.gguf", cwd=tmp_path)
    assert ended.code == 0, ended.err
    parts[2].write_bytes(parts[2].read_bytes()[:-4] + b"\1\2\3\4")
    one_sentence(fabric("resume", "run", "-o", "b.gguf", cwd=tmp_path), 65, "model")


def test_a_part_that_is_not_there_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    for part in (parts[0], parts[2]):
        one_sentence(fabric("inspect", part), 66, parts[1].name, "part 2", "3 files")


def test_parts_of_two_models_are_not_mixed(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for count, kept, said in ((3, 1, "part 2 of 3"), (2, 1, "part 2 of 2"), (3, 0, "part 1 of 3")):
        others = split(whole, tmp_path / "other", count)
        saved = parts[2].read_bytes()
        shutil.copy(others[kept], parts[2])
        one_sentence(fabric("inspect", parts[0]), 65, parts[2].name, "of another model", said)
        parts[2].write_bytes(saved)
    fewer = split(write_model(tmp_path / "small.gguf", SMALL["qwen3"]), tmp_path / "other")
    shutil.copy(fewer[2], parts[2])
    one_sentence(fabric("inspect", parts[0]), 65, "another model")


def test_what_cannot_find_its_other_parts_says_so(parts: list[Path], tmp_path: Path) -> None:
    renamed = tmp_path / "renamed.gguf"
    shutil.copy(parts[1], renamed)
    one_sentence(fabric("inspect", renamed), 65, "part 2", "-00002-of-00003.gguf")
    one_sentence(fabric("inspect", "-", stdin=parts[0].read_bytes()), 65, "part 1", "pipe")
    shutil.copy(parts[0], tmp_path / "m-00009-of-00003.gguf")
    one_sentence(fabric("inspect", tmp_path / "m-00009-of-00003.gguf"), 65, "-00001-of-00003.gguf")


def test_no_part_is_overwritten_by_a_result(parts: list[Path]) -> None:
    def refused(ended: Ended) -> None:
        one_sentence(ended, 2, parts[2].name, "input")

    before = parts[2].read_bytes()
    refused(fabric("quantize", parts[0], "-o", parts[2]))
    assert parts[2].read_bytes() == before
