"""Where in a rendered conversation the answers stand: what of its text a model must produce.

An answer begins where the generation prompt of the messages before it ends, and ends with what makes the model stop.
Both are found in the rendering of the whole conversation with the help of marks, and everything that an answer says
must be in between: a template that leaves a part of it out would train something else than the row says.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from fabric.errors import DataError
from fabric.text.conversation import Conversation
from fabric.text.marks import TAG, Marked, mark, said_fields, says
from fabric.text.worker import Ask, Worker

Span = tuple[int, int]

# A beginning of a conversation costs as much to render as it is long, so in a long one not every answer is rendered by
# itself: those that are, some of each kind, show how the others are framed.
_CHECKED_CHARS = 1 << 20
_MESSAGE_CHARS = 64  # that a message costs beside its own
_OPENER_CHARS = 64  # of a generation prompt that an answer need not begin with, such as `<think>`
_THOUGHT = re.compile("think|thought|reason", re.IGNORECASE)
_HEADER_CHARS = 1 << 10
_SPECIAL = r"<[|｜][^<>\s]+[|｜]>"  # looks like a control token
_LAST = "; --train last trains the last answer of each conversation, as generation shows it"


class Answers(NamedTuple):
    """The text of a conversation and the ranges of its answers; `shown` is the text without the mask over it."""

    text: str
    shown: str
    spans: list[Span]


class Refusal(DataError):
    """A conversation renders, but not to what its row says."""


@dataclass(frozen=True)
class Finder:
    """Finds answers with one template. ends: finds tokens that end an answer; controls: any control token."""

    worker: Worker
    ends: re.Pattern[str]
    controls: re.Pattern[str]

    def find(self, masked: Conversation, shown: Conversation, last: bool) -> Answers:
        """The answers of a conversation that train. masked: with other characters for look-alikes of control tokens.
        last: only the last message trains, and in the context that generation gives it.

        Raises Refusal where an answer does not come out as the row has it, DataError where the template fails.
        """
        for calls in (True, False):
            search = _Search(self, masked, shown, last, mark(masked, calls))
            if search.whole.text == search.text:
                return search.answers()
        raise Refusal("the chat template looks into messages in a way that hides where an answer begins and ends")


class _Rendering:
    """A text without its marks, and the characters at which those of each message begin and end."""

    def __init__(self, marked: Marked, text: str) -> None:
        self.text, self.places = marked.located(text)
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        for number, place in self.places.items():
            i = marked.marks[number].message if number < len(marked.marks) else len(marked.conversation.messages)
            self.first[i] = min(self.first.get(i, place), place)
            self.last[i] = max(self.last.get(i, place), place)

    def before(self, i: int) -> int:
        """Where the marks of the messages before message i end."""
        return max((place for message, place in self.last.items() if message < i), default=0)


@dataclass(frozen=True)
class _Place:
    """Where an answer stands: from `start` on it says something up to `said`, and then comes `stop`.

    instead: what takes the place of the text up to `said`, a prompt and the answer, each masked and shown.
    """

    start: int
    said: int
    stop: str
    instead: tuple[tuple[str, str], tuple[str, str]] | None = None


class _Search:
    """One conversation on its way to its answers. Texts are masked unless they are called shown."""

    def __init__(self, finder: Finder, masked: Conversation, shown: Conversation, last: bool, marked: Marked) -> None:
        self.finder, self.masked, self.unmasked, self.last_only, self.marked = finder, masked, shown, last, marked
        self.end = len(masked.messages) - 1  # the last message
        chosen = _chosen(masked)
        inner = [i for i in chosen if i < self.end]
        conversations = [masked.contents, marked.conversation.contents]
        asks = [Ask(0), Ask(1), *(Ask(1, i, True, base=1) for i in chosen), *(Ask(1, i + 1, base=1) for i in inner)]
        if shown is not masked:
            conversations.append(shown.contents)
            asks.append(Ask(2, base=0))
        texts = iter(finder.worker.render(conversations, asks))
        self.text, marked_text = _sure(next(texts)), next(texts)
        self.whole = _Rendering(marked, "" if isinstance(marked_text, DataError) else marked_text)
        self.prompts = {i: self._rendering(text) for i, text in zip(chosen, texts, strict=False)}
        self.alone = {i: self._rendering(text) for i, text in zip(inner, texts, strict=False)} | {self.end: self.whole}
        self.shown = _sure(next(texts, self.text))
        ends = (self.whole.last.get(i, 0) for i in range(self.end + 1))
        self.before = list(accumulate(ends, max, initial=0))  # before[i]: where the marks before message i end
        self.special = re.compile(f"{_SPECIAL}|{finder.controls.pattern}")
        self.firsts = sorted((place, i) for i, place in self.whole.first.items())

    def answers(self) -> Answers:
        """All that train."""
        opened = self._check_said()
        checked = {i: self._opened(i) if i == opened else self._checked(i) for i in self.prompts}
        fronts = sorted({self.text[self.before[i] : p.start] for i, p in checked.items()}, key=len, reverse=True)
        stops = sorted({p.stop for p in checked.values()}, key=len, reverse=True)
        text, shown, spans = self.text, self.shown, []
        for i in self.masked.trains:
            place = checked.get(i) or self._like(i, fronts, stops)
            start, said = place.start, place.said
            if place.instead is not None:  # of the last message alone
                prompt, answer = place.instead
                text, shown = (a + b + c[said:] for a, b, c in zip(prompt, answer, (text, shown), strict=True))
                start, said = len(prompt[0]), len(prompt[0]) + len(answer[0])
            if not text.startswith(place.stop, said):
                text, shown = text[:said] + place.stop, shown[:said] + place.stop
            if said + len(place.stop) > start:
                spans.append((start, said + len(place.stop)))
        return Answers(text, shown, spans)

    def _checked(self, i: int) -> _Place:
        start, prompt = self._start(i)
        said = self.whole.last.get(i, start)
        stop = self._stop(i, start, said)
        inner = self.finder.ends.search(self.text, start, said)
        if inner and stop.endswith(inner[0]):
            raise Refusal(
                f"the chat template writes {inner[0]!r} into the middle of answer {self._number(i)}, where a model "
                "would stop; leave such rows out, or give another template with --template"
            )
        instead = None if prompt is None else (prompt, (self.text[start:said], self.shown[start:said]))
        return _Place(start, said, stop, instead)

    def _like(self, i: int, fronts: Sequence[str], stops: Sequence[str]) -> _Place:
        """An answer that was not rendered by itself: framed as one that was."""
        at = self.before[i]
        front = next((f for f in fronts if self.text.startswith(f, at)), None)
        if front is not None and at + len(front) <= self.whole.first.get(i, len(self.text)):
            start = at + len(front)
            said = self.whole.last.get(i, start)
            found = self.finder.ends.search(self.text[said : self._next(i, said)])
            known = (s for s in stops if self.text.startswith(s, said))
            stop = self.text[said : said + found.end()] if found else next(known, None)
            if stop is not None:
                return _Place(start, said, stop)
        raise Refusal(
            f"the chat template writes answer {self._number(i)} like none of those that were looked at in this long "
            "conversation; split it"
        )

    # ---- where an answer begins ----

    def _start(self, i: int) -> tuple[int, tuple[str, str] | None]:
        """The first character, and the prompt where it is not the text up to there."""
        prompt, at = self.prompts[i], self.before[i]
        if isinstance(prompt, DataError):
            return self._start_after_a_question(i, str(prompt)), None
        front, behind = self.text[at : self.whole.first.get(i, self._next(i, at))], prompt.before(i)
        tail, same = prompt.text[behind:], prompt.text[:behind] == self.text[:at]
        shared = _meet(tail, front)
        if shared is None:
            shared = _meet(tail, front.removesuffix(self._unmarked(i)))
        if same and shared is not None:
            return at + shared, None
        header = _header(tail, front)
        if same and header is not None and "".join(tail.split()) == "".join(front[:header].split()):
            return at + header, None
        if i == 0:  # of no messages at all, templates render something else
            return self._start_after_a_question(i, "without messages it begins otherwise"), None
        if self.last_only and shared is not None:
            return at + shared, self._prompt(i, behind + shared)
        if self.last_only and header is not None:
            return at + header, self._prompt(i, None)
        what = "generation prompt of" if same else "text in front of"
        raise Refusal(
            f"the chat template writes the {what} answer {self._number(i)} differently once it is answered{_LAST}"
        )

    def _unmarked(self, i: int) -> str:
        """What of an answer's content stands in front of its first mark: spaces and tags."""
        return str(self.marked.conversation.messages[i]["content"]).partition(self.marked.base)[0]

    def _start_after_a_question(self, i: int, why: str) -> int:
        """Of an answer in front of which generation has nothing to show: as it begins when a question comes first."""
        question, number = self.marked.follow_up("user")
        messages, tools = self.marked.conversation.contents
        conversation = [[*messages[:i], question, *messages[i:]], tools]
        texts = self.finder.worker.render([conversation], [Ask(), Ask(upto=i + 1, prompt=True)])
        whole, prompt = map(self._rendering, texts)
        if not isinstance(whole, DataError) and not isinstance(prompt, DataError) and i in whole.first:
            front = whole.text[whole.places.get(number, 0) : whole.first[i]]
            shared = _meet(prompt.text[prompt.places.get(number, 0) :], front)
            first = self.whole.first.get(i, 0)
            if shared is not None and self.text[:first].endswith(front[shared:]):
                return first - (len(front) - shared)
        raise Refusal(f"the chat template does not render what stands before answer {self._number(i)} ({why})")

    def _prompt(self, i: int, upto: int | None) -> tuple[str, str]:
        """The generation prompt of an answer, masked and shown, or its beginning."""
        prompt = self.prompts[i]
        assert isinstance(prompt, _Rendering)
        shown = prompt.text
        if self.unmasked is not self.masked:
            shown = _sure(self.finder.worker.render([self.unmasked.contents], [Ask(upto=i, prompt=True)])[0])
        return prompt.text[:upto], shown[:upto]

    # ---- where an answer ends ----

    def _stop(self, i: int, start: int, said: int) -> str:
        """What makes the model stop: text from `said` on."""
        alone = self.alone[i]
        if i not in self.whole.last:  # nothing follows from it
            tail = "" if i < self.end else self.text[start:]
        else:
            tail = "" if isinstance(alone, DataError) else alone.text[alone.last.get(i, start) :]
        if found := self.finder.ends.search(tail):
            stop = tail[: found.end()]
        else:
            stop = self._stop_in(self.text[said : self._next(i, said)] if i < self.end else self._followed(said), tail)
        if i < self.end and (not self.text.startswith(stop, said) or (tail.strip() and not stop)):
            raise Refusal(f"the chat template ends answer {self._number(i)} differently once messages follow{_LAST}")
        return stop

    def _stop_in(self, following: str, tail: str) -> str:
        """Where no token of the model ends the answer: what its turn adds, or the token that begins the next turn.

        following: what stands between the answer and the next message; tail: what stands behind it as the last.
        """
        if following.startswith(tail):
            if found := self.finder.ends.search(following):
                return following[: found.end()]
            begun = self.special.match(following, len(tail) + _spaces(following[len(tail) :]))
            if begun and not self.special.search(tail):
                return following[: begun.end()]
            if not tail and (found := TAG.search(following)):
                return following[: found.end()]
        shared = tail[: _whole_tags(_shared(tail, following), tail, following)].rstrip()
        return next((told for told in (shared, tail.rstrip()) if _ends_in_tag(told)), tail)

    def _followed(self, said: int) -> str:
        """What stands between the last message and one that comes next."""
        calls = self.masked.messages[self.end].get("tool_calls")
        found = [self.marked.follow_up(role) for role in (("tool", "user") if calls else ("user", "tool"))]
        asks = [Ask(more=[message]) for message, _ in found]
        texts = self.finder.worker.render([self.marked.conversation.contents], asks)
        for text, (_, number) in zip(map(self._rendering, texts), found, strict=True):
            if not isinstance(text, DataError) and number in text.places:
                return text.text[text.last.get(self.end, said) : text.places[number]]
        return ""

    # ---- what of an answer is there ----

    def _check_said(self) -> int | None:
        """Raises Refusal where something that the row says is not in the text.

        Returns the number of an answer whose thought the template leaves out but opens in its generation prompt.
        """
        missing: dict[int, list[int]] = {}
        for number, place in enumerate(self.marked.marks):
            if number not in self.whole.places:
                missing.setdefault(place.message, []).append(number)
        opened = None
        for i, numbers in missing.items():
            if i not in self.masked.trains:
                self._check_context(i)
            elif i == self.end and self._opening() and all(self.marked.marks[n].field == "content" for n in numbers):
                opened = i
            else:
                raise self._left_out(i, numbers)
        self._check_numbers()
        return opened

    def _check_context(self, i: int) -> None:
        """Raises Refusal for a message of which the text has nothing, but for answers, which may be thoughts alone."""
        if self.masked.messages[i].get("role") == "assistant":
            return
        prompt = self.prompts[self.masked.trains[-1]]
        answered = i in self.whole.last
        prompted = isinstance(prompt, _Rendering) and i in prompt.last
        if not answered and not (prompted and self.last_only):
            what = f"leaves message {i + 1}, of role {self.masked.messages[i].get('role')!r}, out of the text"
            raise Refusal(f"the chat template {what}{' once it is answered' + _LAST if prompted else ''}")

    def _check_numbers(self) -> None:
        """What is no text has no marks; a rendering with numbers in its place shows what of it is there."""
        if not any(said_fields(self.masked.messages[i]) for i in self.masked.trains):
            return
        marked = mark(self.masked, numbers=True)
        if len(marked.marks) == len(self.marked.marks):
            return
        (text,) = self.finder.worker.render([marked.conversation.contents], [Ask()])
        if isinstance(text, DataError):
            return
        places = marked.located(text).places
        for number, place in enumerate(marked.marks):
            if number not in places and place.message in self.masked.trains and place.field != "content":
                raise Refusal(self._leaves_out(place.message, place.field))

    def _left_out(self, i: int, numbers: Sequence[int]) -> Refusal:
        field = self.marked.marks[numbers[0]].field
        alone = self.alone.get(i)
        if alone is None:
            alone = self._rendering(
                self.finder.worker.render([self.marked.conversation.contents], [Ask(upto=i + 1)])[0]
            )
        if i < self.end and not isinstance(alone, DataError) and not set(numbers) - alone.places.keys():
            what = f"leaves {_named(field)} of answer {self._number(i)} out once other messages follow"
            return Refusal(f"the chat template {what}{_LAST}")
        return Refusal(self._leaves_out(i, field))

    def _leaves_out(self, i: int, field: str) -> str:
        return (
            f"the chat template leaves {_named(field)} of answer {self._number(i)} out of the text; give one that "
            'knows it with --template, or set "train": false beside it'
        )

    # ---- a thought in the content of the last message that only the generation prompt knows ----

    def _opening(self) -> tuple[str, str] | None:
        """The tag with which content and generation prompt both open a thought, and the space behind it there."""
        prompt, content = self.prompts.get(self.end), self.masked.messages[self.end]["content"]
        if not isinstance(prompt, _Rendering) or not isinstance(content, str) or self.end not in self.whole.last:
            return None
        tag, told = TAG.match(content.lstrip()), prompt.text.rstrip()
        return (tag[0], prompt.text[len(told) :]) if tag and told.endswith(tag[0]) else None

    def _opened(self, i: int) -> _Place:
        opening = self._opening()
        assert opening is not None
        tag, space = opening

        def continued(message: dict[str, Any]) -> str:
            return str(message["content"].strip()[len(tag) :].removeprefix(space))

        said = self.whole.last[i]
        answer = continued(self.masked.messages[i]), continued(self.unmasked.messages[i])
        return _Place(said, said, self._stop(i, said, said), (self._prompt(i, None), answer))

    # ---- small things ----

    def _rendering(self, text: str | DataError) -> _Rendering | DataError:
        return text if isinstance(text, DataError) else _Rendering(self.marked, text)

    def _next(self, i: int, at: int) -> int:
        """Where the next mark of a later message than i stands."""
        later = range(bisect_left(self.firsts, (at, -1)), len(self.firsts))
        return next((self.firsts[n][0] for n in later if self.firsts[n][1] > i), len(self.text))

    def _number(self, i: int) -> int:
        return sum(message.get("role") == "assistant" for message in self.masked.messages[: i + 1])


def _named(field: str) -> str:
    return "a part of the content" if field == "content" else repr(field)


def _sure(text: str | DataError) -> str:
    if isinstance(text, DataError):
        raise text
    return text


def _meet(tail: str, front: str) -> int | None:
    """How many characters of a generation prompt stand in front of an answer; None where it begins otherwise.

    An answer need not begin with an opener of thoughts, which templates write for generation alone.
    """
    shared = _shared(tail, front)
    if shared == len(tail):
        return shared
    shared = _whole_tags(shared, tail, front)
    opener, rest = tail[shared:], front[shared:]
    if len(opener) <= _OPENER_CHARS and (not rest or not opener.strip() or _THOUGHT.search(opener)):
        return shared
    return None


def _whole_tags(shared: int, *texts: str) -> int:
    """A length at which no text is cut inside a tag."""
    for text in texts:
        shared = min([shared, *(tag.start() for tag in TAG.finditer(text) if tag.start() < shared < tag.end())])
    return shared


def _ends_in_tag(text: str) -> bool:
    return any(tag.end() == len(text) for tag in TAG.finditer(text))


def _spaces(text: str) -> int:
    return len(text) - len(text.lstrip())


def _header(tail: str, front: str) -> int | None:
    """How much of `front` ends like a generation prompt does, where the two begin differently."""
    tail, found, most = tail[-_HEADER_CHARS:], None, 0
    for end in range(len(front), max(len(front) - _HEADER_CHARS, 0), -1):
        alike = _shared(tail[::-1], front[:end][::-1])
        if alike > most and TAG.search(tail, len(tail) - alike):
            found, most = end, alike
    return found


def _shared(a: str, b: str) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _chosen(conversation: Conversation) -> list[int]:
    """The answers that are rendered by themselves: all of a short conversation, some of each kind of a long one."""
    messages = conversation.messages
    costs = list(accumulate(_MESSAGE_CHARS + sum(len(str(value)) for value in m.values()) for m in messages))
    left, kinds = _CHECKED_CHARS, Counter[Any]()
    chosen = []
    for i in conversation.trains:
        around = [messages[j] if 0 <= j < len(messages) else {} for j in (i - 1, i + 1)]
        kind = (*(m.get("role") for m in around), *said_fields(messages[i]), says(messages[i].get("content")))
        if kinds[kind] < 2 or costs[i] <= left or i == conversation.trains[-1]:
            chosen.append(i)
            kinds[kind] += 1
            left -= costs[i]
    return chosen
