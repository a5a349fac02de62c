"""A checkpoint of transformers as it lies in its folder: every tensor that its configuration asks for, by GGUF's name,
and no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fabric.errors import DataError
from fabric.fields import named, short
from fabric.huggingface.config import Settings, read_settings
from fabric.huggingface.folder import Folder
from fabric.huggingface.layered import unused
from fabric.huggingface.names import EMBEDDING, HEAD, KEPT_F32, of_text_model
from fabric.huggingface.safetensors import Stored, read_weights
from fabric.notices import notice


@dataclass(frozen=True)
class Checkpoint:
    """What the configuration says, the tensors by GGUF's names in the order of layers, the names of those that a text
    model does not have, and the number of heads of the modules whose rows are to be reordered."""

    settings: Settings
    tensors: dict[str, Stored]
    dropped: list[str]
    heads: Mapping[str, int] = field(default_factory=dict)


def read_checkpoint(folder: Folder) -> Checkpoint:
    """A folder as transformers saves it, with every tensor that its configuration asks for, and no other."""
    settings = read_settings(folder.json("config.json"))
    found: dict[str, Stored] = {}
    dropped = []
    for name, tensor in read_weights(folder, settings.weights).items():
        plain = of_text_model(name)
        if plain is None:
            dropped.append(name)
        elif not name.endswith("rotary_emb.inv_freq"):  # computed anew, also by transformers
            ours = settings.family.ours(plain)
            if ours is None:
                told = f"{short(name)} has no place in a {settings.family.architecture} model"
                raise DataError(f"{tensor.where}: the tensor {told}")
            if unused(settings.arch, ours):
                continue
            if ours in found:
                raise DataError(f"{tensor.where}: {short(name)} and {short(found[ours].name)} are the same tensor")
            found[ours] = replace(tensor, shape=tensor.shape[::2]) if _is_convolution(ours, tensor) else tensor
    if dropped:
        notice(f"{folder}: {len(dropped)} tensors of other parts than the text model are left out: {named(dropped, 2)}")
    return Checkpoint(settings, complete(folder, settings, found), dropped, settings.heads)


def _is_convolution(ours: str, tensor: Stored) -> bool:
    """Of each column by itself: transformers has an axis of 1 between columns and taps."""
    return ours.endswith(KEPT_F32) and tensor.shape[1:-1] == (1,)


def complete(folder: Folder, settings: Settings, found: dict[str, Stored]) -> dict[str, Stored]:
    """The tensors in order, each of the shape that the configuration gives it; a tied head is the embedding."""
    if settings.tied:
        found = _tied(folder, found)
    layers = len({name.split(".")[1] for name in found if name.startswith("blk.")})
    if settings.n_layers != layers:
        told = f"num_hidden_layers is {settings.n_layers}, but the weights have {layers} layers"
        raise DataError(f"{settings.fields.where}: {told}")
    shapes = settings.shapes()
    if settings.tied and HEAD in found:
        shapes[HEAD] = shapes[EMBEDDING]
    missing = [settings.family.theirs(name) or name for name in shapes if name not in found]
    if missing:
        raise DataError(f"{folder}: the weights lack {named(missing, 4)}, which {settings.fields.where} asks for")
    for name, tensor in found.items():
        if name not in shapes:
            raise DataError(f"{tensor.where}: {tensor.name} would have no effect by {settings.fields.where}")
        _ = tensor.type  # of those that can be converted
        if tensor.shape != shapes[name]:
            told = f"is {short(list(tensor.shape))}, but {settings.fields.where} asks for {list(shapes[name])}"
            raise DataError(f"{tensor.where}: the tensor {tensor.name} {told}")
    return {name: found[name] for name in shapes}


def _tied(folder: Folder, found: dict[str, Stored]) -> dict[str, Stored]:
    """Without a head that is the embedding; one that differs is kept, as transformers does."""
    head = found.get(HEAD)
    if head is None:
        return found
    embedding = found.setdefault(EMBEDDING, head)
    if (head.dtype, head.shape) == (embedding.dtype, embedding.shape) and np.array_equal(head.data, embedding.data):
        return {name: tensor for name, tensor in found.items() if name != HEAD}
    notice(f"{folder}: tie_word_embeddings is true, but {head.name} is not {embedding.name}: it is kept as a head")
    return found
