"""Mixes: which matrix gets which type is what stock llama.cpp does, and stock loads the file and sees the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fabric.core.blocks import decode
from fabric.errors import UsageError
from fabric.weights.adapter import Adapter, LoraPair, write_adapter
from fabric.weights.formats import type_name
from fabric.weights.gguf import GGUF, TensorSpec, decode_tensor, write_gguf
from fabric.weights.merge import merge
from fabric.weights.mix import MIXES, choose_type, parse_mix
from fabric.weights.quantize import quantize
from fabric.weights.rewrite import is_matrix
from fabric.weights.settings import AdapterInput, MergeSettings, QuantizeSettings
from tests.parity import ours
from tests.support import llama_cpp
from tests.support.compare import mean_kl, mean_nll, relative_error
from tests.support.decoded import decoded_copy
from tests.support.paths import gemma3, smollm2
from tests.support.random_models import random_pairs, write_model
from tests.support.shapes import Shape

SHAPE = Shape(hidden=512, layers=2, heads=8, kv_heads=2, head_dim=64, ffn=1024)
stock = pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed")

PROSE = (
    "The harbour wakes before the sun does. Ropes creak, a kettle whistles in the lock-keeper's kitchen, and the first "
    "ferry noses out through the mist with its lamps still lit. By seven the market is open: herring on ice, loaves "
    "stacked like bricks, children who should be at school asking what an eel costs. Nobody in this town has ever been "
    "able to say why the clock on the customs house runs eleven minutes late, and nobody has ever corrected it."
)


def layers(blocks: int, mix: str, shape: tuple[int, int] = (64, 256)) -> dict[str, dict[str, list[int]]]:
    """By matrix, which blocks get which type, in a model of so many blocks without any weights."""

    names = [f"blk.{i}.{role}.weight" for i in range(blocks) for role in ("attn_v", "attn_qkv", "ffn_down", "ffn_up")]
    model = SimpleNamespace(tensors={name: SimpleNamespace(name=name, shape=shape) for name in names})
    found: dict[str, dict[str, list[int]]] = {}
    for name, info in model.tensors.items():
        _, block, role, _ = name.split(".")
        type, _ = choose_type(model, info, parse_mix(mix))  # type: ignore[arg-type]
        found.setdefault(role, {}).setdefault(type_name(type), []).append(int(block))
    return found


def test_more_bits_go_where_stock_llama_cpp_puts_them() -> None:
    spread = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]  # of a Llama of 32 blocks
    rest = [i for i in range(32) if i not in spread]
    for mix, base in (("q4_k_m", "Q4_K"), ("q5_k_m", "Q5_K")):
        found = layers(32, mix)
        assert found["attn_v"] == found["ffn_down"] == {"Q6_K": spread, base: rest}
        assert found["ffn_up"] == {base: [*range(32)]}
        assert found["attn_qkv"] == {"Q5_K" if base == "Q4_K" else "Q6_K": [*range(32)]}
    found = layers(32, "q4_k_s")
    assert found["attn_v"] == found["ffn_down"] == {"Q5_K": [0, 1, 2, 3], "Q4_K": [*range(4, 32)]}
    assert layers(16, "q4_k_s")["ffn_down"]["Q5_K"] == [0, 1]
    assert found["attn_qkv"] == {"Q4_K": [*range(32)]}
    assert layers(32, "q5_k_s")["attn_v"] == {"Q5_K": [*range(32)]}
    assert set(layers(80, "q4_k_m")["attn_v"]) == {"Q5_K", "Q6_K"}  # few values for many heads
    assert set(layers(80, "q4_k_m", (256, 256))["attn_v"]) == {"Q4_K", "Q6_K"}


def test_every_matrix_of_a_file_that_stock_llama_cpp_made_would_get_its_type_again() -> None:
    with GGUF.open(gemma3()) as model:
        for info in model.tensors.values():
            if is_matrix(info):
                type, _ = choose_type(model, info, parse_mix("q4_k_m"))
                assert type_name(type) == info.type_name, info.name


@pytest.mark.parametrize(
    ("mix", "types"),
    [
        ("q4_k_m", {"attn_q": "Q5_0", "attn_v": "Q8_0", "token_embd": "Q8_0"}),
        ("q5_k_m", {"attn_q": "Q5_1", "attn_v": "Q8_0", "token_embd": "Q8_0"}),
        ("q4_k_s", {"attn_q": "Q5_0", "attn_v": "Q5_1", "token_embd": "Q8_0"}),
        ("q6_k", {"attn_q": "Q8_0", "attn_v": "Q8_0", "token_embd": "Q8_0"}),
    ],
)
def test_rows_of_no_whole_super_blocks_get_shorter_blocks(mix: str, types: dict[str, str], tmp_path: Path) -> None:
    base = write_model(tmp_path / "m.gguf", Shape(layers=1), "F32")
    result = quantize(QuantizeSettings(str(base), str(tmp_path / "q.gguf"), mix))
    rows = {report.name: report for report in result.tensors}
    for module, want in types.items():
        name = "token_embd.weight" if module == "token_embd" else f"blk.0.{module}.weight"
        assert rows[name].to_type == want
        assert rows[name].fallback
    assert rows["blk.0.attn_norm.weight"].fallback is None


def test_heads_get_q6_k_and_an_embedding_beside_one_the_type_asked_for(tmp_path: Path) -> None:
    for tied, kind, want in ((True, "q4_k_m", "Q6_K"), (False, "q4_k_m", "Q4_K"), (True, "q4_0", "Q6_K")):
        base = write_model(tmp_path / "m.gguf", Shape(hidden=256, layers=1, head_dim=64, tied=tied), "F32")
        quantize(QuantizeSettings(str(base), str(tmp_path / "q.gguf"), kind))
        with GGUF.open(tmp_path / "q.gguf") as model:
            assert model.tensors["token_embd.weight"].type_name == want
            assert tied or model.tensors["output.weight"].type_name == "Q6_K"


def test_merge_writes_mixes_and_keeps_those_that_are_there(tmp_path: Path) -> None:
    base = write_model(tmp_path / "m.gguf", SHAPE, "F32")
    with (tmp_path / "a.gguf").open("wb") as out:
        pairs = {name: LoraPair(a, b) for name, (a, b) in random_pairs(SHAPE, b_std=0.1, modules=("attn_v",)).items()}
        write_adapter(out, Adapter("llama", 8.0, pairs))
    adapters = (AdapterInput(str(tmp_path / "a.gguf")),)
    merge(MergeSettings(str(base), adapters, str(tmp_path / "q.gguf"), "q4_k_m"))
    merge(MergeSettings(str(tmp_path / "q.gguf"), adapters, str(tmp_path / "kept.gguf"), "keep"))
    with GGUF.open(tmp_path / "q.gguf") as mixed, GGUF.open(tmp_path / "kept.gguf") as kept:
        assert mixed.get("general.file_type", int) == kept.get("general.file_type", int) == 15
        assert mixed.tensors["blk.0.attn_q.weight"].type_name == "Q4_K"
        assert [info.type for info in mixed.tensors.values()] == [info.type for info in kept.tensors.values()]
        for name in mixed.tensors:
            assert (mixed.data(name) == kept.data(name)) == ("attn_v" not in name)
    iq4 = write_model(tmp_path / "i.gguf", SHAPE, {"default": "F16", "attn_v": "IQ4_NL"})
    with pytest.raises(UsageError, match=r"blk\.0\.attn_v\.weight is IQ4_NL, which cannot be written"):
        merge(MergeSettings(str(iq4), adapters, str(tmp_path / "no.gguf"), "keep"))


# ---- stock llama.cpp ----


@stock
@pytest.mark.parametrize("mix", MIXES)
def test_stock_llama_cpp_sees_in_a_mixed_file_what_we_see(mix: str, tmp_path: Path) -> None:
    """On an F32 copy of the blocks; on the file itself stock rounds activations too, and strays from both alike."""
    base, mixed = write_model(tmp_path / "m.gguf", SHAPE, "F32"), tmp_path / "q.gguf"
    quantize(QuantizeSettings(str(base), str(mixed), mix))
    tokens = [int(t) for t in np.random.default_rng(0).integers(3, SHAPE.vocab, 60)]
    got = ours.logits(mixed, tokens, threads=1)
    with llama_cpp.Llama(decoded_copy(mixed, tmp_path / "d.gguf"), threads=1) as plain:
        truth = plain.logits(tokens)
    with llama_cpp.Llama(mixed, threads=1) as rounding:
        theirs = rounding.logits(tokens)
    assert relative_error(got, truth) < 1e-3
    assert mean_kl(theirs, got) < max(1e-3, 1.05 * mean_kl(theirs, truth))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """SmolLM2 in Q4_K_M: ours, and a file of the same types whose blocks stock encoded."""
    folder = tmp_path_factory.mktemp("mixed")
    mine, theirs = folder / "ours.gguf", folder / "stock.gguf"
    quantize(QuantizeSettings(str(smollm2()), str(mine), "q4_k_m"))
    with GGUF.open(smollm2()) as source, GGUF.open(mine) as model, theirs.open("wb") as out:

        def blocks() -> Iterator[bytes | memoryview]:
            for info in model.tensors.values():
                if info.type == source.tensors[info.name].type:
                    yield source.data(info.name)
                else:
                    yield llama_cpp.encode(info.type, decode_tensor(source, info.name), info.nbytes, None)

        specs = [TensorSpec(info.name, info.type, info.shape) for info in model.tensors.values()]
        write_gguf(out, model.raw_metadata, specs, blocks())
    yield mine, theirs
    mine.unlink(), theirs.unlink()


@stock
def test_no_matrix_of_smollm2_loses_more_than_in_stock_llama_cpp(mixed: tuple[Path, Path]) -> None:
    kinds = set()
    with GGUF.open(smollm2()) as source, GGUF.open(mixed[0]) as mine, GGUF.open(mixed[1]) as theirs:
        for info in mine.tensors.values():
            want = decode_tensor(source, info.name).reshape(-1)
            off = [
                float(np.sqrt(np.square(decode(info.type, model.data(info.name), want.size) - want).mean()))
                for model in (mine, theirs)
            ]
            kinds.add(info.type_name)
            assert off[0] <= 1.02 * off[1], info.name
    assert {"Q4_K", "Q6_K", "Q5_0", "Q8_0"} <= kinds


@stock
def test_smollm2_in_q4_k_m_is_no_worse_than_stock_llama_cpps(mixed: tuple[Path, Path]) -> None:
    with llama_cpp.Llama(mixed[0], threads=1) as llama:
        tokens = llama.tokenize(PROSE)
    mine, theirs = (mean_nll(ours.logits(path, tokens, threads=1), tokens) for path in mixed)
    assert np.exp(mine) < 1.01 * np.exp(theirs)
