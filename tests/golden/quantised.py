"""Makes the goldens of quantised bases: what bitsandbytes (CPU) and the `gguf` package make of given numbers, and the
first steps of QLoRA by PEFT. Nothing here is written by fttrain.

    pip install -r tests/golden/requirements.txt bitsandbytes==0.50.2 gguf==0.19.0
    python tests/golden/quantised.py                       # remakes tests/golden/quantised
    python tests/golden/quantised.py --smollm2 FOLDER      # with the hashes of SmolLM2's linears beside it

    nf4.safetensors    CASE.values [rows, width] and what they become: .codes, .absmax; with double quantisation
                       .codes2, .absmax2, .offset; .plain and .double are the values that either gives back.
                       `map.signed`, `map.unsigned`: the 8-bit types. `means`: torch's of |bf16.values|[:n], n in
                       `counts`.
    nf4.json           SHA-256 of the same parts, one after the other, of every linear of a trained model
    ggml.gguf          a tensor a type, by the package's own writer; ggml.safetensors: its values, by its own reader
    run.toml, rows.jsonl, adapter/  a QLoRA run of the quickstart's model; qlora.json: its steps, f32 compute
"""

import argparse
import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute as plain_dequantise
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import reference
from cases import TRAIN

HERE = Path(__file__).resolve().parent
OUT = HERE / "quantised"
PACKAGES = ["torch", "transformers", "peft", "bitsandbytes", "gguf", "numpy", "safetensors"]
STEPS = 4
QUICKSTART = HERE.parent.parent / "configs" / "quickstart" / "model"


def draw(name, shape):
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def cases():
    """Normal numbers, heavy tails, an odd count, blocks across rows, blocks of zeros, tiny and huge scales, bf16."""
    normal = torch.from_numpy(draw("normal", (16, 320)))
    zeros = torch.from_numpy(draw("zeros", (8, 96)))
    zeros[2:5] = 0
    scales = torch.from_numpy(draw("scales", (40, 64))) * torch.logspace(-40, 37, 40)[:, None]
    return {
        "normal": normal,
        "tails": torch.from_numpy(draw("tails", (24, 128))) ** 5,
        "odd": torch.from_numpy(draw("odd", (33, 65))),
        "across": torch.from_numpy(draw("across", (50, 100))),
        "zeros": zeros,
        "scales": scales,
        "bf16": torch.from_numpy(draw("bf16", (300, 64))).to(torch.bfloat16),
        "single": torch.tensor([[-0.25]]),
    }


def nf4(values):
    """What a matrix becomes, without and with double quantisation."""
    codes, plain = bnb.quantize_4bit(values, quant_type="nf4")
    again, double = bnb.quantize_4bit(values, quant_type="nf4", compress_statistics=True)
    assert torch.equal(codes, again)
    scales = bnb.dequantize_blockwise(double.absmax, double.state2) + double.offset
    return {
        "codes": codes.flatten(),
        "absmax": plain.absmax,
        "codes2": double.absmax,
        "absmax2": double.state2.absmax,
        "offset": double.offset.reshape(1),
        "plain": dequantised(codes, plain.absmax, values.shape),
        "double": dequantised(codes, scales, values.shape),
    }


def dequantised(codes, scales, shape):
    """In f32, whatever the values came in, by the package's own formula: its AVX-512 kernel takes wrong scales where a
    width is a multiple of 16 and not of 64 (0.50.2)."""
    code = bnb.get_4bit_type("nf4", device="cpu")
    return plain_dequantise(codes.flatten(), scales, code, 64, shape, torch.float32)


def hashes(folder):
    """Of a model's linears: SHA-256 over codes, absmax, codes2, absmax2 and offset."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, values in sorted(load_file(path).items()):
            if "_proj." in name and values.ndim == 2:
                parts, digest = nf4(values), hashlib.sha256()
                for part in ("codes", "absmax", "codes2", "absmax2", "offset"):
                    digest.update(parts[part].numpy().tobytes())
                found[name] = digest.hexdigest()
    return found


def write_nf4(smollm2):
    tensors = {"map.signed": bnb.create_dynamic_map(True), "map.unsigned": bnb.create_dynamic_map(False)}
    for name, values in cases().items():
        parts = nf4(values)
        tensors |= {f"{name}.values": values.float()} | {f"{name}.{part}": t for part, t in parts.items()}
    counts = torch.tensor([1, 7, 8, 31, 32, 33, 40, 300, 511, 512, 4099, 8192, 10_007, 19_200], dtype=torch.int32)
    long = cases()["bf16"].float().abs().flatten()
    tensors |= {"counts": counts, "means": torch.stack([long[:n].mean() for n in counts.tolist()])}
    save_file({name: t.contiguous() for name, t in tensors.items()}, OUT / "nf4.safetensors")
    path = OUT / "nf4.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    found = {"quickstart": hashes(QUICKSTART), "smollm2": hashes(Path(smollm2)) if smollm2 else kept["smollm2"]}
    path.write_text(json.dumps(found, indent=1) + "\n")


def blocks_of(kind, count):
    """Random blocks whose halves (scales) are finite and of both signs where a sign is usual."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    random = np.random.default_rng(int(kind))
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    at = {"Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}[kind.name]
    for place in at:
        scale = random.normal(0, 0.01, count).astype(np.float16)
        blocks[:, place : place + 2] = scale.view(np.uint8).reshape(count, 2)
    return blocks


def write_ggml():
    types = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(OUT / "ggml.gguf", "llama")
    tensors = {}
    for kind in [types.F16, types.Q4_0, types.Q4_1, types.Q5_0, types.Q5_1, types.Q8_0]:
        data = gguf.quants.quantize(draw(kind.name, (6, 64)) * 0.1, kind)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
    for kind in [types.Q2_K, types.Q3_K, types.Q4_K, types.Q5_K, types.Q6_K]:
        writer.add_tensor(kind.name, blocks_of(kind, 6).reshape(3, -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for tensor in gguf.GGUFReader(OUT / "ggml.gguf").tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        tensors[tensor.name] = torch.from_numpy(np.ascontiguousarray(values))
    save_file(tensors, OUT / "ggml.safetensors")


def load(double_quant):
    """The base on bitsandbytes' linears, as transformers loads them; its widths are multiples of 64."""
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        QUICKSTART, dtype=torch.float32, attn_implementation="eager", quantization_config=config, device_map="cpu"
    )
    model.config.use_cache = False
    linears = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    assert len(linears) == 42 and all(m.weight.quant_state.nested == double_quant for m in linears)
    return model


def write_rows():
    random = np.random.default_rng(7)
    rows = []
    for _ in range(STEPS * 2):
        ids = random.integers(5, 2048, random.integers(8, 40)).tolist()
        rows.append(dict(input_ids=ids, labels=[reference.IGNORE] * 3 + ids[3:]))
    (OUT / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def write_adapter():
    """Drawn A and B, so that both get a gradient at once."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(QUICKSTART, dtype=torch.float32),
        LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]),
    )
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.from_numpy(draw(name, tuple(p.shape))) * 0.05
    model.save_pretrained(OUT / "adapter")
    (OUT / "adapter" / "README.md").unlink(missing_ok=True)
    path = OUT / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"].sort()
    config["base_model_name_or_path"] = "configs/quickstart/model"
    path.write_text(json.dumps(config, indent=1) + "\n")


def write_qlora():
    rows = write_rows()
    write_adapter()
    settings = TRAIN | dict(gradient_accumulation_steps=1, num_epochs=1, warmup_steps=0, learning_rate=1e-3)
    found = {}
    for name, double_quant in (("plain", False), ("double", True)):
        model = PeftModel.from_pretrained(load(double_quant), OUT / "adapter", is_trainable=True).train()
        steps = reference.train(model, rows, settings)
        found[name] = [{key: step[key] for key in ("loss", "grad_norm")} for step in steps]
    (OUT / "qlora.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = ['base_model = "configs/quickstart/model"', 'adapter = "qlora"', "bf16 = false", 'device = "cpu"']
    lines += ['lora_model_dir = "tests/golden/quantised/adapter"', 'output_dir = "target/golden/qlora"']
    lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    lines += ["sequence_len = 128", "sample_packing = false", "shuffle = false", ""]
    lines += ["[[datasets]]", 'path = "tests/golden/quantised/rows.jsonl"', 'type = "tokenized"']
    (OUT / "run.toml").write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", help="Hugging Face folder of SmolLM2; without it its hashes stay as they are")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    OUT.mkdir(exist_ok=True)
    write_nf4(arguments.smollm2)
    write_ggml()
    write_qlora()
    files = sorted(p for p in OUT.rglob("*") if p.is_file() and p.name != "manifest.json")
    about = dict(
        command="python tests/golden/quantised.py",
        versions=dict(python=platform.python_version()) | {name: version(name) for name in PACKAGES},
        script=hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        files={p.relative_to(OUT).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
    )
    (OUT / "manifest.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
