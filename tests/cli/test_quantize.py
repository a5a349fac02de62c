"""A file of mixed super-blocks is made, told of, trained from and merged into by the commands themselves."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from fabric.weights.gguf import GGUF, decode_tensor
from tests.cli.shell import fabric, one_sentence, shell


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A model whose rows are whole super-blocks."""
    pytest.importorskip("gguf", reason="the model is written by the gguf package")
    from tests.support.random_models import write_model
    from tests.support.shapes import Shape

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


def test_blocks_that_hold_no_weights_end_in_a_sentence(tmp_path: Path) -> None:
    from fabric.weights.formats import BY_NAME
    from fabric.weights.gguf import TensorSpec, write_gguf

    path = tmp_path / "m.gguf"
    with path.open("wb") as out:
        spec = TensorSpec("blk.0.ffn_up.weight", BY_NAME["Q8_K"].type, (2, 256))
        write_gguf(out, {"general.architecture": "llama"}, [spec], [bytes(584)])
    one_sentence(fabric("quantize", path, "-o", tmp_path / "q.gguf"), 65, "blk.0.ffn_up.weight", "Q8_K", "no weights")
    assert "cannot be trained from" in fabric("inspect", path).out.decode()


def lost(told: str) -> dict[str, float]:
    """What --errors tells, in percent by tensor."""
    rows = [line.partition(": ")[2].split() for line in told.splitlines() if line.endswith(" %")]
    return {row[0]: float(row[-2]) for row in rows}


def test_a_tensor_gets_the_type_that_it_was_given_and_tells_what_it_lost(wide: Path, tmp_path: Path) -> None:
    glob = ("--tensor", "blk.*.ffn_*=q4_0", "--tensor", "blk.1.ffn_down.weight=f16", "--errors")
    told = fabric("quantize", wide, "--type", "q8_0", *glob, "-o", tmp_path / "q.gguf")
    assert told.code == 0, told.err
    tensors = json.loads(fabric("inspect", tmp_path / "q.gguf", "--tensors", "--json").out)["tensors"]
    types = {row["name"]: row["type"] for row in tensors}
    assert types["blk.1.ffn_down.weight"] == "F16" and types["blk.0.attn_q.weight"] == "Q8_0"
    assert {types[f"blk.{i}.ffn_up.weight"] for i in (0, 1)} == {"Q4_0"} and types["blk.0.ffn_norm.weight"] == "F32"
    errors = lost(told.err)
    assert errors["blk.0.ffn_up.weight"] > 5 > 1 > errors["blk.0.attn_q.weight"] > errors["blk.1.ffn_down.weight"]
    assert "blk.0.ffn_norm.weight" not in errors


def test_calibration_keeps_what_the_rows_use(wide: Path, rows: Path, tmp_path: Path) -> None:
    """The error that reaches a layer's output is that of its weights, each times what stands at its input."""
    for type in ("q4_0", "q5_1", "q4_k", "q6_k"):
        line = ("quantize", wide, "--type", type, "-o")
        assert fabric(*line, tmp_path / "plain.gguf").code == 0
        told = fabric(*line, tmp_path / "fitted.gguf", "--calibrate", rows, "--save-imatrix", tmp_path / "i.gguf")
        assert told.code == 0 and "calibrated with" in told.err, told.err
        with contextlib.ExitStack() as stack:
            base, plain, fitted, found = (
                stack.enter_context(GGUF.open(path))
                for path in (wide, *(tmp_path / f"{name}.gguf" for name in ("plain", "fitted", "i")))
            )
            for name in ("blk.0.attn_q.weight", "blk.1.attn_output.weight", "blk.1.ffn_down.weight"):
                weights = decode_tensor(found, f"{name}.in_sum2")
                plainly, fittingly = (
                    (weights * np.square(decode_tensor(file, name) - decode_tensor(base, name))).sum()
                    for file in (plain, fitted)
                )
                assert fittingly < 0.99 * plainly, (type, name)
    assert b"None" not in fabric("inspect", tmp_path / "i.gguf").out
    again = fabric(*line, tmp_path / "again.gguf", "--imatrix", tmp_path / "i.gguf")
    assert again.code == 0, again.err
    with GGUF.open(tmp_path / "again.gguf") as one, GGUF.open(tmp_path / "fitted.gguf") as other:
        assert all(np.array_equal(decode_tensor(one, name), decode_tensor(other, name)) for name in one.tensors)
        assert json.loads(one.metadata["fabric.history"][-1])["inputs"]["importance"]


def test_an_importance_matrix_is_laid_out_as_llama_cpp_has_it(wide: Path, rows: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    fabric("quantize", wide, "--calibrate", rows, "--save-imatrix", tmp_path / "i.gguf", "-o", tmp_path / "q.gguf")
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_size"].contents() == found["blk.0.attn_q.weight.counts"].data[0, 0]
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "token_embd.weight"):
        assert found[f"{name}.in_sum2"].data.shape == (1, 256) and (found[f"{name}.in_sum2"].data > 0).all()
    same = [found[f"blk.0.attn_{part}.weight.in_sum2"].data for part in "qkv"]
    assert (same[0] == same[1]).all() and (same[0] == same[2]).all()
    norms = [float(found[f"blk.0.{part}.weight.in_sum2"].data.mean()) for part in ("attn_q", "attn_output")]
    assert norms[0] / found["blk.0.attn_q.weight.counts"].data[0, 0] == pytest.approx(1.0, rel=0.2), "RMS-normed"


def test_the_experts_of_a_layer_are_calibrated_together(rows: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the model is written by the gguf package")
    from tests.support.random_models import write_model
    from tests.support.shapes import SMALL

    line = ("quantize", write_model(tmp_path / "m.gguf", SMALL["qwen3moe"]), "--type", "q4_0")
    for name, *flags in (
        ("fitted", "--calibrate", rows, "--save-imatrix", "i.gguf"),
        ("again", "--imatrix", "i.gguf"),
        ("plain",),
    ):
        told = fabric(*line, *flags, "-o", f"{name}.gguf", cwd=tmp_path)
        assert told.code == 0, told.err
    with contextlib.ExitStack() as stack:
        files = {
            n: stack.enter_context(GGUF.open(tmp_path / f"{n}.gguf")) for n in ("m", "fitted", "again", "plain", "i")
        }
        for name in ("blk.0.ffn_gate_exps.weight", "blk.1.ffn_down_exps.weight"):
            weights = {n: decode_tensor(file, name) for n, file in files.items() if n != "i"}
            used = decode_tensor(files["i"], f"{name}.in_sum2")
            assert used.shape == (8, weights["m"].shape[-1]) and (used == used[0]).all()
            plain, fitted = ((used[0] * np.square(weights[n] - weights["m"])).sum() for n in ("plain", "fitted"))
            assert fitted < 0.99 * plain, name
            assert (weights["again"] == weights["fitted"]).all()


def test_importance_that_does_not_fit_is_refused(wide: Path, tiny: Path, rows: Path, tmp_path: Path) -> None:
    made = fabric(
        "quantize", tiny, "--calibrate", rows, "--save-imatrix", tmp_path / "i.gguf", "-o", tmp_path / "q.gguf"
    )
    assert made.code == 0, made.err
    out = ("-o", tmp_path / "never.gguf")
    one_sentence(fabric("quantize", wide, "--imatrix", tmp_path / "i.gguf", *out), 65, "i.gguf", "another shape")
    one_sentence(fabric("quantize", wide, "--imatrix", tiny, *out), 65, "importance matrix")
    one_sentence(fabric("quantize", wide, "--imatrix", tmp_path / "i.gguf", "--calibrate", rows, *out), 2, "--imatrix")
    one_sentence(fabric("quantize", wide, "--save-imatrix", tmp_path / "j.gguf", *out), 2, "--calibrate")
    one_sentence(fabric("quantize", wide, "--tensor", "blk.9.*=q4_0", *out), 2, "blk.9.*")
    one_sentence(fabric("quantize", tiny, "--tensor", "blk.0.*=q4_k", *out), 2, "blk.0.*", "64", "Q4_K")
    one_sentence(fabric("quantize", wide, "--tensor", "blk.0.*", *out), 2, "GLOB=TYPE")
    one_sentence(fabric("quantize", wide, "--tensor", "blk.0.*=q9", *out), 2, "q9")
    assert not (tmp_path / "never.gguf").exists()


def test_merging_into_blocks_says_what_each_matrix_lost(wide: Path, rows: Path, tmp_path: Path) -> None:
    run = (
        "--steps",
        "2",
        "--rank",
        "2",
        "--ctx",
        "64",
        "--batch",
        "4",
        "--modules",
        "attn_q",
        "--run-dir",
        tmp_path / "r",
    )
    assert fabric("train", rows, "-m", wide, "-o", tmp_path / "a.gguf", *run).code == 0
    two = ("-a", f"{tmp_path / 'a.gguf'}=0.5", "-a", tmp_path / "a.gguf")
    told = fabric("merge", "-m", wide, *two, "--type", "q4_k_m", "--errors", "-o", tmp_path / "m.gguf")
    assert told.code == 0, told.err
    errors = lost(told.err)
    assert errors["blk.0.attn_q.weight"] > 1 and errors["token_embd.weight"] < errors["blk.0.attn_q.weight"]
    report = json.loads(fabric("merge", "-m", wide, *two, "--json", "-o", tmp_path / "m.gguf").out)
    changed = [row["name"] for row in report["tensors"] if row["changed"]]
    assert changed == ["blk.0.attn_q.weight", "blk.1.attn_q.weight"]
    assert all(row["relative_rmse"] > 0 for row in report["tensors"] if row["changed"])
