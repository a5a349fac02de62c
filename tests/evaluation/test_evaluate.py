from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fabric.errors import DataError, UsageError
from fabric.evaluation.evaluate import evaluate
from fabric.evaluation.settings import EvalReport, EvalSettings
from fabric.evaluation.statistics import even_chance
from fabric.weights.adapter import Adapter, LoraPair, write_adapter
from fabric.weights.settings import AdapterInput
from tests.cli.shell import fabric
from tests.evaluation.conftest import Writer
from tests.parity import ours
from tests.support.compare import log_softmax
from tests.support.paths import shared, smollm2

AdapterMaker = Callable[..., AdapterInput]


def token_rows(count: int = 9) -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(count):
        n = int(rng.integers(4, 60))
        first = int(rng.integers(1, n))
        rows.append({"tokens": rng.integers(3, 320, n).tolist(), "train": [int(i >= first) for i in range(n)]})
    return rows


def run(data: str, model: str, **settings: Any) -> EvalReport:
    return evaluate(EvalSettings(data, model, **{"device": "cpu", "precision": "f32", "threads": 2, **settings}))


def test_the_loss_is_what_the_logits_say(model: str, rows_file: Writer) -> None:
    rows = token_rows()
    total, count = 0.0, 0
    for row in rows:
        scores = log_softmax(ours.logits(model, row["tokens"]))
        at = [i for i in range(1, len(row["tokens"])) if row["train"][i]]
        total -= sum(float(scores[i - 1, row["tokens"][i]]) for i in at)
        count += len(at)
    report = run(rows_file("r.jsonl", rows), model)
    assert report.trained_tokens == count
    assert report.tokens == sum(len(row["tokens"]) for row in rows)
    assert report.score.loss == pytest.approx(total / count, rel=1e-5)
    assert report.score.perplexity == pytest.approx(math.exp(total / count), rel=1e-4)


@pytest.mark.parametrize("ctx", [60, 128, 512])
def test_packed_rows_score_as_rows_alone_do(ctx: int, model: str, rows_file: Writer) -> None:
    rows = token_rows()
    alone = [run(rows_file(f"{i}.jsonl", [row]), model) for i, row in enumerate(rows)]
    total = sum(report.score.loss * report.trained_tokens for report in alone)
    together = run(rows_file("all.jsonl", rows), model, ctx=ctx)
    assert together.score.loss * together.trained_tokens == pytest.approx(total, rel=1e-5)


def test_compare_tells_base_and_tuned_in_one_run(model: str, rows_file: Writer, adapter: AdapterMaker) -> None:
    data, tuned = rows_file("r.jsonl", token_rows()), adapter(b_std=0.2)
    both = run(data, model, adapters=(tuned,), compare=True)
    assert both.base == run(data, model).score
    assert both.score == run(data, model, adapters=(tuned,)).score
    assert both.score.loss != pytest.approx(both.base.loss, rel=1e-3)
    assert both.to_json()["base"]["perplexity"] == both.base.perplexity


def test_each_adapter_is_held_against_the_base_row_by_row(model: str, rows_file: Writer, adapter: AdapterMaker) -> None:
    rows = token_rows()
    data, tuned = rows_file("r.jsonl", rows), (adapter(b_std=0.2), adapter(b_std=0.0), adapter(b_std=0.2, scale=0.5))
    report = run(data, model, adapters=tuned, compare=True)
    assert report.base is not None and [a.name for a in report.adapters][2] == f"{tuned[2].path}=0.5"
    for given, found in zip(tuned, report.adapters, strict=True):
        assert found.score == run(data, model, adapters=(given,)).score
        paired = found.against_base
        assert paired.loss_difference == pytest.approx(found.score.loss - report.base.loss, abs=1e-9)
        assert paired.loss_interval[0] <= paired.loss_difference <= paired.loss_interval[1]
    assert report.score == report.adapters[0].score
    alone = [run(rows_file(f"{i}.jsonl", [row]), model, adapters=tuned[:1], compare=True) for i, row in enumerate(rows)]
    better = sum(one.score.loss < one.base.loss for one in alone if one.base)
    paired = report.adapters[0].against_base
    assert (paired.better, paired.worse) == (better, len(rows) - better)
    assert paired.loss_p == pytest.approx(even_chance(better, len(rows) - better))
    nothing = report.adapters[1].against_base
    assert (nothing.loss_p, nothing.gained) == (1.0, None)


def test_what_each_model_made_of_each_row_comes_as_rows(
    model: str, rows_file: Writer, adapter: AdapterMaker, tmp_path: Path
) -> None:
    asked = [{"prompt": f"the {word}", "completion": f" {label}.", "label": label}
             for word, label in (("fox", "is"), ("dog", "in"), ("cat", "is"))]  # fmt: skip
    data, tuned, out = rows_file("r.jsonl", [*asked, {"text": "the old man"}]), adapter(), tmp_path / "rows.jsonl"
    flags = ["--compare", "--precision", "f32", "--json", "--rows", str(out)]
    done = fabric("eval", data, "-m", model, "-a", tuned.path, *flags)
    assert done.code == 0, done.err
    told, rows = json.loads(done.out), [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["row"] for row in rows] == [f"{data}:{n}" for n in range(1, 5)]
    count = sum(row["trained_tokens"] for row in rows)
    assert count == told["trained_tokens"]
    for name, score in (("base", told["base"]), (tuned.path, told["adapters"][0])):
        assert sum(row["trained_tokens"] * row["loss"][name] for row in rows) == pytest.approx(count * score["loss"])
        right = sum(row["chosen"][name] == row["label"] for row in rows[:3])
        assert right == round(score["accuracy"] * 3)
    assert "label" not in rows[3]
    piped = fabric("eval", data, "-m", model, "--rows", "-")
    assert len(piped.out.splitlines()) == 4 and "perplexity" in piped.err


def test_windows_of_llama_cpp_score_their_second_halves(model: str, rows_file: Writer) -> None:
    text = "the quick brown fox and the old man with his cat. " * 9
    data = rows_file("t.jsonl", [{"text": text}, {"text": "the fox"}])
    report = run(data, model, ctx=32, llama_perplexity=True)
    windows = report.tokens // 32
    assert windows > 3 and report.tokens == 32 * windows and report.trained_tokens == 15 * windows
    assert (report.rows, report.nothing_to_train) == (2, 1)
    with pytest.raises(DataError, match=r"p.jsonl:1: --llama-perplexity is of text rows"):
        run(rows_file("p.jsonl", [{"prompt": "a", "completion": "b"}]), model, llama_perplexity=True)
    with pytest.raises(UsageError):
        run(data, model, llama_perplexity=True, stride=8, ctx=32)


def test_an_adapter_that_changes_nothing_scores_as_the_base(
    model: str, rows_file: Writer, adapter: AdapterMaker
) -> None:
    report = run(rows_file("r.jsonl", token_rows()), model, adapters=(adapter(b_std=0.0),), compare=True)
    assert report.base is not None
    assert report.score.loss == pytest.approx(report.base.loss, rel=1e-6)


def test_scales_and_several_adapters_add_up(model: str, rows_file: Writer, adapter: AdapterMaker) -> None:
    data = rows_file("r.jsonl", token_rows())
    doubled = run(data, model, adapters=(adapter(times=2.0),)).score.loss
    assert run(data, model, adapters=(adapter(scale=2.0),)).score.loss == pytest.approx(doubled, rel=1e-5)
    twice = (adapter(scale=1.5), adapter(scale=0.5))
    assert run(data, model, adapters=twice).score.loss == pytest.approx(doubled, rel=1e-5)
    parts = (adapter(times=2.0, layers=1), adapter(times=2.0), adapter(times=2.0, layers=1, scale=-1.0))
    assert run(data, model, adapters=parts).score.loss == pytest.approx(doubled, rel=1e-5)


@pytest.mark.parametrize("stride", [None, 8, 31])
def test_every_token_of_a_text_is_scored_once(stride: int | None, model: str, rows_file: Writer) -> None:
    text = "the quick brown fox and the old man with his cat. " * 9
    whole = run(rows_file("t.jsonl", [{"text": text}]), model, ctx=512)
    windows = run(rows_file("t.jsonl", [{"text": text}, {"text": ""}]), model, ctx=32, stride=stride)
    assert windows.trained_tokens == whole.trained_tokens == whole.tokens - 1
    assert windows.tokens > whole.tokens
    assert (windows.rows, windows.cut, windows.nothing_to_train) == (2, 0, 1)


def test_rows_that_are_cut_or_empty_are_counted_and_told(model: str, rows_file: Writer) -> None:
    rows = [
        {"prompt": "the dog", "completion": " is in the house on the hill with the old man and his cat"},
        {"messages": [{"role": "user", "content": "is it?"}]},
        {"prompt": "fox", "completion": " it is"},
    ]
    report = run(rows_file("r.jsonl", rows), model, ctx=16)
    assert (report.rows, report.cut, report.nothing_to_train) == (3, 1, 1)
    assert any("1 of 3 rows cut" in note for note in report.notes)
    assert any("1 of 3 rows left out" in note for note in report.notes)
    with pytest.raises(DataError, match="none of 1 rows has anything to score"):
        run(rows_file("r.jsonl", rows[1:2]), model)


def test_progress_ends_at_all_tokens(model: str, rows_file: Writer, adapter: AdapterMaker) -> None:
    seen: list[tuple[int, int]] = []
    settings = EvalSettings(
        rows_file("r.jsonl", token_rows()), model, adapters=(adapter(),), compare=True, ctx=64, threads=2, device="cpu"
    )
    report = evaluate(settings, lambda done, total: seen.append((done, total)))
    assert len(seen) > 4 and seen[-1] == (2 * report.tokens, 2 * report.tokens)
    assert sorted(seen) == seen


def test_settings_that_make_no_sense_are_refused(model: str, rows_file: Writer) -> None:
    data = rows_file("r.jsonl", token_rows(2))
    for wrong in ({"compare": True}, {"ctx": 1}, {"stride": 512}, {"labels": ("Yes",)}, {"labels": ("a", "a")}):
        with pytest.raises(UsageError):
            run(data, model, **wrong)


def test_an_adapter_of_another_base_or_a_broken_one_is_refused(
    model: str, rows_file: Writer, adapter: AdapterMaker, tmp_path: Path
) -> None:
    data = rows_file("r.jsonl", token_rows(2))
    path = tmp_path / "other.gguf"
    pair = LoraPair(np.ones((2, 32), np.float32), np.ones((64, 2), np.float32))
    with path.open("wb") as out:
        write_adapter(out, Adapter("llama", 1.0, {"blk.0.attn_q.weight": pair}))
    with pytest.raises(DataError, match="of another base"):
        run(data, model, adapters=(AdapterInput(str(path)),))
    with pytest.raises(DataError, match="not a number"):
        run(data, model, adapters=(adapter(scale=1e38),))


def test_the_base_figures_of_the_quality_table(rows_file: Writer) -> None:
    source = shared("data/biomedical_qa/validation.jsonl")
    report = run(rows_file("v.jsonl", biomedical_rows(source)), str(smollm2()))
    assert report.trained_tokens == 999
    assert report.score.loss == pytest.approx(3.685, abs=1e-3)
    assert report.score.accuracy is not None
    assert (report.score.accuracy.rows, report.score.accuracy.right) == (33, 11)
    assert report.score.accuracy.majority == pytest.approx(1 / 3)


def biomedical_rows(path: Path) -> list[dict[str, Any]]:
    """As tests/parity/README.md has them."""
    rows = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        head = f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n"
        text = head + row["text"].split("\nA: ", 1)[1] + "<|im_end|>\n"
        rows.append({"text": text, "train": [[len(head), len(text)]], "label": row["label"]})
    return rows
