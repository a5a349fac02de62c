"""Chat templates: conversations to text, and the spans of it that a model must produce."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fabric.errors import DataError
from fabric.files import read_input, shown
from fabric.notices import notice, remark
from fabric.settings import TrainOn
from fabric.text.answers import Finder, Refusal, Span
from fabric.text.conversation import Conversation, asks_in_vain, forms
from fabric.text.tokenizer import Tokenizer
from fabric.text.worker import RENDER_SECONDS, Ask, Worker
from fabric.weights.chat import CHAT_TEMPLATE

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' }}"
    "{{ message['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
OWN = "its own"  # said of a template that lies in the file
_MAX_SOURCE_CHARS = 1 << 20
_ANOTHER = "been rendered with another chat template than the one in use; name theirs with --template"

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Any] | None


class Rendered(NamedTuple):
    """A conversation as text. Every range is [start, end) in characters, ascending.

    spans: what the model must produce, one for each answer: its content and its end-of-turn token.
    literal: text of messages that looks like a control token and is none.
    """

    text: str
    spans: list[Span]
    literal: list[Span]


class ChatTemplate:
    """A Jinja chat template. Rendering happens in a worker process with limits, started on first use.

    ends: spellings of the tokens that end an answer, `eos` where none are given. controls: spellings of control
    tokens, which mean nothing inside a message. seconds: the longest that one rendering may take. remark: said with
    `tell` once it is used.
    """

    def __init__(
        self,
        source: str,
        bos: str = "",
        eos: str = "",
        ends: Sequence[str] = (),
        controls: Iterable[str] = (),
        seconds: float = RENDER_SECONDS,
        remark: str = "",
        pad: str = "",
    ) -> None:
        if len(source) > _MAX_SOURCE_CHARS:
            raise DataError(f"the chat template has {len(source)} characters; at most {_MAX_SOURCE_CHARS} are read")
        self.source = source
        self._controls = _any_of(controls)
        self._worker = Worker(source, {"bos_token": bos, "eos_token": eos, "pad_token": pad}, seconds)
        self._finder = Finder(self._worker, _any_of([text for text in (ends or (eos,)) if text]), self._controls)
        self._remark, self._rows, self._unused = remark, 0, Counter[str]()
        self._made, self._made_elsewhere = 0, 0  # rows that this template rendered earlier, or another one

    @classmethod
    def choose(
        cls, tokenizer: Tokenizer, custom: str | None = None, adapters: Mapping[str, str] | None = None
    ) -> ChatTemplate:
        """The template in the file `custom`, else that of the adapters, else the model's own, else one by its tokens.

        adapters: name and template of those that carry one. `tell` says where it is another one than that of an
        adapter or of the model. Raises DataError, MissingInputError.
        """
        own, _ = template_in_use(tokenizer.chat_template, tokenizer.control_texts, tokenizer.eos_id is not None)
        carried = dict(adapters or {})
        told = ""
        if custom is not None:
            source, name = read_template(custom), shown(custom)
            others = [other for other, theirs in carried.items() if theirs != source]
            if others:
                told = f"the chat template {name} is used, not the one that {', '.join(others)} was trained with"
            elif not carried and tokenizer.chat_template not in (None, source):
                told = f"the chat template {name} is used, not the model's own"
        elif carried:
            name, source = list(carried.items())[-1]
            others = [other for other, theirs in carried.items() if theirs != source]
            if others:
                told = f"the chat template of {name} is used, not the one that {', '.join(others)} was trained with"
            elif source != own:
                told = f"the chat template of {name} is used, not the model's own"
        else:
            source = own

        def spelled(token: int | None) -> str:
            return "" if token is None else tokenizer.tokens[token]

        ends, controls = tokenizer.end_texts, tokenizer.control_texts
        bos, eos, pad = map(spelled, (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id))
        return cls(source, bos, eos, ends, controls, remark=told, pad=pad)

    def render(self, messages: Messages, tools: Tools = None, add_generation_prompt: bool = False) -> str:
        """The conversation as text; DataError where the template refuses it or passes its limits."""
        (text,) = self._worker.render([[messages, tools]], [Ask(prompt=add_generation_prompt)])
        return _sure(text)

    def prompt(self, messages: Messages, tools: Tools = None) -> Rendered:
        """What an answer to the conversation starts from."""

        def prompt(masked: Conversation, plain: Conversation) -> _Masked:
            return self._whole(masked, plain, True)

        return self._rendered(messages, tools, "all", prompt)

    def spans(self, messages: Messages, tools: Tools = None, train: TrainOn = "all") -> Rendered:
        """The conversation with its trained spans; DataError where the template does not write what the row says.

        train: all answers, but for those that a row takes out, or the last one of them, up to which the text then goes.
        """

        def spans(masked: Conversation, plain: Conversation) -> _Masked:
            if not masked.trains:
                return self._whole(masked, plain, False)
            found = self._finder.find(masked, plain, train == "last")
            return _Masked(found.shown, found.spans, found.text)

        return self._rendered(messages, tools, train, spans)

    @property
    def hash(self) -> str:
        """What rendered rows say of the template that made them: the beginning of its SHA-256."""
        return hashlib.sha256(self.source.encode()).hexdigest()[:16]

    @property
    def used(self) -> bool:
        """Whether a conversation was rendered, now or by the command that made the rows."""
        return self._rows + self._made > 0

    @property
    def used_another(self) -> bool:
        """Whether rows say that another template rendered them."""
        return self._made_elsewhere > 0

    def rendered_earlier(self, hash: str) -> None:
        """Counts a row that is rendered already, by the template of this hash."""
        self._made += hash == self.hash
        self._made_elsewhere += hash != self.hash
        if hash != self.hash:
            self._unused[
                "been rendered with another chat template than the one in use; name theirs with --template"
            ] += 1

    def tell(self, source: str) -> None:
        """Says which template is in use where that may surprise, and what of the rows of `source` has no effect.

        Raises DataError with --strict.
        """
        for what, rows in (+self._unused).items():
            notice(f"{source}: {rows:,} {'row has' if rows == 1 else 'rows have'} {what}")
        self._unused.clear()
        if self._remark and self._rows:
            remark(self._remark)
            self._remark = ""

    def close(self) -> None:
        """Ends the worker process."""
        self._worker.stop()

    def _rendered(
        self, messages: Messages, tools: Tools, train: TrainOn, render: Callable[[Conversation, Conversation], _Masked]
    ) -> Rendered:
        """The first form of a conversation that comes out whole."""
        self._rows += 1
        self._unused["messages that ask to train and are no answers"] += asks_in_vain(messages)
        if tools and "tools" not in self._worker.variables():
            self._unused["'tools', which the chat template does not show"] += 1
        problem: DataError | None = None
        for plain in forms(messages, tools, train):
            masked, private = self._masked(plain)
            try:
                text, spans, masked_text = render(masked, plain)
            except DataError as error:
                if problem is None or (isinstance(error, Refusal) and not isinstance(problem, Refusal)):
                    problem = error
                continue
            literal = [match.span() for match in re.finditer(f"{private}+", masked_text)] if private else []
            if masked_text != text and (
                len(text) != len(masked_text) or re.sub(private, "", masked_text) != "".join(_outside(text, literal))
            ):
                raise DataError(
                    "a message contains the spelling of a control token, which the chat template takes for more than "
                    "text; take it out of the message"
                )
            return Rendered(text, spans, literal)
        assert problem is not None
        raise problem

    def _whole(self, masked: Conversation, plain: Conversation, prompt: bool) -> _Masked:
        asks = [Ask(0, prompt=prompt), Ask(1, prompt=prompt, base=0)]
        texts = self._worker.render([masked.contents, plain.contents], asks[: 1 if masked is plain else 2])
        return _Masked(_sure(texts[-1]), [], _sure(texts[0]))

    def _masked(self, plain: Conversation) -> tuple[Conversation, str]:
        """Look-alikes of control tokens as private characters, as many: where those come out, they stand."""
        if not any(map(self._controls.search, _strings(plain.contents))):
            return plain, ""
        used = set().union(*_strings(plain.contents))
        private = next((chr(code) for code in range(0x100000, 0x10FFFE) if chr(code) not in used), None)
        if private is None:
            raise DataError(
                "a message has the spelling of a control token and every character from U+100000 to U+10FFFD"
            )

        def masked(value: Any) -> Any:
            if isinstance(value, str):
                return self._controls.sub(lambda match: private * len(match.group()), value)
            if isinstance(value, list):
                return [masked(item) for item in value]
            return {masked(k): masked(v) for k, v in value.items()} if isinstance(value, dict) else value

        return Conversation(masked(plain.messages), masked(plain.tools), plain.trains), private


class _Masked(NamedTuple):
    """A rendering with its spans, and the same with private characters for look-alikes of control tokens."""

    text: str
    spans: list[Span]
    masked: str


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def _sure(text: str | DataError) -> str:
    if isinstance(text, DataError):
        raise text
    return text


def template_in_use(own: str | None, controls: Collection[str], has_eos: bool) -> tuple[str, str]:
    """The template that commands use for a model where none is named, and what it is.

    own: the model's; controls: the spellings of its control tokens; has_eos: whether one ends texts.
    """
    if own:
        return own, OWN
    if {"<start_of_turn>", "<end_of_turn>"} <= set(controls):
        return _GEMMA, "Gemma's turns, for which the model has tokens"
    if "<|im_end|>" in controls or not has_eos:
        return CHATML, "ChatML"
    return CHATML.replace("'<|im_end|>\n'", "eos_token + '\n'"), "ChatML with the model's own end of a text"


def template_of(metadata: Mapping[str, Any], name: str) -> tuple[str, str]:
    """The template that commands use with a file where none is named, and what it is.

    Raises DataError for a file that has none and no tokens either, such as an adapter.
    """
    own = metadata.get(CHAT_TEMPLATE)
    if isinstance(own, str) and own:
        return own, OWN
    if metadata.get("general.type") == "adapter":
        raise DataError(f"{name}: an adapter without a chat template; commands use that of its base")
    tokenizer = Tokenizer.from_gguf(metadata)
    return template_in_use(None, tokenizer.control_texts, tokenizer.eos_id is not None)


def read_template(path: str, called: str = "the chat template") -> str:
    """The source of a Jinja template. Raises DataError, MissingInputError."""
    with read_input(path) as file:
        read = file.read(4 * _MAX_SOURCE_CHARS + 1)
    try:
        return read.decode()
    except UnicodeDecodeError:
        raise DataError(f"{called} {shown(path)} is not UTF-8 text") from None


def _strings(value: Any) -> Iterator[str]:
    """Every string inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.items():
            yield from _strings(item)


def _outside(text: str, ranges: Sequence[Span]) -> Iterable[str]:
    last = 0
    for start, end in ranges:
        yield text[last:start]
        last = end
    yield text[last:]
