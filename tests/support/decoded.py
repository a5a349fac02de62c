"""The same model with every matrix in F32: what a quantized file means, apart from how an engine multiplies with it.
(Stock llama.cpp also rounds activations to 8 bits when weights are quantized; on a decoded copy it does not.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf.quants import dequantize

_WRITTEN_ANEW = ("general.architecture", "general.file_type", "general.quantization_version")


def decoded(data: npt.NDArray[Any], kind: gguf.GGMLQuantizationType) -> npt.NDArray[np.float32]:
    """Rows of blocks as the gguf package decodes them; Q1_0, which it only names, by its definition: a half d, then 128
    bits that are d where they are set, else -d."""
    if kind.name != "Q1_0":
        return np.asarray(dequantize(data, kind), np.float32)
    blocks = data.view(np.uint8).reshape(*data.shape[:-1], -1, 18)
    d = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    bits = np.unpackbits(blocks[..., 2:], axis=-1, bitorder="little")
    return np.where(bits == 1, d, -d).reshape(*data.shape[:-1], -1)


def decoded_copy(source: str | Path, target: str | Path) -> Path:
    """Writes `source` with F32 tensors to `target`, read and written by the gguf package; returns the path."""
    reader = gguf.GGUFReader(str(source))
    architecture = reader.get_field("general.architecture")
    assert architecture is not None
    writer = gguf.GGUFWriter(str(target), architecture.contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in _WRITTEN_ANEW:
            writer.add_key_value(key, field.contents(), field.types[0], field.types[1] if field.types[1:] else None)
    writer.add_file_type(int(gguf.LlamaFileType.ALL_F32))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, decoded(np.array(tensor.data), tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(target)
