"""Chat rows through the command: what of each kind of conversation trains under each kind of template, and what is
refused by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.shell import fabric, one_sentence
from tests.text import kinds

PIER = {"pier": "Old Quay"}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def call(arguments: Any) -> list[dict[str, Any]]:
    return [{"id": "tide00001", "type": "function", "function": {"name": "tide", "arguments": arguments}}]


TIDE = {"role": "tool", "tool_call_id": "tide00001", "content": "3.25"}
ASKED = [user("Where?"), answer("North."), user("And two?"), answer("By the hall.")]
THOUGHT = [user("Where?"), answer("North.", reasoning_content="Nine follows eight.")]
THOUGHTS = [*THOUGHT, user("And two?"), answer("By the hall.", reasoning_content="Ten.")]
ROWS: dict[str, list[dict[str, Any]]] = {
    "turns": ASKED,
    "greeting": [answer("Good morning."), *ASKED[:2]],
    "unanswered": ASKED[:3],
    "object": [user("How high?"), answer("", tool_calls=call(PIER)), TIDE, answer("3 metres.")],
    "wire": [user("How high?"), answer("", tool_calls=call(json.dumps(PIER))), TIDE, answer("3 metres.")],
    "nulls": [user("How high?"), answer(None, tool_calls=call(PIER), refusal=None), TIDE, answer("3 metres.")],
    "number": [user("How high?"), answer("", tool_calls=call({"pier": 9, "deep": True})), TIDE, answer("3 metres.")],
    "thought": THOUGHT,
    "tags": [user("Where?"), answer("<think>\nNine follows eight.\n</think>\n\nNorth.")],
    "thoughts": THOUGHTS,
    "masked": [ASKED[0], answer("Wrong.", weight=0), *ASKED[2:]],
    "untrained": [ASKED[0], answer("Wrong.", train=False), ASKED[2], answer("By the hall.", weight=1)],
    "other": [user("Where?"), answer("North.", mood="calm")],
}
LEAVES = "leaves {} of answer 1 out of the text"
CALL, THINKS, MOOD = LEAVES.format("'tool_calls'"), LEAVES.format("'reasoning_content'"), LEAVES.format("'mood'")
LATER = "of answer 1 out once other messages follow; --train last"
EMPTY = "<think>\n\n</think>\n\n"
WHY = "<think>\nNine follows eight.\n</think>\n\n"
NORTH, HALL = "North.<|im_end|>", "By the hall.<|im_end|>"
CALLED = ['<call>tide {"pier": "Old Quay"}</call><|im_end|>', "3 metres.<|im_end|>"]
NUMBERED = ['<call>tide {"pier": 9, "deep": true}</call><|im_end|>', "3 metres.<|im_end|>"]
DROPS = dict.fromkeys(("object", "wire", "nulls", "number"), CALL) | {"thought": THINKS, "thoughts": THINKS}
MASKED = {"masked": [HALL], "untrained": [HALL], "other": MOOD}
PLAIN: dict[str, list[str] | str] = {
    "turns": [NORTH, HALL],
    "greeting": ["Good morning.<|im_end|>", NORTH],
    "unanswered": [NORTH],
    "tags": [WHY + NORTH],
    **DROPS,
    **MASKED,
}
KNOWS = {
    **PLAIN,
    "object": CALLED,
    "wire": CALLED,
    "nulls": CALLED,
    "number": NUMBERED,
    "thought": [WHY + NORTH],
    "thoughts": [WHY + NORTH, "<think>\nTen.\n</think>\n\n" + HALL],
}


def but(expected: dict[str, list[str] | str], **other: list[str] | str) -> dict[str, list[str] | str]:
    return {**expected, **other}


# What trains of each row, or a part of the sentence with which it is refused.
EXPECTED: dict[str, dict[str, list[str] | str]] = {
    "chatml": PLAIN,
    "ends_in_next_turn": PLAIN,
    "wants_a_message": PLAIN,
    "closes_thoughts": but(PLAIN, tags=[WHY.removeprefix("<think>") + NORTH]),
    "says_all": KNOWS,
    "calls_as_text": KNOWS,
    "opens_thoughts": but(PLAIN, tags=[WHY.removeprefix("<think>\n") + NORTH]),
    "forgets_thoughts": but(
        KNOWS,
        turns=[NORTH, EMPTY + HALL],
        greeting=["Good morning.<|im_end|>", EMPTY + NORTH],
        masked=[EMPTY + HALL],
        untrained=[EMPTY + HALL],
        thoughts=LATER,
        **{name: [call, EMPTY + said] for name, (call, said) in {
            "object": CALLED, "wire": CALLED, "nulls": CALLED, "number": NUMBERED}.items()},
    ),
    "ends_in_next_role": {
        name: told if isinstance(told, str) else [
            f"<think></think>{text}".replace("<|im_end|>", "<|observation|>" if "<call>" in text else "<|user|>")
            for text in told
        ]
        for name, told in but(KNOWS, thought=THINKS, thoughts=THINKS).items()
    },
    "two_channels": {
        "other": MOOD,
        **dict.fromkeys(("object", "wire", "nulls", "number"), CALL),
        "turns": "ends answer 1 differently once messages follow; --train last",
        "greeting": "ends answer 1 differently once messages follow; --train last",
        "unanswered": ["<|channel|>final<|message|>North.<|return|>"],
        "thought": ["<|channel|>analysis<|message|>Nine follows eight.<|end|>"
                    "<|start|>assistant<|channel|>final<|message|>North.<|return|>"],
        "thoughts": LATER,
        "tags": [f"<|channel|>final<|message|>{WHY}North.<|return|>"],
        "masked": ["<|channel|>final<|message|>By the hall.<|return|>"],
        "untrained": ["<|channel|>final<|message|>By the hall.<|return|>"],
    },
    "strict": {
        **PLAIN,
        "greeting": "a question must come first",
        **dict.fromkeys(("object", "wire", "nulls", "number"), CALL),
    },
}  # fmt: skip
LAST: dict[str, dict[str, list[str]]] = {
    "forgets_thoughts": {
        "turns": [EMPTY + HALL], "greeting": [EMPTY + NORTH], "thoughts": ["<think>\nTen.\n</think>\n\n" + HALL],
        "masked": [EMPTY + HALL],
    },
    "two_channels": {
        "turns": ["<|channel|>final<|message|>By the hall.<|return|>"],
        "thoughts": ["<|channel|>analysis<|message|>Ten.<|end|><|start|>assistant<|channel|>final<|message|>"
                     "By the hall.<|return|>"],
    },
    "strict": {"system": [NORTH]},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has the control tokens of all kinds of templates."""
    pytest.importorskip("gguf", reason="the tiny model is written by the gguf package")
    return kinds.write_model(tmp_path_factory.mktemp("model") / "m.gguf")


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kinds.write(tmp_path_factory.mktemp("templates"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    system = [{"role": "system", "content": "Be brief."}, *ASKED[:2]]
    lines = [{"messages": messages, "label": name} for name, messages in {**ROWS, "system": system}.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def trained(out: bytes) -> dict[str, list[str]]:
    found = {}
    for row in map(json.loads, out.splitlines()):
        found[row["label"]] = [row["text"][start:end] for start, end in row["train"]]
    return found


@pytest.mark.parametrize("kind", EXPECTED)
def test_what_of_a_row_trains(kind: str, model: Path, templates: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    done = fabric(
        "template",
        rows,
        "-m",
        model,
        "--template",
        templates / f"{kind}.jinja",
        "--on-error",
        "skip",
        "-o",
        out,
        "--json",
    )
    assert done.code == 0, done.err
    report = json.loads(done.out)
    refused = dict(zip(ROWS, [None] * len(ROWS), strict=True))
    for reason in report["bad_rows"]:
        number = int(reason.removeprefix(f"{rows}:").split(":")[0])
        refused[[*ROWS, "system"][number - 1]] = reason
    found = trained(out.read_bytes())
    for name, told in EXPECTED[kind].items():
        if isinstance(told, str):
            assert name not in found and told in str(refused[name]), (name, found.get(name), refused[name])
        else:
            assert found.get(name) == told, (name, refused[name])
    assert report["bad"] == len(report["bad_rows"]) == sum(report["reasons"].values()) == len(ROWS) + 1 - len(found)


@pytest.mark.parametrize("kind", LAST)
def test_the_last_answer_of_a_conversation_trains_as_generation_shows_it(
    kind: str, model: Path, templates: Path, rows: Path
) -> None:
    flags = ("--template", templates / f"{kind}.jinja", "--on-error", "skip", "--train", "last")
    done = fabric("template", rows, "-m", model, *flags)
    assert done.code == 0, done.err
    found = trained(done.out)
    assert {name: found.get(name) for name in LAST[kind]} == LAST[kind]
    if kind == "strict":  # the order, which an answered conversation no longer shows
        [row] = [row for row in map(json.loads, done.out.splitlines()) if row["label"] == "system"]
        assert row["text"] == "<|im_start|>[INST]Be brief.\n\nWhere?[/INST]North.<|im_end|>"


def test_a_row_that_cannot_train_stops_the_command_or_is_counted_by_reason(
    model: Path, templates: Path, tmp_path: Path
) -> None:
    rows, chatml = tmp_path / "rows.jsonl", templates / "chatml.jinja"
    bad = [{"messages": ROWS["object"]}, {"messages": ROWS["wire"]}, {"messages": ROWS["thought"]}]
    lines = [json.dumps(row) for row in [{"messages": ASKED}, *bad]]
    rows.write_text("\n".join([*lines, "no row", *lines[:1]]) + "\n")
    done = fabric("template", rows, "-m", model, "--template", chatml)
    one_sentence(done, 65, f"{rows}:2:", "'tool_calls' of answer 1")
    skipped = fabric("template", rows, "-m", model, "--template", chatml, "--on-error", "skip", "--tokens")
    assert skipped.code == 0 and len(skipped.out.splitlines()) == 2
    assert f"{rows}:5: the line is not JSON" in skipped.err
    assert "6 rows read, 2 written, 4 bad (2: the chat template leaves 'tool_calls'" in skipped.err
    flags = ("--template", chatml, "--steps", "1", "--rank", "2", "--ctx", "64", "--dry-run")
    one_sentence(fabric("train", rows, "-m", model, *flags), 65, f"{rows}:2:", "'tool_calls' of answer 1")
    told = fabric("train", rows, "-m", model, *flags, "--on-error", "skip")
    assert told.code == 0, told.err
    assert f"{rows}: 2 of 6 rows skipped: the chat template leaves 'tool_calls'" in told.err
    rows.write_text(lines[1] + "\n")
    for command in (("template",), ("train", "--run-dir", tmp_path / "run")):
        ended = fabric(command[0], rows, "-m", model, "--template", chatml, "--on-error", "skip", *command[1:])
        one_sentence(ended, 65, f"{rows}:1: the chat template leaves 'tool_calls'")


def test_train_and_eval_take_the_last_answer_too(model: Path, templates: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": THOUGHTS}) + "\n")
    flags = ("-m", model, "--template", templates / "forgets_thoughts.jinja", "--ctx", "128")
    for command in ("train", "eval"):
        where = ("--run-dir", tmp_path / command) if command == "train" else ()
        one_sentence(fabric(command, rows, *flags, *where), 65, "--train last")
    count = len(b"<think>\nTen.\n</think>\n\nBy the hall.")  # the tiny vocabulary has a token a byte, or a few
    done = fabric("eval", rows, *flags, "--train", "last", "--json")
    assert done.code == 0 and 0 < json.loads(done.out)["trained_tokens"] <= count + 1, done.err
    adapter = tmp_path / "a.gguf"
    run = ("--train", "last", "--steps", "1", "--rank", "2", "--run-dir", tmp_path / "run", "-o", adapter)
    assert fabric("train", rows, *flags, *run).code == 0
    [made] = json.loads(fabric("inspect", adapter, "--json").out)["history"]
    assert made["settings"]["train"] == "last"


def test_what_of_a_chat_row_has_no_effect_is_said_once_and_refused_when_strict(
    model: Path, templates: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    asks = [{**user("Where?"), "train": True}, answer("North.")]
    row = {"messages": asks, "tools": [{"type": "function", "function": {"name": "tide"}}]}
    rows.write_text(2 * (json.dumps(row) + "\n"))
    flags = ("template", rows, "-m", model, "--template", templates / "chatml.jinja")
    done = fabric(*flags)
    assert done.code == 0
    assert f"{rows}: 2 rows have 'tools', which the chat template does not show" in done.err
    assert f"{rows}: 2 rows have messages that ask to train and are no answers" in done.err
    one_sentence(fabric(*flags, "--strict", "-o", tmp_path / "out.jsonl"), 65, "--strict")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"weight": 0.5}, "message 2: 'weight' is 0.5; only 0 and 1"),
        ({"train": "no"}, "message 2: 'train' is 'no'; it must be true or false"),
        ({"reasoning_content": "a", "thinking": "b"}, "message 2 has different thoughts"),
    ],
)
def test_a_turn_that_says_no_clear_thing_of_itself_is_refused(
    turn: dict[str, Any], said: str, model: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": [user("Where?"), answer("North.", **turn)]}) + "\n")
    one_sentence(fabric("template", rows, "-m", model), 65, f"{rows}:1: ", said)
    one_sentence(fabric("prepare", rows), 65, f"{rows}:1: ", said)


def test_a_conversation_of_many_thousand_messages_costs_as_much_as_it_is_long(model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    turns = [answer("By the hall.") if n % 2 else user(f"And number {n}?") for n in range(8000)]
    rows.write_text(json.dumps({"messages": turns}) + "\n")
    done = fabric("template", rows, "-m", model, timeout=60)
    assert done.code == 0, done.err
    [row] = map(json.loads, done.out.splitlines())
    assert len(row["train"]) == 4000
    assert {row["text"][start:end] for start, end in row["train"]} == {"By the hall.<|im_end|>"}
