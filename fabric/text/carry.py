"""What ships with a trained result so that others prompt it as it was trained."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from fabric.text.encode import Example
from fabric.text.template import ChatTemplate
from fabric.text.tokenizer import Tokenizer
from fabric.weights.chat import CHAT_TEMPLATE, END_KEYS, Chat


def end_tokens(example: Example, tokenizer: Tokenizer) -> set[int]:
    """The control tokens with which the trained runs of a whole row end."""
    if example.cut:
        return set()
    last = example.train.astype(bool) & ~np.append(example.train[1:], 0).astype(bool)
    return {token for token in example.tokens[last].tolist() if tokenizer.tokens[token] in tokenizer.control_texts}


def chat_of(template: ChatTemplate, tokenizer: Tokenizer, ends: Collection[int]) -> Chat:
    """The template of a result whose answers ended in these tokens, and those of them that its base does not name."""
    chat: dict[str, Any] = {CHAT_TEMPLATE: template.source}
    held = dict(zip(END_KEYS, (tokenizer.eot_id, tokenizer.eom_id), strict=True))
    missing = sorted(set(ends) - {tokenizer.eos_id, *held.values()})
    free = [key for key in END_KEYS if held[key] is None or held[key] not in ends]
    return chat | dict(zip(free, missing, strict=False))
