from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fabric.errors import DataError
from fabric.evaluation.evaluate import evaluate
from fabric.evaluation.labels import LabelledRow, LabelTest
from fabric.evaluation.scoring import Choice
from fabric.evaluation.settings import EvalReport, EvalSettings
from fabric.evaluation.ties import spread, ties_within
from fabric.generation.generate import generate
from fabric.generation.settings import GenerateSettings
from fabric.text.tokenizer import Tokenizer
from fabric.weights.gguf import GGUF
from fabric.weights.settings import AdapterInput
from tests.cli.shell import fabric
from tests.evaluation.conftest import Writer
from tests.parity import ours
from tests.support.compare import log_softmax

WORDS = ["the fox", "the dog", "the old man", "then", "this house", "0", "cat"]


def questions(count: int, answer: str, labels: list[str]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(8)
    rows = []
    for i in range(count):
        asked = " ".join(rng.choice(["quick", "brown", "fox", "lazy", "dog", "house", "hill", "cat", "man"], 5))
        label = labels[i % len(labels)]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer.format(label)}]
        rows.append({"messages": messages, "label": label})
    return rows


def run(data: str, model: str, **settings: Any) -> EvalReport:
    return evaluate(EvalSettings(data, model, device="cpu", precision="f32", threads=2, **settings))


@pytest.mark.parametrize(("answer", "ending"), [("{}", None), ("{}. Because it is.", "."), ("{} as it is", "")])
def test_the_chosen_label_is_the_likeliest_when_each_is_written_out(
    answer: str, ending: str | None, model: str, rows_file: Writer
) -> None:
    labels = WORDS[:5] if ending == "" else ["1", "10", "100", "2"]
    rows = questions(12, answer, labels)
    with GGUF.open(model) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf.metadata)
    chosen: list[str] = []
    for row in rows:
        prompt = f"<|im_start|>user\n{row['messages'][0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        costs = []
        for label in labels:
            head, ids = tokenizer.encode(prompt, special=True), tokenizer.encode(label + (ending or ""))
            ids += [tokenizer.eos_id] if ending is None and tokenizer.eos_id is not None else []
            scores = log_softmax(ours.logits(model, head + ids))
            costs.append(-sum(float(scores[len(head) - 1 + i, token]) for i, token in enumerate(ids)))
        chosen.append(labels[int(np.argmin(costs))])
    accuracy = run(rows_file("r.jsonl", rows), model).score.accuracy
    assert accuracy is not None
    assert {label: count.chosen for label, count in accuracy.labels.items()} == {
        label: chosen.count(label) for label in labels
    }
    assert accuracy.right == sum(row["label"] == pick for row, pick in zip(rows, chosen, strict=True))
    assert accuracy.majority == max(sum(row["label"] == label for row in rows) for label in labels) / len(rows)


def test_labels_that_begin_alike_run_together() -> None:
    choice = Choice((1, 2, 3), [(4, 5, 6), (4, 5, 7, 8), (4, 9), (4, 5, 7), (10,)])
    assert choice.heads == [(4, 5, 7)]
    assert choice.tokens == 6
    assert choice.after((4, 5)) == [6, 7] and choice.after(()) == [4, 10]


def test_rows_side_by_side_choose_as_rows_alone_do(model: str, rows_file: Writer) -> None:
    data = rows_file("r.jsonl", questions(12, "{}. Because it is.", list("12345")))
    expected = run(data, model).score.accuracy
    assert expected is not None and sum(count.chosen > 0 for count in expected.labels.values()) > 1
    for ctx in (64, 130):  # one prompt a feed, and a few
        assert run(data, model, ctx=ctx).score.accuracy == expected


@pytest.mark.parametrize("kind", ["completion", "rendered", "tokens"])
def test_rows_of_every_kind_can_carry_a_label(kind: str, model: str, rows_file: Writer) -> None:
    with GGUF.open(model) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf.metadata)
    rows: list[dict[str, Any]] = []
    for label in ("this", "that", "this"):
        prompt, answer = "the fox and the dog:", f" {label}, it is"
        if kind == "completion":
            row: dict[str, Any] = {"prompt": prompt, "completion": answer}
        elif kind == "rendered":
            row = {"text": prompt + answer, "train": [[len(prompt), len(prompt + answer)]]}
        else:
            head, tail = tokenizer.encode(prompt), tokenizer.encode(answer)
            row = {"tokens": head + tail, "train": [0] * len(head) + [1] * len(tail)}
        rows.append({**row, "label": label})
    accuracy = run(rows_file("r.jsonl", rows), model).score.accuracy
    assert accuracy is not None and accuracy.rows == 3 and accuracy.majority == pytest.approx(2 / 3)
    assert accuracy.right in (1, 2)  # the prompts are equal, so one label is chosen for all


def test_labels_that_cannot_be_scored_are_told_and_do_not_stop_the_loss(model: str, rows_file: Writer) -> None:
    rows = questions(6, "{}. It is.", ["this", "that"])
    rows[0]["label"], rows[1]["label"], rows[2]["label"] = "th", 3, "fox"
    report = run(rows_file("r.jsonl", rows), model)
    assert report.score.accuracy is not None and report.score.accuracy.rows == 3
    assert any("3 of 6 rows have a label" in note for note in report.notes)
    one = run(rows_file("one.jsonl", questions(3, "{}. It is.", ["this"])), model)
    assert one.score.accuracy is None and any("every label is 'this'" in note for note in one.notes)
    many = run(rows_file("many.jsonl", questions(70, "{}. It is.", [f"{i}x" for i in range(70)])), model)
    assert many.score.accuracy is None and any("70 different labels" in note for note in many.notes)
    unlabelled = run(rows_file("none.jsonl", [{"text": "the fox", "label": "the"}]), model)
    assert unlabelled.score.accuracy is None and "accuracy" not in unlabelled.to_json()


def test_the_labels_asked_for_are_the_choice(model: str, rows_file: Writer) -> None:
    data = rows_file("r.jsonl", questions(6, "{}. It is.", ["this", "that", "then"]))
    accuracy = run(data, model, labels=("this", "that", "what")).score.accuracy
    assert accuracy is not None and accuracy.rows == 4
    assert list(accuracy.labels) == ["this", "that", "what"] and accuracy.labels["what"].rows == 0
    with pytest.raises(DataError, match="no row has one of the labels"):
        run(data, model, labels=("fox", "dog"))


def test_a_label_that_begins_another_is_told(model: str, rows_file: Writer) -> None:
    report = run(rows_file("r.jsonl", questions(4, "{} it is.", ["1", "10"])), model)
    assert any("the label '1' begins '10'" in note for note in report.notes)
    for number, answer in enumerate(("{}", "{}. It is.")):
        assert not run(rows_file(f"{number}.jsonl", questions(4, answer, ["1", "10"])), model).notes


def test_what_follows_a_label_in_its_row_does_not_give_it_away(model: str, rows_file: Writer) -> None:
    rows = questions(12, "{}, it is.", ["this", "that"])
    expected = run(rows_file("a.jsonl", rows), model).score.accuracy
    for row in rows[:5]:  # most rows still have the comma
        row["messages"][1]["content"] = row["label"] + "! no other label is followed by this"
    assert run(rows_file("b.jsonl", rows), model).score.accuracy == expected


def test_the_table_of_choices_adds_up(model: str, rows_file: Writer) -> None:
    labels = list("12345")
    accuracy = run(rows_file("r.jsonl", questions(20, "{}. Because it is.", labels)), model).score.accuracy
    assert accuracy is not None
    for label, count in accuracy.labels.items():
        assert sum(accuracy.confusion[label].values()) == count.rows
        assert sum(row[label] for row in accuracy.confusion.values()) == count.chosen
        assert accuracy.confusion[label][label] == count.right
    f1 = []
    for count in accuracy.labels.values():
        precision, recall = count.right / max(1, count.chosen), count.right / count.rows
        f1.append(2 * precision * recall / (precision + recall) if count.right else 0.0)
    assert accuracy.macro_f1 == pytest.approx(np.mean(f1))
    assert accuracy.interval[0] < accuracy.accuracy < accuracy.interval[1]


def test_near_ties_and_the_accuracy_that_hangs_on_them_are_told(model: str, rows_file: Writer) -> None:
    data, flags = rows_file("r.jsonl", questions(300, "{}. It is.", list("1234567"))), ["-m", model, "--json", "--rows"]
    told, chosen = {}, {}
    for precision in ("f32", "bf16"):
        out = Path(data).with_name(precision)
        done = fabric("eval", data, *flags, out, "--precision", precision)
        assert done.code == 0, done.err
        told[precision] = json.loads(done.out)
        chosen[precision] = [json.loads(line)["chosen"]["model"] for line in out.read_text().splitlines()]
    exact, rounded = (told[precision]["near_ties"] for precision in ("f32", "bf16"))
    assert (exact["measured_rows"], rounded["measured_rows"]) == (0, 60)  # evenly, at most 64
    assert 0 < exact["noise"] < 1e-3 < rounded["noise"] < 1
    low, high = rounded["accuracy_range"]
    assert low <= told["f32"]["accuracy"] <= high and low <= told["bf16"]["accuracy"] <= high
    turned = sum(a != b for a, b in zip(chosen["f32"], chosen["bf16"], strict=True))
    assert 0 < turned <= rounded["rows"] < 300, "no label hangs on the precision: the test shows nothing"
    text = fabric("eval", data, "-m", model, "--precision", "bf16").out.decode()
    assert f"{rounded['rows']} within {rounded['noise']:.2g} nats" in text
    assert f"{100 * low:.1f} - {100 * high:.1f} %" in text
    written = fabric("eval", data, "-m", model, "--json", "--accuracy", "generated", "--precision", "f32")
    assert "near_ties" not in json.loads(written.out)


def test_near_ties_are_counted_among_all_labels() -> None:
    test = LabelTest([LabelledRow(label, (), "", None, ()) for label in "abcab"], ["a", "b", "c"], [])
    scores = np.array([[1, 1.05, 9], [1, 2, 3], [1, 1.3, 1.05], [2, 1, 5], [1.02, 1, 1.0]])
    ties = ties_within(0.1, 0, test, scores)  # right, wrong, wrong but c is near, wrong, right
    assert (ties.rows, ties.right, ties.accuracy_range) == (3, 2, (0.0, 0.6))
    exact = scores + np.array([[0, 0.03, 1], [0, 0.04, 0], [0, 9, 0], [0, 0, 0], [0, 0, 0]])
    assert spread(scores, exact) == pytest.approx(2 * np.sqrt((0.03**2 + 0.04**2) / 5))


@pytest.mark.parametrize(
    ("answer", "label"),
    [("No. It is.", "No"), (" Not", "Not"), ("<think>\n\n</think>\n\nNo", "No"), ("Nothing", ""), ("It is No", ""),
     ("", ""), ("Not so, no", "Not so"), ("No2", "")],
)  # fmt: skip
def test_the_label_that_an_answer_begins_with_is_found(answer: str, label: str) -> None:
    assert LabelTest([], ["No", "Not", "Not so"], []).written([answer]) == [label]


def test_written_labels_are_those_that_generate_writes(model: str, rows_file: Writer, tmp_path: Path) -> None:
    """Trained for a moment, so that the small model writes labels at all."""
    rows = questions(24, "{}", ["the", "fox"])
    data = rows_file("r.jsonl", rows)
    tuned = tmp_path / "a.gguf"
    flags = [
        "--epochs",
        "6",
        "--lr",
        "1e-2",
        "--batch",
        "8",
        "--precision",
        "f32",
        "--run-dir",
        str(tmp_path / "run"),
        "-q",
    ]
    assert fabric("train", data, "-m", model, "-o", tuned, *flags).code == 0
    report = run(data, model, adapters=(AdapterInput(str(tuned)),), compare=True, accuracy="generated")
    assert report.base and report.base.accuracy and report.score.accuracy
    asked = generate(
        GenerateSettings(model, data=data, adapters=(AdapterInput(str(tuned)),), device="cpu", precision="f32")
    )
    written = [(row["label"], row["answer"]) for row in asked]
    right = sum(answer.startswith(label) for label, answer in written)
    assert right > 12, "the model learned nothing: the test shows nothing"
    assert report.score.accuracy.right == right
    none = [row.get("", 0) for row in report.base.accuracy.confusion.values()]
    assert sum(none) > 12  # the base writes anything
    paired = report.adapters[0].against_base
    assert (paired.gained, paired.lost) == (right - report.base.accuracy.right + (paired.lost or 0), paired.lost)
    assert paired.accuracy_p is not None and paired.accuracy_p < 0.01
