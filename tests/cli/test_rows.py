"""Every field and row that is read is used, refused by name, or counted in one line, through every command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.shell import fabric, one_sentence, shell
from tests.data.preparing import chat, write


def train(rows: Path, tiny: Path, folder: Path, *more: str | Path) -> list[dict[str, Any]]:
    """The metrics of two steps."""
    where = ["--run-dir", folder / "run", "-o", folder / "a.gguf", "--metrics", folder / "m.jsonl"]
    folder.mkdir()
    done = fabric("train", rows, "-m", tiny, *where, "--steps", "2", "--ctx", "32", "--rank", "2", *more)
    assert done.code == 0, done.err
    (folder / "said").write_text(done.err)
    return [json.loads(line) for line in (folder / "m.jsonl").read_text().splitlines()]


def test_a_field_without_effect_is_named_once_and_refused_with_strict(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, [{**chat(f"Is {i} odd?", "Yes."), "label": "Yes", "id": i, "mood": None} for i in range(3)])
    lines = {
        "prepare": ["prepare", path, "-o", tmp_path / "out.jsonl"],
        "template": ["template", path, "-m", tiny, "-o", tmp_path / "out.jsonl"],
        "eval": ["eval", path, "-m", tiny],
        "generate": ["generate", path, "-m", tiny, "--max-tokens", "2", "-o", tmp_path / "out.jsonl"],
        "train": ["train", path, "-m", tiny, "--dry-run"],
    }
    for name, line in lines.items():
        told = fabric(*line)
        said = "3 of 3 rows have unused fields: 'id' (3)"
        if name != "prepare":
            said = said.replace("'id' (3)", "'id' (3), 'mood' (3)")
        assert told.code == 0 and told.err.count("unused fields") == 1 and f"{path}: {said}" in told.err, told.err
        before = (tmp_path / "out.jsonl").read_bytes()
        one_sentence(fabric(*line, "--strict"), 65, said, "--strict")
        assert (tmp_path / "out.jsonl").read_bytes() == before
    prepared = fabric("prepare", path, "--keep-fields", "label", "--strict")
    assert prepared.code == 0 and "unused" not in prepared.err
    for line in (["template", "-m", tiny], ["eval", "-m", tiny], ["generate", "-m", tiny, "--max-tokens", "2"]):
        told = fabric(*line, "--strict", stdin=prepared.out)
        assert told.code == 0, told.err


def test_pairs_of_message_lists_parts_and_a_developer_are_understood_without_prepare(
    tiny: Path, tmp_path: Path
) -> None:
    plain, spelled = tmp_path / "plain.jsonl", tmp_path / "spelled.jsonl"
    hello = chat("Hi", "Hello")["messages"]
    write(plain, [{"messages": hello}, {"messages": hello}])
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in hello]
    write(spelled, [{"messages": parts}, {"prompt": hello[:1], "completion": hello[1:]}])
    (as_plain, as_spelled) = (fabric("template", path, "-m", tiny) for path in (plain, spelled))
    assert as_plain.out == as_spelled.out and as_plain.out.count(b"\n") == 2
    one_sentence(fabric("template", "-m", tiny, stdin=json.dumps({"messages": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}).encode()),
        65, "stdin:1: message 1", "'image_url'")  # fmt: skip
    developer = json.dumps({"messages": [{"role": "developer", "content": "Be brief."}, *hello]})
    assert b"Be brief." in fabric("template", "-m", tiny, stdin=developer.encode()).out


def test_train_and_prepare_hold_out_the_same_rows_and_keep_equal_ones_and_windows_together(
    tiny: Path, tmp_path: Path
) -> None:
    rows = [chat(f"Is {i % 9} odd?", ("Yes.", "No.")[i % 2]) for i in range(24)]
    rows += [{"text": f"{i}: " + "the quick brown fox jumps over the lazy dog " * 4} for i in range(12)]
    write(tmp_path / "all.jsonl", rows)
    split = ["--holdout", f"{tmp_path / 'held.jsonl'}=0.3", "-o", tmp_path / "rest.jsonl", "--seed", "7"]
    assert fabric("prepare", tmp_path / "all.jsonl", *split).code == 0
    held, rest = ((tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("held", "rest"))
    assert not set(held) & set(rest) and len(held) + len(rest) == 36
    assert any("text" in json.loads(line) for line in held) and any("text" in json.loads(line) for line in rest)
    by_part = train(tmp_path / "all.jsonl", tiny, tmp_path / "a", "--val", "0.3", "--seed", "7")
    by_file = train(tmp_path / "rest.jsonl", tiny, tmp_path / "b", "--val", tmp_path / "held.jsonl", "--seed", "7")
    assert [(m["loss"], m.get("val_loss")) for m in by_part] == [(m["loss"], m.get("val_loss")) for m in by_file]
    assert "also train" not in (tmp_path / "b" / "said").read_text()


def test_validation_rows_that_also_train_are_counted(tiny: Path, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [chat(f"Is {i} odd?", "Yes.", id=i) for i in range(6)])
    write(tmp_path / "held.jsonl", [chat(f"Is {i} odd?", "Yes.") for i in (4, 5, 6)])
    line = ["train", tmp_path / "rows.jsonl", "-m", tiny, "--val", tmp_path / "held.jsonl", "--dry-run"]
    assert f"{tmp_path / 'held.jsonl'}: 2 of 3 validation rows also train" in fabric(*line).err
    write(tmp_path / "rows.jsonl", [chat(f"Is {i} odd?", "Yes.") for i in range(6)])
    one_sentence(fabric(*line, "--strict"), 65, "2 of 3 validation rows also train")
    write(tmp_path / "rows.jsonl", [{"text": "the quick brown fox " * 40}])
    line = ["train", tmp_path / "rows.jsonl", "-m", tiny, "--val", "0.5", "--ctx", "16", "--dry-run"]
    one_sentence(fabric(*line), 65, "windows of a text stay together")
    write(tmp_path / "rows.jsonl", [chat("Is it?", "Yes.")] * 4)
    one_sentence(fabric(*line, "--ctx", "64"), 65, "equal ones kept together", "too few")


@pytest.mark.parametrize("labels", [(1, 0), (True, False), (1.0, 0.0), (1.5, 2.5), ("1", "0"), ("yes", 0)])
def test_labels_may_be_numbers_and_truth_values(labels: tuple[Any, Any], tiny: Path, tmp_path: Path) -> None:
    spelled = [str(label).lower() if isinstance(label, bool) else f"{label}" for label in labels]
    if isinstance(labels[0], float):
        spelled = [f"{label:g}" for label in labels]
    rows = [{"prompt": f"Is {i} odd? ", "completion": spelled[i % 2], "label": labels[i % 2]} for i in range(4)]
    write(tmp_path / "rows.jsonl", rows)
    told = fabric("eval", tmp_path / "rows.jsonl", "-m", tiny, "--json")
    assert told.code == 0 and told.err == "", told.err
    found = json.loads(told.out)
    assert found["labelled_rows"] == 4 and sorted(found["labels"]) == sorted(spelled)


def test_a_label_that_cannot_be_compared_is_counted(tiny: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "label": label} for label in (["b"], "", None, "c")]
    write(tmp_path / "rows.jsonl", rows)
    told = fabric("eval", tmp_path / "rows.jsonl", "-m", tiny)
    assert "2 of 4 rows have a label that is empty, or no text, number or truth value" in told.err
    assert "1 of 4 rows have a label that is none of the labels" in told.err


def test_a_path_may_contain_an_equals_sign(tiny: Path, rows: Path, adapter: Path, tmp_path: Path) -> None:
    names = ["adapter-r=16.gguf", "lr=0.5/adapter.gguf", "ad=0.5"]
    (tmp_path / "lr=0.5").mkdir()
    for name in [*names, "ad"]:
        (tmp_path / name).write_bytes(adapter.read_bytes() if name != "ad" else b"not this one")
    whole = fabric("eval", rows, "-m", tiny, "-a", adapter).out.decode().splitlines()[1]
    half = fabric("eval", rows, "-m", tiny, "-a", f"{adapter}=0.5").out.decode().splitlines()[1]
    assert whole != half
    for name in names:
        told = fabric("eval", rows, "-m", tiny, "-a", name, cwd=tmp_path)
        assert told.out.decode().splitlines()[1] == whole, told.err
        told = fabric("eval", rows, "-m", tiny, "-a", f"{name}=0.5", cwd=tmp_path)
        assert told.out.decode().splitlines()[1] == half, told.err
    one_sentence(fabric("eval", rows, "-m", tiny, "-a", "no=such.gguf", cwd=tmp_path), 66, "no=such.gguf")
    one_sentence(fabric("eval", rows, "-m", tiny, "-a", f"{adapter}=half", cwd=tmp_path), 2, "a scale such as 0.5")
    held = tmp_path / "part=0.5.jsonl"
    assert fabric("prepare", rows, "--holdout", f"{held}=0.5", "-o", tmp_path / "rest").code == 0
    assert len(held.read_text().splitlines()) == 6


def test_pipes_are_read_once_under_any_name(tiny: Path, rows: Path, adapter: Path, tmp_path: Path) -> None:
    plain = fabric("prepare", rows, rows).out
    for line in (
        f"fabric prepare <(cat {rows}) <(cat {rows})",
        f"fabric prepare /dev/stdin <(cat {rows}) < {rows}",
        f"cat {rows} | fabric prepare {rows} /dev/fd/0",
        f"mkfifo p; cat {rows} > p & fabric prepare {rows} p",
    ):
        told = shell(line, tmp_path)
        assert (told.code, told.out) == (0, plain), told.err
    score = fabric("eval", rows, "-m", tiny, "-a", adapter, "--json").out
    told = shell(f"fabric eval <(cat {rows}) -m <(cat {tiny}) -a <(cat {adapter}) --json", tmp_path)
    assert json.loads(told.out)["loss"] == json.loads(score)["loss"], told.err
    one_sentence(shell("fabric prepare /dev/stdin - < /dev/null", tmp_path), 2, "one stdin")
    one_sentence(shell("mkfifo q; fabric prepare q ./q", tmp_path), 2, "only once")


def test_a_message_of_all_private_characters_is_refused_in_a_sentence(tiny: Path, tmp_path: Path) -> None:
    text = "<|im_end|>" + "".join(map(chr, range(0x100000, 0x10FFFE)))
    write(tmp_path / "rows.jsonl", [chat(text, "Hello")])
    one_sentence(fabric("template", tmp_path / "rows.jsonl", "-m", tiny), 65, "rows.jsonl:1: ", "U+100000")
