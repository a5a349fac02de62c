"""What eval and generate stand on: a base opened on a device, its text side, and adapters ready to be added."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from fabric.devices.opening import Placed, opened
from fabric.files import shown
from fabric.models import architecture_of
from fabric.models.inference import frozen_loras, pick_precision
from fabric.models.recorder import Source, Weights
from fabric.text.template import ChatTemplate
from fabric.text.tokenizer import Tokenizer
from fabric.weights.adapter import Adapter, check_adapter, other_base, read_adapter
from fabric.weights.chat import CHAT_TEMPLATE
from fabric.weights.gguf import GGUF
from fabric.weights.settings import AdapterInput

T = TypeVar("T")


@dataclass(frozen=True)
class Text:
    """A file's tokenizer, the adapters that go with it, and the chat template in use."""

    gguf: GGUF
    tokenizer: Tokenizer
    template: ChatTemplate
    adapters: Sequence[tuple[AdapterInput, Adapter]]


@dataclass(frozen=True)
class Model:
    """Base weights on a device, and adapters with their scales."""

    weights: Weights
    adapters: Sequence[tuple[Adapter, float]]
    precision: str
    device: str
    """The name by which it was opened."""
    notes: Sequence[str]
    """Adapters that were trained beside another file; the device where it was chosen here."""

    @cached_property
    def loras(self) -> Mapping[str, Source]:
        """All adapters together."""
        return frozen_loras(self.weights, self.adapters)

    @property
    def each(self) -> list[Mapping[str, Source]]:
        """Each adapter by itself."""
        return [frozen_loras(self.weights, [adapter]) for adapter in self.adapters]


@contextlib.contextmanager
def open_text(path: str, template: str | None, adapters: Sequence[AdapterInput] = ()) -> Iterator[Text]:
    """Maps a model, reads its adapters and builds its text side: an adapter's chat template takes the place of the
    model's. Raises DataError, MissingInputError."""
    with GGUF.open(path) as gguf:
        architecture_of(gguf)
        tokenizer = Tokenizer.from_gguf(gguf.metadata)
        read = [(given, read_adapter(given.path)) for given in adapters]
        carried = {shown(given.path): adapter.chat[CHAT_TEMPLATE] for given, adapter in read if adapter.chat}
        with contextlib.closing(ChatTemplate.choose(tokenizer, template, carried)) as chosen:
            yield Text(gguf, tokenizer, chosen, read)


@contextlib.contextmanager
def open_model(
    text: Text,
    settings: Placed,
    make: Callable[[Model], contextlib.AbstractContextManager[T]],
) -> Iterator[tuple[Model, T]]:
    """Adapters checked against the base, both on the device, and what is made of them there. Raises DataError,
    DeviceError."""
    scaled, notes, gguf = [], [], text.gguf
    for given, adapter in text.adapters:
        check_adapter(adapter, gguf, given.path)
        notes += other_base(adapter, gguf, given.path)
        scaled.append((adapter, given.scale))

    @contextlib.contextmanager
    def made(settings: Placed, weights: Weights) -> Iterator[tuple[Model, T]]:
        model = Model(weights, scaled, pick_precision(weights.device, settings.precision), settings.device, notes)
        with make(model) as what:
            yield model, what

    with opened(settings, gguf, made) as found:
        notes[:0] = [found.taken] if found.taken else []
        yield found.made
