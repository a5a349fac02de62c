"""The same model with every matrix in F32: what a quantized file means, apart from how an engine multiplies with it.
(Stock llama.cpp also rounds activations to 8 bits when weights are quantized; on a decoded copy it does not.)
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize

_WRITTEN_ANEW = ("general.architecture", "general.file_type", "general.quantization_version")


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
        writer.add_tensor(tensor.name, np.array(dequantize(tensor.data, tensor.tensor_type), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(target)
