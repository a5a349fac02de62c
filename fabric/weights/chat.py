"""How a file says what it was trained to be prompted with: its chat template and the tokens that end answers, under the
keys that every reader of GGUF knows. Adapters carry them too, and `merge` puts them into the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHAT_TEMPLATE = "tokenizer.chat_template"
END_KEYS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")

Chat = Mapping[str, Any]
"""Metadata: the template, and those ends that are not in the base."""


def chat_in(metadata: Mapping[str, Any]) -> Chat:
    """What a file carries; nothing where it has no template."""
    if not isinstance(metadata.get(CHAT_TEMPLATE), str):
        return {}
    ends = {key: metadata[key] for key in END_KEYS if isinstance(metadata.get(key), int)}
    return {CHAT_TEMPLATE: metadata[CHAT_TEMPLATE], **ends}
