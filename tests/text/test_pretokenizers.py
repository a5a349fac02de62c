"""Every pre-tokenizer that stock llama.cpp names, held to the ids that it gives."""

from __future__ import annotations

import random
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from fabric.text.pretokenize import PRE_TOKENIZERS, Splitter, find_pre
from fabric.text.tokenizer import Tokenizer
from tests.support import llama_cpp
from tests.support.paths import smollm2
from tests.text.vocabularies import in_plain_characters, metadata, shortened, write_tiny_model

STOCK = re.findall(
    r"\S+",
    "default minicpm5 llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano "
    "deepseek-llm deepseek-coder deepseek-v3 spark2_5 youtu falcon mpt starcoder gpt-2 phi-2 jina-es jina-de "
    "gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jais-2 gemma4 granite-embed-multi-311m "
    "sarvam-moe jina-v1-en jina-v2-code roberta-bpe whitespace refact command-r qwen2 deepseek-r1-qwen kormo "
    "f2llmv2 qwen35 stablelm2 olmo dbrx smaug-bpe poro-chat glm4 glm5 chatglm-bpe viking jais tekken smollm "
    "codeshell bloom gpt3-finnish exaone exaone4 exaone-moe chameleon minerva-7b megrez gpt-4o llama4 "
    "kanana2 talkie granite-embed-multi-97m tiny_aya cohere2moe superbpe trillion granite-docling bailingmoe "
    "bailingmoe2 llada-moe seed-coder hunyuan hunyuan-dense hy_v4 joyai-llm kimi-k2 ufakzeka grok-2 afmoe "
    "laguna minimax-m2 solar-open mellum2",
)
# An encoder's, whose text is changed before it is cut: a space comes in front of every line.
REFUSED = {"mmbert"}

TEXTS = (
    "It's we'LL I'M don’t they've 'twas HE'D",
    "def f(x):\n    return [x**2 for x in range(10)]\n\n\n# end\r\n\tpass",
    "1 12 123 1234 12345 1234567 3.14 1,000,000 0x1F a1b22c333d4444 ²³ Ⅷ ٣٤٥٦ १२३४",
    "中文字符，한국어 ひらがな カタカナ。ไทย ไทย ລາວ မြန်မာ ㄅㄆㄇ ㄱㄴ 「引用」…",
    "e\u0301 \u0301x n\u0303 हिन्दी नमस्ते বাংলা عَرَبِيّ Ǆǅǆ ʰ ß ﬁ İ ſ",
    "😀 👩‍💻 🌫️!! <|x|> ~~~ ^^ `code` $5 + #tag @me & (a) {b} [c] \\d",
    "a  b   c    d     e \t f \n \n  g\u00a0h\u2003i\u3000j\u0085k",
    "   \n\n \r\n\r\n  trailing   ",
    "IMGIMGABIZ <sentinel:12> /usr/bin/x.y?z=1&w=2 http://a.b/c_d-e",
)
PIECES = ["  ", "    ", "'s", "'LL", "1234567 ", "\n\n", "\r\n", "I'M", " a b c", "١٢٣", "hello", "ß", "中"]
LETTERS = " \n\t\r'\"!,.?/-_+~^`$#(){}<>|0123456789abcXYZé\u0301\u093c😀文字한"
LETTERS += "ぁカ、。！…ไǅʰ٣²Ⅷ\x04\x1c\x85\xa0\u3000\u200d"


def mixed(count: int) -> list[str]:
    """Texts of letters and pieces that the rows of the table tell apart."""
    draw = random.Random(7)
    one = lambda: draw.choice(PIECES) if draw.random() < 0.3 else draw.choice(LETTERS)  # noqa: E731
    return ["".join(one() for _ in range(draw.randint(1, 25))) for _ in range(count)]


@lru_cache(maxsize=2)
def vocabulary(plain: bool) -> dict[str, Any]:
    """SmolLM2's with its first merges, in bytes or in characters."""
    values = shortened(metadata(smollm2()), "default", merges=1500)
    return in_plain_characters(values) if plain else values


def build(pre: str) -> tuple[Tokenizer, dict[str, Any]]:
    values = {**vocabulary(find_pre(pre).plain), "tokenizer.ggml.pre": pre}
    if pre == "gemma4":
        values["tokenizer.ggml.model"] = "gemma4"
    return Tokenizer.from_gguf(values), values


def test_every_name_of_llama_cpp_is_in_the_table() -> None:
    assert {*PRE_TOKENIZERS} == {*STOCK} - REFUSED


@pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed")
@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_ids_are_those_of_llama_cpp(pre: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    tokenizer, values = build(pre)
    with llama_cpp.Llama(write_tiny_model(tmp_path / "m.gguf", values), n_ctx=16) as llama:
        for text in (*TEXTS, *mixed(150)):
            if pre == "whitespace":  # at which stock llama.cpp ends the process
                text = "".join(text.split())
            assert tokenizer.encode(text) == llama.tokenize(text, special=False), text


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_words_are_the_text_again_and_tokens_know_their_characters(pre: str) -> None:
    tokenizer, _ = build(pre)
    for text in (*TEXTS, "\u2581 spelled\u2581\u2581x "):
        assert "".join(Splitter(find_pre(pre))(text)) == text
        pieces = tokenizer.encode_pieces(text, cuts=[2, 5])
        assert tokenizer.decode(pieces.ids) == text
        for token, start, end in zip(pieces.ids, pieces.starts, pieces.ends, strict=True):
            assert tokenizer.token_bytes(token) in text[start:end].encode()
            assert not any(start < cut < end for cut in (2, 5))


@pytest.mark.parametrize("pre", [name for name, row in PRE_TOKENIZERS.items() if not (row.across or row.plain)])
def test_a_letter_newer_than_the_interpreter_is_a_letter(pre: str) -> None:
    garay = "\U00010d50\U00010d51"  # of Unicode 16
    assert Splitter(find_pre(pre))(f"one {garay} two") == ["one", f" {garay}", " two"]


@pytest.mark.parametrize("text", ["1" * 100_000, " " * 100_000 + "x", "\u0301" * 50_000, "'" * 100_000, "\n" * 50_000])
def test_hostile_texts_are_cut_in_bounded_time(text: str) -> None:
    for pre in PRE_TOKENIZERS.values():
        assert "".join(Splitter(pre)(text)) == text


def test_a_text_begins_with_gemma_4_s_token_whatever_the_file_says() -> None:
    _, values = build("gemma4")
    for says in (True, False):
        told = {**values, "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.add_bos_token": says}
        assert Tokenizer.from_gguf(told).add_bos
        assert (
            Tokenizer.from_gguf({**told, "tokenizer.ggml.pre": "sarvam-moe", "tokenizer.ggml.model": "gpt2"}).add_bos
            == says
        )
