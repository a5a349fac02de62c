"""`--modules`: its names are those of the model's own linear layers, and `all` leaves none of them out."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="the small models are written by the gguf package")

from fabric.core import Device, Routing, Tensor
from fabric.models import architecture_of, architectures
from fabric.models.recorder import PRODUCT, Recorder, Weights
from fabric.training.parameters import lora_layout
from fabric.training.settings import ALL
from fabric.weights.gguf import GGUF
from tests.cli.shell import fabric, one_sentence
from tests.support.random_models import write_model
from tests.support.shapes import SMALL


class Listening(Recorder):
    """Lists the linear layers that a model records."""

    def linear(
        self, x: Tensor, name: str, residual: Tensor = -1, scaled: str = PRODUCT, rows: range | None = None,
        bias: str = "",
    ) -> Tensor:  # fmt: skip
        """As in a Recorder."""
        self.linears = getattr(self, "linears", set()) | {f"{name}.weight"}
        return super().linear(x, name, residual, scaled, rows, bias)

    def route(self, x: Tensor, name: str, used: int) -> Routing:
        """As in a Recorder."""
        self.linears |= {f"{name}.weight"}
        return super().route(x, name, used)

    def experts(self, x: Tensor, name: str, routing: Routing) -> Tensor:
        """As in a Recorder."""
        self.linears |= {f"{name}.weight"}
        return super().experts(x, name, routing)


@pytest.mark.parametrize("name", architectures())
def test_all_modules_are_every_linear_layer_of_the_model(name: str, tmp_path: Path) -> None:
    with (
        GGUF.open(write_model(tmp_path / "m.gguf", SMALL[name])) as gguf,
        contextlib.closing(Device("cpu", threads=1)) as device,
        contextlib.closing(Weights(gguf, device)) as weights,
    ):
        recorder, arch = Listening(weights, 1, 1, "f32", {}), architecture_of(gguf)
        arch.build(recorder, arch.read_config(gguf))
        recorder.graph.close()
        slots = {slot.name for slot in lora_layout(gguf, (ALL,), 2).slots}
        assert slots == {f"{linear}.lora_{part}" for linear in recorder.linears for part in "ab"}


def test_experts_train_where_they_are_asked_for(tmp_path: Path) -> None:
    model, rows = write_model(tmp_path / "m.gguf", SMALL["qwen3moe"], "Q8_0"), tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "the quick brown fox", "completion": " jumps over the lazy dog"}) + "\n")
    train = ("train", rows, "-m", model, "--steps", "1", "--rank", "2", "-q")
    for asked, wanted in (((), "attn_"), (("--modules", "ffn"), "ffn_"), (("--modules", "all"), "")):
        out = tmp_path / f"{len(asked)}{wanted}.gguf"
        ended = fabric(*train, *asked, "-o", out, "--run-dir", tmp_path / f"run{len(asked)}{wanted}")
        assert ended.code == 0, ended.err
        with GGUF.open(out) as adapter:
            modules = {name.split(".")[2] for name in adapter.tensors}
            assert all(module.startswith(wanted) for module in modules)
            assert len(modules) == {"attn_": 4, "ffn_": 3, "": 8}[wanted]
            if wanted != "attn_":
                assert adapter.tensors["blk.1.ffn_down_exps.weight.lora_a"].shape == (8, 2, 32)
                assert adapter.tensors["blk.1.ffn_down_exps.weight.lora_b"].shape == (8, 64, 2)


def test_modules_go_by_the_names_that_the_model_has(tmp_path: Path) -> None:
    model, out = write_model(tmp_path / "m.gguf", SMALL["phi3"], "Q8_0"), tmp_path / "a.gguf"
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "the quick brown fox", "completion": " jumps over the lazy dog"}) + "\n")
    train = ("train", rows, "-m", model, "-o", out, "--steps", "1", "--run-dir", tmp_path / "run", "-q")
    one_sentence(fabric(*train, "--modules", "attn_q"), 2, "'attn_q'", "phi3", "attn_qkv")
    one_sentence(fabric(*train, "--modules", "attn_qkv,"), 2, "--modules")
    assert not out.exists()
    ended = fabric(*train, "--modules", "attn,ffn_up,output")
    assert ended.code == 0, ended.err
    with GGUF.open(out) as adapter:
        modules = {name.removeprefix("blk.0.").removeprefix("blk.1.").partition(".")[0] for name in adapter.tensors}
        assert modules == {"attn_qkv", "attn_output", "ffn_up", "output"}
        assert adapter.tensors["blk.0.attn_qkv.weight.lora_b"].shape == (128, 16)
