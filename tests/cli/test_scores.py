"""What `eval` tells of labels, computed anew from what it says of each row: as JSON, as text and as Markdown."""

from __future__ import annotations

import json
from math import comb
from pathlib import Path

import pytest

from tests.cli.shell import fabric


@pytest.fixture(scope="module")
def tuned(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that has learned to write labels."""
    folder = tmp_path_factory.mktemp("tuned")
    flags = ["--steps", "30", "--lr", "2e-2", "--ctx", "64", "--batch", "12", "--run-dir", folder / "run", "-q"]
    assert fabric("train", rows, "-m", tiny, "-o", folder / "tuned.gguf", *flags).code == 0
    return folder / "tuned.gguf"


@pytest.mark.parametrize("how", ["likelihood", "generated"])
def test_accuracy_and_its_tests_are_those_of_the_rows(
    how: str, tiny: Path, rows: Path, adapter: Path, tuned: Path, tmp_path: Path
) -> None:
    line = ["eval", rows, "-m", tiny, "-a", adapter, "-a", tuned, "--compare", "--accuracy", how]
    done = fabric(*line, "--json", "--rows", tmp_path / "rows.jsonl")
    assert done.code == 0, done.err
    told, scores = json.loads(done.out), [json.loads(row) for row in (tmp_path / "rows.jsonl").read_text().splitlines()]
    right = {name: [row["chosen"][name] == row["label"] for row in scores] for name in ("base", *map(str, line[5:8:2]))}
    assert sum(right[str(tuned)]) > 6, "the model learned nothing: the test shows nothing"
    for name, found in (("base", told["base"]), *((a["name"], a) for a in told["adapters"])):
        assert found["accuracy"] == pytest.approx(sum(right[name]) / 12)
        chosen, labels = [row["chosen"][name] for row in scores], [row["label"] for row in scores]
        f1 = []
        for label in ("Even", "Odd"):
            pairs = list(zip(labels, chosen, strict=True))
            for other, count in found["confusion"][label].items():
                assert count == pairs.count((label, other))
            both = pairs.count((label, label))
            f1.append(2 * both / (labels.count(label) + chosen.count(label)))
        assert found["macro_f1"] == pytest.approx(sum(f1) / 2)
        assert found["majority"] == 0.5
    for found in told["adapters"]:
        pairs = list(zip(right["base"], right[found["name"]], strict=True))
        gained, lost = pairs.count((False, True)), pairs.count((True, False))
        paired = found["against_base"]
        assert (paired["gained"], paired["lost"]) == (gained, lost)
        tail = sum(comb(gained + lost, i) for i in range(min(gained, lost) + 1)) / 2 ** (gained + lost)
        assert paired["accuracy_p"] == pytest.approx(min(1, 2 * tail))
        better = sum(row["loss"][found["name"]] < row["loss"]["base"] for row in scores)
        assert (paired["better"], paired["worse"]) == (better, 12 - better)
    markdown = fabric(*line, "--markdown").out.decode()
    best = told["adapters"][1]
    assert f"| {best['macro_f1']:.3f} |" in markdown and "| --- | ---: |" in markdown
    assert f"{100 * best['accuracy']:.1f} % ({sum(right[str(tuned)])} of 12)" in markdown
