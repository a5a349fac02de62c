"""Tries chat templates on conversations, with transformers' own rendering as the truth:

    python tools/templates.py FOLDER_OF_JINJA_FILES

A pair of a template and a conversation trains, is refused with a reason that holds, is refused although it has a
well-defined answer, or trains the wrong text. The last two are faults: they are listed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric.errors import DataError
from fabric.text.template import ChatTemplate, Rendered

Messages = list[dict[str, Any]]

BOS, EOS = "<|bos|>", "<|eos|>"
# What ends an answer in the vocabularies that published templates were made for.
ENDS = (
    EOS, "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "</s>", "<|endoftext|>", "<|return|>",
    "<|call|>", "<|calls|>", "<|flush|>", "<turn|>", "<|tool_response>", "<|end_of_text|>", "<|END_OF_TURN_TOKEN|>",
    "<|assistant_end|>", "<|tools_suffix|>", "<｜end▁of▁sentence｜>", "<|user|>", "<|observation|>", "<|eot|>",
    "<seed:eos>", "[e~[", "<SPECIAL_12>", "<|role_end|>", "<end_of_sentence>", "</assistant>",
    "<｜hy_eos:opensource｜>", "<|end_of_msg|>", "<sep>",
)  # fmt: skip
_TAG = re.compile(r"<[|｜][^<>\s]{1,60}[|｜]>|<\|[a-z_]+>|<[a-z_]+\|>")
TOOL = {
    "type": "function",
    "function": {
        "name": "tide_height",
        "description": "Height of the tide",
        "parameters": {
            "type": "object",
            "properties": {"pier": {"type": "string", "description": "Which pier"}},
            "required": ["pier"],
        },
    },
}


def user(text: Any) -> dict[str, Any]:
    """A question."""
    return {"role": "user", "content": text}


def answer(text: Any, **more: Any) -> dict[str, Any]:
    """An answer."""
    return {"role": "assistant", "content": text, **more}


def call(number: int, arguments: Any) -> dict[str, Any]:
    """A call of the one tool."""
    return {"id": f"tide0000{number}", "type": "function", "function": {"name": "tide_height", "arguments": arguments}}


def result(number: int, text: str) -> dict[str, Any]:
    """What the tool said."""
    return {"role": "tool", "tool_call_id": f"tide0000{number}", "name": "tide_height", "content": text}


@dataclass(frozen=True)
class Case:
    """A conversation; `says` are words that each answer which trains must hold, in this order."""

    messages: Messages
    says: Sequence[Sequence[str]]
    tools: list[Any] | None = None


PIER = {"pier": "Oldquay"}
CASES = {
    "plain": Case([user("Firstask"), answer("Northcrane.")], [["Northcrane."]]),
    "system": Case(
        [{"role": "system", "content": "Bebrief"}, user("Firstask"), answer("Northcrane.")], [["Northcrane."]]
    ),
    "turns": Case(
        [user("Firstask"), answer("Northcrane."), user("Secondask"), answer("Ferryhall.")],
        [["Northcrane."], ["Ferryhall."]],
    ),
    "greeting": Case(
        [answer("Goodmorning."), user("Firstask"), answer("Northcrane.")], [["Goodmorning."], ["Northcrane."]]
    ),
    "asked_last": Case([user("Firstask"), answer("Northcrane."), user("Secondask")], [["Northcrane."]]),
    "call": Case(
        [user("Firstask"), answer("", tool_calls=[call(1, PIER)]), result(1, "3.25"), answer("Threemetres.")],
        [["tide_height", "Oldquay"], ["Threemetres."]],
        [TOOL],
    ),
    "call_text": Case(
        [user("Firstask"), answer("", tool_calls=[call(1, '{"pier": "Oldquay"}')]), result(1, "3.25"),
         answer("Threemetres.")],
        [["tide_height", "Oldquay"], ["Threemetres."]],
        [TOOL],
    ),
    "call_null": Case(
        [user("Firstask"), answer(None, tool_calls=[call(1, PIER)], refusal=None), result(1, "3.25"),
         answer("Threemetres.", tool_calls=None)],
        [["tide_height", "Oldquay"], ["Threemetres."]],
        [TOOL],
    ),
    "call_number": Case(
        [user("Firstask"), answer("", tool_calls=[call(1, {"depth": 4711})]), result(1, "3.25"),
         answer("Threemetres.")],
        [["tide_height", "4711"], ["Threemetres."]],
        [TOOL],
    ),
    "call_said": Case(
        [user("Firstask"), answer("Letmesee.", tool_calls=[call(1, PIER)]), result(1, "3.25"), answer("Threemetres.")],
        [["Letmesee.", "Oldquay"], ["Threemetres."]],
        [TOOL],
    ),
    "call_last": Case([user("Firstask"), answer("", tool_calls=[call(1, PIER)])], [["Oldquay"]], [TOOL]),
    "calls": Case(
        [user("Firstask"), answer("", tool_calls=[call(1, PIER), call(2, {"pier": "Newquay"})]), result(1, "3.25"),
         result(2, "4.5"), answer("Threemetres.")],
        [["Oldquay", "Newquay"], ["Threemetres."]],
        [TOOL],
    ),
    "thought": Case(
        [user("Firstask"), answer("Northcrane.", reasoning_content="Nineeight.")], [["Nineeight.", "Northcrane."]]
    ),
    "thinking": Case(
        [user("Firstask"), answer("Northcrane.", thinking="Nineeight.")], [["Nineeight.", "Northcrane."]]
    ),
    "tags": Case(
        [user("Firstask"), answer("<think>\nNineeight.\n</think>\n\nNorthcrane.")], [["Nineeight.", "Northcrane."]]
    ),
    "thoughts": Case(
        [user("Firstask"), answer("Northcrane.", reasoning_content="Nineeight."), user("Secondask"),
         answer("Ferryhall.", reasoning_content="Tenafter.")],
        [["Nineeight.", "Northcrane."], ["Tenafter.", "Ferryhall."]],
    ),
    "thought_call": Case(
        [user("Firstask"), answer("", reasoning_content="Nineeight.", tool_calls=[call(1, PIER)]), result(1, "3.25"),
         answer("Threemetres.", reasoning_content="Tenafter.")],
        [["Nineeight.", "Oldquay"], ["Tenafter.", "Threemetres."]],
        [TOOL],
    ),
    "masked": Case(
        [user("Firstask"), answer("Wrongguess.", weight=0), user("Secondask"), answer("Ferryhall.", weight=1)],
        [["Ferryhall."]],
    ),
    "parts": Case(
        [user([{"type": "text", "text": "Firstask"}]), answer([{"type": "text", "text": "Northcrane."}])],
        [["Northcrane."]],
    ),
    "developer": Case(
        [{"role": "developer", "content": "Bebrief"}, user("Firstask"), answer("Northcrane.")], [["Northcrane."]]
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """kind: trains, last (trains with `train="last"` alone), refused, untrue or wrong."""

    kind: str
    text: str


class Truth:
    """What transformers renders with one template, of a conversation in any of the ways in which it may be written."""

    def __init__(self, source: str) -> None:
        self.source = source

    def renderings(self, messages: Messages, tools: list[Any] | None, prompt: bool = False) -> list[str]:
        """Of the usual way first."""
        found = (self._render(way, tools, prompt) for way in ways(messages))
        return [undated(text) for text in found if text is not None]

    def _render(self, messages: Messages, tools: list[Any] | None, prompt: bool) -> str | None:
        from transformers.utils.chat_template_utils import render_jinja_template

        names = {"bos_token": BOS, "eos_token": EOS}
        try:
            rendered, _ = render_jinja_template(
                [messages], tools=tools, chat_template=self.source, add_generation_prompt=prompt, **names
            )
        except Exception:
            return None
        return str(rendered[0])


def ways(messages: Messages) -> Iterator[Messages]:
    """A conversation as templates may want it: without nulls, arguments as objects or as text."""
    told = []
    for message in messages:
        content = message["content"]
        content = "".join(part["text"] for part in content) if isinstance(content, list) else content or ""
        kept = {k: v for k, v in message.items() if v is not None and k not in ("weight", "train")}
        told.append({**kept, "content": content})
    for change in (json.loads, json.dumps):
        way = [dict(message) for message in told]
        for message in way:
            if "tool_calls" in message:
                message["tool_calls"] = [{**c, "function": dict(c["function"])} for c in message["tool_calls"]]
                for one in message["tool_calls"]:
                    value = one["function"]["arguments"]
                    if isinstance(value, str) is (change is json.loads):
                        one["function"]["arguments"] = change(value)
        yield way
    yield [{**message, "role": "system"} if message["role"] == "developer" else message for message in told]


def undated(text: str) -> str:
    """Without today's date, which ours has fixed."""
    now, then = time.localtime(), time.strptime("2024-07-26", "%Y-%m-%d")
    for form in ("%Y-%m-%d", "%d %b %Y", "%d %B %Y", "%B %d, %Y", "%d-%m-%Y", "%A, %B %d, %Y"):
        for day in (now, then):
            text = text.replace(time.strftime(form, day), "TODAY")
    return text


def judge(template: ChatTemplate, truth: Truth, case: Case) -> Verdict:
    """How a pair fares."""
    try:
        rendered = template.spans(case.messages, case.tools)
    except DataError as error:
        return refused(template, truth, case, str(error))
    problem = fault(rendered, truth, case, case.says)
    return Verdict("wrong", problem) if problem else Verdict("trains", shown(rendered))


def refused(template: ChatTemplate, truth: Truth, case: Case, reason: str) -> Verdict:
    """Whether a refusal is right: what it says holds, and what it advises works."""
    if "--train last" in reason:
        try:
            rendered = template.spans(case.messages, case.tools, "last")
        except DataError as error:
            return Verdict("untrue", f"{reason} -- but then: {error}")
        problem = fault(rendered, truth, case, case.says[-1:], last=True)
        return Verdict("wrong", problem) if problem else Verdict("last", f"{reason} -- {shown(rendered)}")
    wholes = truth.renderings(case.messages, case.tools)
    if not wholes:
        return Verdict("refused" if "failed" in reason else "untrue", reason)
    said = [word for words in case.says for word in words]
    said += [m["content"] for m in case.messages if isinstance(m["content"], str) and m["role"] != "assistant"]
    if "into the middle" in reason:
        return Verdict("refused", reason)
    missing = min(([word for word in said if word not in whole] for whole in wholes), key=len)
    return Verdict("refused" if missing else "untrue", f"{reason} (transformers leaves out: {missing})")


def fault(
    rendered: Rendered, truth: Truth, case: Case, says: Sequence[Sequence[str]], last: bool = False
) -> str | None:
    """What is wrong with a rendering; None where nothing is."""
    text, trained = rendered.text, [rendered.text[a:b] for a, b in rendered.spans]
    if len(trained) != len(says):
        return f"{len(trained)} spans for {len(says)} answers: {shown(rendered)}"
    answers = [i for i, m in enumerate(case.messages) if m["role"] == "assistant" and m.get("weight") != 0]
    others = [m["content"] for m in case.messages if m["role"] != "assistant"] + ["Wrongguess."]
    for span, words in zip(trained, says, strict=True):
        places = [span.find(word) for word in words]
        if -1 in places:
            return f"{words} are not all trained: {shown(rendered)}"
        if any(isinstance(other, str) and other and other in span for other in others):
            return f"more than an answer is trained: {shown(rendered)}"
        behind = span[max(place + len(word) for place, word in zip(places, words, strict=True)) :]
        if (found := [end for end in ENDS if end in behind]) and not any(span.endswith(end) for end in found):
            return f"the span goes past its end: {shown(rendered)}"
        if not found and not last and any(end in text for end in ENDS):
            return f"the span has no end: {shown(rendered)}"
    text, wholes = undated(text), truth.renderings(case.messages, case.tools)
    wholes += truth.renderings(case.messages[: answers[-1] + 1], case.tools)
    if not all(word in wholes[0] for words in says for word in words):  # what only the generation prompt makes room for
        wholes = truth.renderings(case.messages[: answers[-1]], case.tools, prompt=True)
    if not last and wholes and not any(text.startswith(whole) or whole.startswith(text) for whole in wholes):
        return f"the text is not that of transformers: {text!r} instead of {wholes[0]!r}"
    for i, (start, _) in zip(answers[-len(says) :], rendered.spans, strict=True):
        front = undated(rendered.text[:start])
        prompts = truth.renderings(case.messages[:i], case.tools, prompt=True) if i else []
        if prompts and not any("".join(prompt.split()).startswith("".join(front.split())) for prompt in prompts):
            return f"an answer begins behind {front[-80:]!r}, and generation shows {prompts[0][-80:]!r}"
    return None


def shown(rendered: Rendered) -> str:
    """The text with what trains in double brackets, without its long beginning."""
    text, at = "", 0
    for start, end in rendered.spans:
        text += rendered.text[at:start] + "⟦" + rendered.text[start:end] + "⟧"
        at = end
    text += rendered.text[at:]
    return repr(text[max(0, text.find("⟦") - 160) :])


def tried(folder: Path, names: Sequence[str], vocabulary: bool) -> Iterator[tuple[str, str, Verdict]]:
    """Every template on every conversation."""
    for path in sorted(folder.glob("*.jinja")):
        source = path.read_text()
        ends = list(ENDS) if vocabulary else []
        controls = {*ENDS, BOS, EOS, *_TAG.findall(source)} if vocabulary else set()
        ends = [end for end in ends if end in source or end == EOS]
        if {"<|return|>", "<|call|>"} <= set(ends) or {"<|calls|>", "<|begin|>"} <= set(ends) | controls:
            ends = [end for end in ends if end != "<|end|>"]
        template, truth = ChatTemplate(source, BOS, EOS, ends, controls), Truth(source)
        for name, case in CASES.items():
            if not names or name in names:
                yield path.stem, name, judge(template, truth, case)
        template.close()


def main() -> int:
    """Prints a table, the faults, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("conversations", nargs="*", help=f"some of {', '.join(CASES)}; default: all")
    parser.add_argument("--no-vocabulary", action="store_true", help="as if the model had none of the control tokens")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every verdict")
    args = parser.parse_args()
    signs = {"trains": ".", "last": "l", "refused": "r", "untrue": "U", "wrong": "W"}
    counts: Counter[str] = Counter()
    row, line = "", ""
    faults = []
    for template, case, verdict in tried(args.folder, args.conversations, not args.no_vocabulary):
        if template != row and row:
            print(f"{row:60s} {line}")
        row, line = template, (line if template == row else "") + signs[verdict.kind]
        counts[verdict.kind] += 1
        if args.verbose or verdict.kind in ("untrue", "wrong"):
            faults.append(f"{template} {case}: {verdict.kind}: {verdict.text}")
    print(f"{row:60s} {line}\n" + "\n".join(faults))
    print(", ".join(f"{kind} {counts[kind]} ({sign})" for kind, sign in signs.items()))
    return int(bool(counts["untrue"] + counts["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
