"""Does the gguf package read a file that `fttrain export --gguf` wrote as the model that `fttrain merge` wrote?

    python tests/golden/check_gguf.py EXPORT.gguf MERGED

EXPORT  the file
MERGED  Hugging Face folder of the same model in f32 (`fttrain merge --dtype f32`)

Each tensor must hold, bit for bit, what the package itself makes of MERGED's values in the same type, with the rows of q
and k as llama.cpp's converter orders them. Exit 1 where one does not, or where a tensor or a key is missing.
"""

import json
import sys
from pathlib import Path

import numpy
from gguf import GGUFReader, quants
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
from gguf.tensor_mapping import get_tensor_name_map
from safetensors.numpy import load_file

KEYS = ["tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.eos_token_id"]


def permute(rows, heads):
    """As llama.cpp's converter does for the llama architecture."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def main(export, merged):
    reader = GGUFReader(export)
    config = json.loads((Path(merged) / "config.json").read_text())
    arch = reader.get_field("general.architecture").contents()
    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == arch)
    names = get_tensor_name_map(number, config["num_hidden_layers"])
    missing = [key for key in [*KEYS, f"{arch}.block_count"] if reader.get_field(key) is None]
    wanted = {}
    for file in Path(merged).glob("*.safetensors"):
        for name, values in load_file(file).items():
            ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if number == MODEL_ARCH.LLAMA and ".q_proj" in name:
                values = permute(values, config["num_attention_heads"])
            if number == MODEL_ARCH.LLAMA and ".k_proj" in name:
                values = permute(values, config["num_key_value_heads"])
            wanted[ours] = values
    found = {tensor.name: tensor for tensor in reader.tensors}
    wrong = sorted(set(wanted) ^ set(found))
    for name, tensor in found.items():
        if name not in wrong:
            expected = quants.quantize(wanted[name].astype(numpy.float32), tensor.tensor_type)
            if expected.tobytes() != tensor.data.tobytes():
                wrong.append(name)
    print(f"{len(found)} tensors, {found['blk.0.ffn_up.weight'].tensor_type.name}")
    if wrong or missing:
        sys.exit(f"differ: {wrong}; missing keys: {missing}")


if __name__ == "__main__":
    main(*sys.argv[1:])
