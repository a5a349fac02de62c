"""Small chat templates, one for each way in which published ones differ: how they end turns, open thoughts, write calls
and change what was said before.
"""

from __future__ import annotations

from pathlib import Path

_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_CALLS = (
    "{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + ' ' + c.function.arguments | tojson + '</call>' }}{% endfor %}"
)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}" + _PROMPT
)
# Calls and thoughts are in the text, also those of earlier answers.
SAYS_ALL = (
    "{% for t in tools or [] %}{{ t | tojson + '\n' }}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}{{ m.content }}"
    + _CALLS
    + "{{ '<|im_end|>\n' }}{% endfor %}"
    + _PROMPT
)
# Thoughts of answers that a question follows are left out; the last answer always has one, if an empty one.
FORGETS_THOUGHTS = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% set text = m.content %}"
    "{% set why = m.reasoning_content or '' %}{% if m.role == 'assistant' and '</think>' in text %}"
    "{% set why = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or why) %}"
    "{{ '<think>\n' + why + '\n</think>\n\n' }}{% endif %}{{ text }}"
    + _CALLS
    + "{{ '<|im_end|>\n' }}{% endfor %}"
    + _PROMPT
)
# The generation prompt opens a thought, and answers never show theirs.
OPENS_THOUGHTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# The generation prompt closes a thought at once, which answers do not.
CLOSES_THOUGHTS = CHATML.replace("assistant\n' }}", "assistant\n<think></think>' }}")
# No turn ends by itself: the next one's beginning says that it has.
ENDS_IN_NEXT_ROLE = (
    "[start]{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ '<|observation|>\n' + m.content }}{% else %}"
    "{{ '<|' + m.role + '|>\n' + ('<think></think>' if m.role == 'assistant' else '') + m.content }}"
    + _CALLS
    + "{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ENDS_IN_NEXT_TURN = (
    "{% for m in messages %}{% if not loop.first %}{{ '<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_end|>\n<|im_start|>assistant\n' }}{% endif %}"
)
# A thought and an answer are two parts of a turn, each with an end; only that of the last answer makes a model stop.
TWO_CHANNELS = (
    "{% for m in messages %}{% set last = loop.last %}{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content and last %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.reasoning_content + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if last else '<|end|>') }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# The first message must be a question or an order, and the order of system messages is shown with the last question.
STRICT = (
    "{% if messages[0].role == 'system' %}{% set order = messages[0].content %}{% set turns = messages[1:] %}{% else %}"
    "{% set turns = messages %}{% endif %}{% if turns[0].role != 'user' %}"
    "{{ raise_exception('a question must come first') }}{% endif %}{{ bos_token }}{% for m in turns %}"
    "{% set first = order + '\n\n' if loop.last and order is defined else '' %}"
    "{% if m.role == 'user' %}{{ '[INST]' + first + m.content + '[/INST]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
# Arguments of calls are put together as text.
CALLS_AS_TEXT = SAYS_ALL.replace("c.function.arguments | tojson", "c.function.arguments")
# Looks at the first message whether it is there or not.
WANTS_A_MESSAGE = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}" + CHATML
)
KNOWS_SYSTEM_ONLY = CHATML.replace(
    "{% for m in messages %}", "{% for m in messages if m.role in ('system', 'user', 'assistant') %}"
)

KINDS = {
    name.lower(): source for name, source in list(globals().items()) if name.isupper() and not name.startswith("_")
}


def write(folder: Path) -> Path:
    """A folder with one file for each."""
    for name, source in KINDS.items():
        (folder / f"{name}.jinja").write_text(source)
    return folder


_TOKENS = (
    "<|start|>", "<|end|>", "<|return|>", "<|channel|>", "<|message|>", "<|user|>", "<|assistant|>", "<|observation|>",
    "<|system|>",
)  # fmt: skip


def write_model(path: Path, template: bool = True) -> Path:
    """A tiny model whose vocabulary has the control tokens of all kinds, in place of its last merges.

    template: whether it has a chat template.
    """
    from tests.support.random_models import write_model as write_random
    from tests.support.shapes import Shape
    from tests.text.vocabularies import metadata

    shape, control = Shape(vocab=340), 3
    values = dict(metadata(write_random(path, shape)))
    for key, last in (("tokens", _TOKENS), ("token_type", [control] * len(_TOKENS))):
        values[f"tokenizer.ggml.{key}"] = [*values[f"tokenizer.ggml.{key}"][: -len(_TOKENS)], *last]
    values["tokenizer.ggml.merges"] = values["tokenizer.ggml.merges"][: -len(_TOKENS)]
    if not template:
        del values["tokenizer.chat_template"]
    return write_random(path, shape, vocabulary=values)
