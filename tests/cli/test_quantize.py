"""A file of mixed super-blocks is made, told of, trained from and merged into by the commands themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.shell import fabric, one_sentence, shell


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A model whose rows are whole super-blocks."""
    pytest.importorskip("gguf", reason="the model is written by the gguf package")
    from tests.support.random_models import Shape, write_model

    shape = Shape(hidden=256, layers=2, heads=4, kv_heads=2, head_dim=64, ffn=256)
    return write_model(tmp_path / "wide.gguf", shape)


def test_a_q4_k_m_file_is_trained_from_and_merged_into(wide: Path, rows: Path, tmp_path: Path) -> None:
    done = shell(
        f"fabric quantize {wide} --type q4_k_m -o q.gguf && "
        f"fabric train {rows} -m q.gguf -o - --steps 2 --rank 2 --ctx 64 --batch 4 --run-dir run "
        f"| fabric merge -m q.gguf -a - --type q4_k_m -o m.gguf && fabric inspect m.gguf --json",
        tmp_path,
    )
    assert done.code == 0, done.err
    types = {name: row["tensors"] for name, row in json.loads(done.out)["types"].items()}
    assert types == {"F32": 5, "Q4_K": 12, "Q6_K": 3}
    assert json.loads(done.out)["metadata"]["general.file_type"] == 15


def test_matrices_that_fall_back_are_told_once_a_reason(tiny: Path, tmp_path: Path) -> None:
    told = fabric("quantize", tiny, "--type", "q4_k_m", "-o", tmp_path / "q.gguf")
    assert told.code == 0
    assert "and 10 more: Q5_0, because its rows of 64 are not whole Q4_K blocks" in told.err


def test_blocks_that_cannot_be_decoded_end_in_a_sentence(tmp_path: Path) -> None:
    from fabric.weights.formats import BY_NAME
    from fabric.weights.gguf import TensorSpec, write_gguf

    path = tmp_path / "m.gguf"
    with path.open("wb") as out:
        spec = TensorSpec("blk.0.ffn_up.weight", BY_NAME["IQ2_XXS"].type, (2, 256))
        write_gguf(out, {"general.architecture": "llama"}, [spec], [bytes(132)])
    one_sentence(fabric("quantize", path, "-o", tmp_path / "q.gguf"), 65, "blk.0.ffn_up.weight", "IQ2_XXS", "decoded")
    assert "cannot be trained from" in fabric("inspect", path).out.decode()
