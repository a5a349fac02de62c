"""Whole answers that models write: measured against the rows' own, and judged pairwise by another model."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fabric.data.records import parse_record
from fabric.errors import UsageError
from fabric.evaluation.answers import asked, spoken
from fabric.evaluation.evaluate import evaluate
from fabric.evaluation.judge import PROMPT
from fabric.evaluation.measures import normalised, tables
from fabric.evaluation.settings import EvalSettings
from fabric.evaluation.statistics import even_chance
from fabric.generation.generate import generate
from fabric.generation.settings import GenerateSettings
from fabric.text.tokenizer import Tokenizer
from fabric.weights.gguf import GGUF
from fabric.weights.settings import AdapterInput
from tests.cli.shell import fabric, on_terminal, one_sentence
from tests.evaluation.conftest import Writer
from tests.evaluation.test_labels import questions
from tests.parity import ours
from tests.support.compare import log_softmax
from tests.support.paths import REPOSITORY, gemma3, smollm2
from tests.support.random_models import write_model
from tests.support.shapes import PRESETS

AdapterMaker = Callable[..., AdapterInput]
ROWS = questions(12, "{} in the house.", ["the fox", "his cat"])


@pytest.fixture(scope="module")
def tuned(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for a moment, so that the small model writes answers that are like the rows' own."""
    folder = tmp_path_factory.mktemp("tuned")
    rows = folder / "r.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    flags = ["--epochs", "8", "--lr", "1e-2", "--precision", "f32", "--run-dir", folder / "run", "-q"]
    assert fabric("train", rows, "-m", model, "-o", folder / "a.gguf", *flags).code == 0
    return folder / "a.gguf"


def scored(*arguments: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """The report of `eval`, its rows, and what it said."""
    out = Path(arguments[0]).with_suffix(".scores")
    done = fabric("eval", *arguments, "--precision", "f32", "--json", "--rows", out)
    assert done.code == 0, done.err
    return json.loads(done.out), [json.loads(line) for line in out.read_text().splitlines()], done.err


def test_written_answers_are_measured_against_the_rows_own(model: str, tuned: Path, rows_file: Writer) -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

    rows = [*ROWS, {"text": "the fox"}, {"messages": ROWS[0]["messages"][:1]}]
    data, names = rows_file("r.jsonl", rows), ["exact", "rouge-l", "chrf"]
    flags = ["-m", model, "-a", tuned, "--compare", "--measures", ",".join(names), "--max-tokens", "14"]
    told, lines, err = scored(data, *flags)
    assert "1 of 14 rows are texts or tokens" in err
    models = {"base": [], "tuned": [AdapterInput(str(tuned))]}
    answers = {
        name: [row["answer"] for row in generate(GenerateSettings(
            model, data=rows_file("g.jsonl", ROWS), adapters=tuple(adapters), max_tokens=14, device="cpu",
            precision="f32"))]
        for name, adapters in models.items()
    }  # fmt: skip
    keys = {"base": "base", "tuned": str(tuned)}
    own = [row["messages"][1]["content"] for row in ROWS]
    rouge, chrf = RougeScorer(["rougeL"]), CHRF()
    expected: dict[str, dict[str, list[float]]] = {}
    for name, texts in answers.items():
        assert [line["answers"][keys[name]] for line in lines[:12]] == texts
        pairs = [(text.strip(), reference) for text, reference in zip(texts, own, strict=True)]
        expected[name] = {
            "exact": [100.0 * (a == b) for a, b in pairs],
            "rouge-l": [100 * rouge.score(b, a)["rougeL"].fmeasure for a, b in pairs],
            "chrf": [chrf.sentence_score(a, [b]).score for a, b in pairs],
        }
    assert 0 < sum(expected["tuned"]["exact"]) < 1200, "all answers are right, or none: the test shows nothing"
    for measure in names:
        for name, score in (("base", told["base"]), ("tuned", told["adapters"][0])):
            found = score["measures"][measure]
            assert found["mean"] == pytest.approx(np.mean(expected[name][measure]))
            assert found["interval"][0] <= found["mean"] <= found["interval"][1] and found["rows"] == 12
            assert [line["measures"][keys[name]][measure] for line in lines[:12]] == pytest.approx(
                expected[name][measure]
            )
        difference = np.array(expected["tuned"][measure]) - np.array(expected["base"][measure])
        paired = told["adapters"][0]["against_base"]["measures"][measure]
        better, worse = int((difference > 0).sum()), int((difference < 0).sum())
        assert paired["difference"] == pytest.approx(difference.mean())
        assert (paired["better"], paired["worse"], paired["p"]) == (better, worse, even_chance(better, worse))
        assert paired["interval"][0] <= paired["difference"] <= paired["interval"][1]
    text = fabric("eval", data, *flags, "--precision", "f32").out.decode()
    assert f"{told['adapters'][0]['measures']['chrf']['mean']:.1f} (12 rows)" in text
    assert f"{told['adapters'][0]['against_base']['measures']['exact']['difference']:+.1f}" in text


def test_measures_are_normalised_as_documented() -> None:
    assert normalised(" The  FOX,\u00a0(ran)! ") == normalised("the fox ran") == "the fox ran"
    found = tables(["exact", "rouge-l"])
    assert found["exact"]("Straße № 1.", "strasse no 1") == 100 and found["exact"]("", "fox") == 0
    assert found["rouge-l"]("Лиса быстра", "лиса") == pytest.approx(200 / 3)  # the package's own words are Latin
    assert found["rouge-l"]("狐は速い", "狐は遅い") == pytest.approx(75)  # a character each
    assert found["rouge-l"]("", "fox") == found["rouge-l"]("!", "?") == 0
    assert spoken("<think>\nno\n</think>\n\n fox ") == "fox" and spoken("<think> and on") == ""
    rendered = {"text": "ask: a fox<|im_end|>\n", "train": [[5, 21]]}
    row = asked(parse_record(rendered, "r.jsonl:1"), ("<|im_end|>",))
    assert row and (row.reference, row.messages) == ("a fox", [{"role": "user", "content": "ask: "}])


def test_a_missing_package_and_measures_that_cannot_be_are_one_sentence(
    model: str, rows_file: Writer, tmp_path: Path
) -> None:
    data = rows_file("r.jsonl", ROWS[:1])
    for measure, package in (("rouge-l", "rouge_score"), ("chrf", "sacrebleu")):
        (tmp_path / f"{package}.py").write_text("raise ImportError\n")
        env = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
        ended = fabric("eval", data, "-m", model, "--measures", f"exact,{measure}", env=env)
        one_sentence(ended, 2, f"--measures {measure}", "pip install 'fabric-llm[text]'")
    one_sentence(fabric("eval", data, "-m", model, "--measures", "bleu"), 2, "'bleu'", "exact, rouge-l, chrf")
    texts = rows_file("t.jsonl", [{"text": "the fox and the dog"}])
    one_sentence(fabric("eval", texts, "-m", model, "--measures", "exact"), 65, "t.jsonl", "no row asks")


def margins(judge: str, prompts: list[str]) -> list[float]:
    """By how much A is likelier than B after each prompt, from the logits of the whole text."""
    with GGUF.open(judge) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf.metadata)
    a, b = (tokenizer.encode(letter)[0] for letter in "AB")
    found = []
    for prompt in prompts:
        ids = tokenizer.encode(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n", special=True)
        last = log_softmax(ours.logits(judge, ids))[-1]
        found.append(float(last[a] - last[b]))
    return found


def test_a_verdict_is_the_likelier_letter_in_both_orders(rows_file: Writer, tmp_path: Path) -> None:
    judge = str(write_model(tmp_path / "j.gguf", PRESETS["tiny"], "F32", seed=4))
    words = ["the fox", "a dog", "his cat", "old man", "lazy", "lesson", "house", "hill"]
    rows = [{"prompt": f"is {i}?", "mine": words[i % 8], "yours": words[(3 * i + i // 8) % 8]} for i in range(24)]
    prompt = tmp_path / "p.jinja"
    prompt.write_text("{{ question }} {{ a }}/{{ b }}{% if reference %} ({{ reference }}){% endif %}")
    rows[1]["completion"] = "so"
    data = rows_file("r.jsonl", rows)
    told, lines, _ = scored(data, "--judge", judge, "--judge-prompt", prompt, "--answers", "yours,mine")
    (contest,) = told["contests"]
    verdicts: list[str] = []
    first_shown = []
    for row, line in zip(rows, lines, strict=True):
        known = " (so)" if "completion" in row else ""
        a, b = (f"{row['prompt']} {x}/{y}{known}" for x, y in ((row["mine"], row["yours"]),
                                                             (row["yours"], row["mine"])))  # fmt: skip
        if row["mine"] == row["yours"]:
            verdicts.append("same")
            continue
        forward, back = margins(judge, [a, b])
        first_shown += [forward > 0, back > 0]
        verdicts.append("tie" if (forward > 0) == (back > 0) else "win" if forward > 0 else "loss")
        assert line["judged"]["mine"]["preference"] == pytest.approx((forward - back) / 2, abs=1e-4)
        assert line["judged"]["mine"]["verdict"] == verdicts[-1]
    counts = Counter(verdicts)
    assert min(counts["win"], counts["loss"], counts["tie"], counts["same"]) > 0, "the test shows nothing"
    assert (contest["name"], contest["against"], contest["rows"]) == ("mine", "yours", 24)
    assert (contest["wins"], contest["losses"], contest["same"]) == (counts["win"], counts["loss"], counts["same"])
    assert contest["ties"] == counts["tie"] + counts["same"]
    assert contest["win_rate"] == pytest.approx((contest["wins"] + contest["ties"] / 2) / 24)
    assert contest["interval"][0] < contest["win_rate"] < contest["interval"][1]
    assert contest["p"] == even_chance(contest["wins"], contest["losses"])
    assert contest["first_shown"] == pytest.approx(np.mean(first_shown))
    preferred = [line["judged"]["mine"]["preference"] for line in lines]
    assert contest["scored_rate"] == pytest.approx(np.mean(np.sign(preferred) / 2 + 0.5))
    text = fabric("eval", data, "--judge", judge, "--judge-prompt", prompt, "--answers", "mine,yours",
                  "--precision", "f32").out.decode()  # fmt: skip
    assert f"{contest['losses']}, {contest['ties']}, {contest['wins']}" in text and "no position bias" in text


def test_adapters_are_judged_against_the_base_another_model_or_the_rows_own_answers(
    model: str, tuned: Path, rows_file: Writer, adapter: AdapterMaker, tmp_path: Path
) -> None:
    data, idle = rows_file("r.jsonl", ROWS[:4]), adapter(b_std=0.0).path
    judge = str(write_model(tmp_path / "j.gguf", PRESETS["tiny"], "F32", seed=4))
    common = [data, "-m", model, "--judge", judge, "--max-tokens", "10"]
    told, lines, err = scored(*common, "-a", tuned, "-a", idle)
    first, second = told["judged"]["contests"]
    assert (first["name"], first["against"], first["rows"]) == (str(tuned), "base", 4)
    assert (second["name"], second["ties"], second["same"], second["first_shown"]) == (idle, 4, 4, None)
    assert [a["name"] for a in told["adapters"]] == [str(tuned), idle] and "once the others are closed" in err
    assert all(line["answers"]["base"] == line["answers"][idle] != line["answers"][str(tuned)] for line in lines)
    other = scored(*common, "-a", tuned, "--against", model)[0]["judged"]["contests"]
    assert [(c["name"], c["against"]) for c in other] == [("model", model)]
    assert {k: other[0][k] for k in ("wins", "ties", "losses")} == {k: first[k] for k in ("wins", "ties", "losses")}
    _, lines, _ = scored(*common, "-a", tuned, "--answers", "reference")
    assert [line["answers"]["reference"] for line in lines] == [row["messages"][1]["content"] for row in ROWS[:4]]
    assert all(line["judged"]["model"]["against"] == "reference" for line in lines)


def test_the_built_in_question_is_documented_and_what_generate_writes_is_judged(model: str, rows_file: Writer) -> None:
    assert f"```jinja\n{PROMPT}```" in (REPOSITORY / "docs/evaluation.md").read_text()
    answered = fabric("generate", rows_file("r.jsonl", ROWS[:2]), "-m", model, "--max-tokens", "4")
    judged = fabric("eval", "--judge", model, "--answers", "reference,answer", "--json", "--strict", stdin=answered.out)
    assert judged.code == 0, judged.err
    assert [(c["name"], c["rows"]) for c in json.loads(judged.out)["contests"]] == [("answer", 2)]


def test_progress_ends_at_all_tokens_whatever_is_asked_for(model: str, tuned: Path, rows_file: Writer) -> None:
    seen: list[tuple[int, int]] = []
    adapters, data = (AdapterInput(str(tuned)),), rows_file("r.jsonl", ROWS[:4])
    settings = EvalSettings(data, model, adapters, measures=("exact",), judge=model, device="cpu", precision="bf16")
    evaluate(settings, lambda done, total: seen.append((done, total)))
    assert sorted(seen) == seen and seen[-1][0] == seen[-1][1] and len({total for _, total in seen}) == 1


def test_lines_about_memory_stand_above_the_bar(model: str, rows_file: Writer) -> None:
    data = rows_file("r.jsonl", ROWS[:2])
    flags = ["-m", model, "--judge", model, "--answers", "reference", "--max-tokens", "4"]
    code, seen = on_terminal("eval", data, *flags, stream="stderr")
    assert code == 0, seen
    lines = [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[A-Z]", "", seen)) if "MiB of weights" in line]
    assert len(lines) == 2 and all(line.startswith(model) for line in lines), seen
    assert "eval" in seen and "tokens" in seen, "no bar is drawn: the test shows nothing"


def test_rows_too_long_for_the_judge_are_left_out_and_told(model: str, rows_file: Writer) -> None:
    rows = [{"prompt": "is it?", "a": "fox " * n, "b": "dog"} for n in (3, 400)]
    told, lines, err = scored(rows_file("r.jsonl", rows), "--judge", model, "--answers", "a,b")
    assert told["too_long"] == 1 and len(lines) == 1 and "1 of 2 rows are too long" in err
    ended = fabric("eval", rows_file("l.jsonl", rows[1:]), "--judge", model, "--answers", "a,b")
    one_sentence(ended, 65, "no row fits the judge's context of 512 tokens")


def test_judging_that_makes_no_sense_is_one_sentence(model: str, rows_file: Writer, tmp_path: Path) -> None:
    data = rows_file("r.jsonl", [{"prompt": "is it?", "completion": "so", "a": "x", "b": 3}])
    (tmp_path / "p.jinja").write_text("{{ question }} {{ a }}")
    (tmp_path / "q.jinja").write_text("{{ a }} {{ b }} {% if %}")
    judging, asked = ["eval", data, "--judge", model, "--answers"], rows_file("s.jsonl", [{"prompt": "is", "b": "x"}])
    prompted = ["eval", asked, "--judge", model, "--answers", "b,b", "--judge-prompt"]
    for arguments, code, words in (
        (["eval", data], 2, ["-m"]),
        ([*judging, "a,b"], 65, ["r.jsonl:1", "'b'"]),
        ([*prompted, tmp_path / "p.jinja"], 65, ["p.jinja", "{{ b }}"]),
        ([*prompted, tmp_path / "q.jinja"], 65, ["q.jinja", "line 1"]),
    ):
        text = rows_file("s.jsonl", [{"prompt": "is it?", "completion": "so", "b": "x"}])
        one_sentence(
            fabric(*(text if words[0].endswith("jinja") and x == data else x for x in arguments)), code, *words
        )
    for wrong, words in (
        ({"model": None}, "-m"),
        ({}, "-a, another model with --against"),
        ({"answers": ("a", "b")}, "leave out -m"),
        ({"model": None, "answers": ("a", "b", "c")}, "one field of the rows, or two"),
        ({"answers": ("a",), "against": model}, "--against and --answers"),
        ({"answers": ("a",), "judge": None}, "--answers .* --judge"),
    ):
        with pytest.raises(UsageError, match=words):
            evaluate(EvalSettings(data, **{"model": model, "judge": model, **wrong}))


@pytest.mark.parametrize("judge", [smollm2, gemma3])
def test_published_models_judge(judge: Callable[[], Path], rows_file: Writer) -> None:
    """Models as small as these mostly prefer what is shown first, and the report says so."""
    pairs = [("What is the capital of France?", "The capital of France is Paris.", "Potatoes are a root vegetable."),
             ("What do bees make?", "Bees make honey.", "I do not know and I do not care.")]  # fmt: skip
    rows = rows_file("r.jsonl", [{"prompt": asked, "good": good, "bad": bad} for asked, good, bad in pairs])
    told, lines, _ = scored(rows, "--judge", judge(), "--answers", "bad,good")
    (contest,) = told["contests"]
    assert contest["wins"] + contest["losses"] + contest["ties"] == 2
    assert contest["first_shown"] is not None and contest["first_shown"] >= 0.5
    assert all(abs(line["judged"]["good"]["preference"]) > 1e-3 for line in lines)
