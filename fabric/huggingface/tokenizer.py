"""A checkpoint's tokenizer as GGUF metadata: the vocabulary of tokenizer.json, tekken.json or tokenizer.model, the
special tokens that its other files name, what ends an answer, and the chat templates, each as transformers reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fabric.errors import DataError, MissingInputError
from fabric.fields import Fields, named, short
from fabric.huggingface import bpe, tekken
from fabric.huggingface.bpe import added_token, read_tokenizer_json
from fabric.huggingface.folder import Folder
from fabric.huggingface.sentencepiece import read_sentencepiece
from fabric.huggingface.tekken import read_tekken
from fabric.huggingface.vocabulary import Added, Vocabulary
from fabric.notices import notice
from fabric.text.tokenizer import END_NAMES

_IDS = (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))  # transformers' name, GGUF's
_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ENDS = ("eos", "eot", "eom")  # the keys of GGUF for tokens that end an answer
_SAMPLING = {
    "temperature": "temp", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "penalty_repeat", "top_k": "top_k",
}  # fmt: skip
_TEMPLATE, _TEMPLATES, _LEGACY_TEMPLATE = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
_MOST_TEMPLATE = 1 << 20

Metadata = dict[str, Any]


def tokenizer_metadata(folder: Folder, rows: int, settings: Fields, by_merges: bool) -> Metadata:
    """The `tokenizer.*` keys, with a token for each of the embedding's `rows`. `settings`: config.json, for ids that it
    alone names. `by_merges`: a vocabulary of pieces is written with its merges, as Gemma 4's.

    Raises DataError for a tokenizer of another kind, MissingInputError when there is none.
    """
    vocabulary = _vocabulary(folder, by_merges)
    config = folder.json_if_any("tokenizer_config.json")
    special = _special_tokens(folder, config, vocabulary, rows)
    metadata = vocabulary.keys(rows)
    stripping = [token.text for token in vocabulary.added.values() if token.strips]
    if stripping:
        notice(f"{vocabulary.where}: tokens that take the space beside them do not do so in GGUF: {named(stripping)}")
    places = vocabulary.ids()
    for name, _ in _IDS:
        _any_ids(settings, f"{name}_token_id")
    found = {name: _token_id(name, special, settings, vocabulary.special, places, rows) for name, _ in _IDS}
    _read_edges(vocabulary, config, found, places, metadata)
    for name, key in _IDS:
        if found[name] is not None:
            metadata[f"tokenizer.ggml.{key}_token_id"] = found[name]
    metadata |= _ends(folder, settings, found["eos"], vocabulary.all(), rows)
    return metadata | _templates(folder, config)


def _vocabulary(folder: Folder, by_merges: bool) -> Vocabulary:
    if folder.has(bpe.NAME):
        return read_tokenizer_json(folder, by_merges)
    if folder.has(tekken.NAME):
        return read_tekken(folder)
    pieces = folder.names("tokenizer.model*")
    if pieces:
        return read_sentencepiece(folder, pieces[0])
    raise MissingInputError(f"{folder}: there is no {bpe.NAME}, {tekken.NAME} or tokenizer.model")


# ---- special tokens ----


def _special_tokens(folder: Folder, config: Fields, vocabulary: Vocabulary, rows: int) -> dict[str, str]:
    """Texts by name ("bos_token"). Tokens that only these files have are added to the vocabulary: where they say an id,
    there, else behind all others."""
    sources, others = [config], ["extra_special_tokens", "additional_special_tokens"]
    if "added_tokens_decoder" not in config:
        sources.insert(0, folder.json_if_any("special_tokens_map.json"))
    special = {key: text for key in _TOKENS if (text := _first_text(sources, key)) is not None}
    decoder = config.child("added_tokens_decoder")
    for key in decoder.values:
        if not key.isdecimal() or not key.isascii() or len(key) > 10:
            raise decoder.error(short(key), "is not the id of a token")
        vocabulary.place(int(key), added_token(decoder.child(key)))
    if "added_tokens_decoder" not in config and folder.has("added_tokens.json"):
        added = folder.json("added_tokens.json")
        for text in added.values:
            vocabulary.place(added.size(text, least=0), Added(text, control=text in special.values()))
    texts = [*special.values(), *(text for source in sources for key in others for text in _texts(source, key))]
    left_out = [text for text in dict.fromkeys(texts) if not vocabulary.mark(text, rows)]
    if left_out:
        told = f"the embedding has no rows for the tokens {named(left_out)}, which are left out"
        notice(f"{vocabulary.where}: {told}")
    return special


def _first_text(sources: Iterable[Fields], key: str) -> str | None:
    """A token named by the first source that has it, as text or as an object with its `content`."""
    for source in sources:
        told = source.get(key)
        if told not in (None, ""):
            return source.child(key).text("content") if isinstance(told, Mapping) else source.text(key)
    return None


def _texts(source: Fields, key: str) -> list[str]:
    """Tokens in a list, or in an object by name."""
    told = source.get(key)
    rows = list(told.values()) if isinstance(told, Mapping) else [] if told is None else told
    if not isinstance(rows, list):
        raise source.wrong(key, "a list of tokens")
    return [text for row in rows if (text := _first_text([Fields({key: row}, source.where)], key)) is not None]


def _token_id(
    name: str,
    special: Mapping[str, str],
    settings: Fields,
    usual: Mapping[str, str],
    places: Mapping[str, int],
    rows: int,
) -> int | None:
    """By the files that name tokens, else by the ids of config.json, else as the vocabulary usually has it."""
    if f"{name}_token" in special:
        return places.get(special[f"{name}_token"])
    found = _ids(settings, f"{name}_token_id", rows)
    return found[0] if found else places.get(usual.get(f"{name}_token", ""))


def _ids(fields: Fields, key: str, rows: int) -> list[int]:
    """One id, several or none; what is no row of the embedding counts as none, and is named."""
    ids = _any_ids(fields, key)
    outside = [one for one in ids if not 0 <= one < rows]
    if outside:
        notice(f"{fields.where}: {key} {short(outside[0])} is not one of {rows} tokens, and counts as not set")
    return [one for one in ids if 0 <= one < rows]


def _any_ids(fields: Fields, key: str) -> list[int]:
    told = fields.get(key)
    several = told if isinstance(told, list) else [] if told is None else [told]
    if not all(type(one) is int for one in several):
        raise fields.wrong(key, "the id of a token, or a list of them")
    return several


def _read_edges(
    vocabulary: Vocabulary, config: Fields, found: dict[str, int | None], places: Mapping[str, int], metadata: Metadata
) -> None:
    """Whether texts begin with a token and end with one; GGUF has a flag for each, and calls them bos and eos."""
    if vocabulary.edges is None:
        begins, ends = config.flag("add_bos_token", True), config.flag("add_eos_token", False)
    else:
        begins, ends = (bool(texts) for texts in vocabulary.edges)
        for name, texts in zip(("bos", "eos"), vocabulary.edges, strict=True):
            if len(texts) > 1 or any(text not in places for text in texts):
                raise DataError(f"{vocabulary.where}: texts get the tokens {named(texts)}, which GGUF cannot express")
            if not texts or found[name] == places[texts[0]]:
                continue
            if found[name] is not None and name == "eos":
                raise DataError(f"{vocabulary.where}: texts end with {short(texts[0])}, which is not the eos_token")
            if found[name] is not None:
                told = f"texts begin with {short(texts[0])}, which takes the place of the {name}_token in GGUF"
                notice(f"{vocabulary.where}: {told}")
            found[name] = places[texts[0]]
    metadata["tokenizer.ggml.add_bos_token"] = begins and found["bos"] is not None
    if ends:
        metadata["tokenizer.ggml.add_eos_token"] = True


# ---- generation_config.json ----


def _ends(folder: Folder, settings: Fields, eos: int | None, tokens: Mapping[int, str], rows: int) -> Metadata:
    """The tokens that end an answer under the three keys that GGUF has, and how the model wants to be sampled."""
    generation = folder.json_if_any("generation_config.json")
    told = _ids(generation, "eos_token_id", rows) or _ids(settings, "eos_token_id", rows)
    ends = list(dict.fromkeys([*([] if eos is None else [eos]), *told]))
    by_name = [i for i in ends[1:] if tokens.get(i) in END_NAMES]  # readers find these without a key
    ends = [*ends[:1], *(i for i in ends[1:] if i not in by_name), *by_name]
    nameless = [i for i in ends[len(_ENDS) :] if i not in by_name]
    if nameless:
        texts = named(f"{i} ({short(tokens.get(i))})" for i in nameless)
        notice(f"{generation.where}: GGUF has no key for more ends of an answer than {len(_ENDS)}: {texts} left out")
    metadata: Metadata = {f"tokenizer.ggml.{key}_token_id": i for key, i in zip(_ENDS, ends, strict=False)}
    if generation.flag("do_sample", False):
        for key, ours in _SAMPLING.items():
            if key in generation:
                number = generation.number(key, above=-1.0)
                metadata[f"general.sampling.{ours}"] = int(number) if key == "top_k" else number
    return metadata


# ---- chat templates ----


def _templates(folder: Folder, config: Fields) -> Metadata:
    """The files of templates before tokenizer_config.json, and what processors had before both last."""
    templates = _template_files(folder) or _template_of(config)
    if not templates and folder.has(_LEGACY_TEMPLATE):
        templates = _template_of(folder.json(_LEGACY_TEMPLATE))
    others = {name: text for name, text in templates.items() if name != "default"}
    metadata: Metadata = {f"tokenizer.chat_template.{name}": text for name, text in others.items()}
    if others:
        metadata["tokenizer.chat_templates"] = list(others)
    if "default" in templates:
        metadata["tokenizer.chat_template"] = templates["default"]
    elif others:
        notice(f"{folder}: of the chat templates {named(others)} none is the default one, so the model gets none")
    return metadata


def _template_files(folder: Folder) -> dict[str, str]:
    found = {"default": folder.text(_TEMPLATE, _MOST_TEMPLATE)} if folder.has(_TEMPLATE) else {}
    for name in folder.names(f"{_TEMPLATES}/*.jinja"):
        found[_template_name(folder, name.removesuffix(".jinja"))] = folder.text(f"{_TEMPLATES}/{name}", _MOST_TEMPLATE)
    return found


def _template_of(config: Fields) -> dict[str, str]:
    told = config.get("chat_template")
    if not isinstance(told, list):
        return {"default": config.text("chat_template")} if told is not None else {}
    rows = [Fields({"row": row}, config.where, "chat_template.").child("row") for row in told]
    return {_template_name(config.where, row.text("name")): row.text("template") for row in rows}


def _template_name(where: object, name: str) -> str:
    if not name.isascii() or not name.replace("_", "").replace("-", "").isalnum():
        raise DataError(f"{where}: {short(name)} is not a name for a chat template")
    return name
