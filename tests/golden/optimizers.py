"""Makes the goldens of optimizers: what torch, transformers and bitsandbytes (CPU) make of given numbers and gradients.
Nothing here is written by fttrain.

    pip install -r tests/golden/requirements.txt bitsandbytes==0.50.2
    python tests/golden/optimizers.py

    updates.safetensors   start.SHAPE and grad.SHAPE.T, T = 1 … 4, SHAPE `matrix` or `vector`; CASE.SHAPE after the last
                          update; of 8-bit moments also CASE.SHAPE.m.codes, .m.absmax, .v.codes, .v.absmax
    manifest.json         the settings of each case, versions, hashes

All in f32, as these libraries compute on a CPU.
"""

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path

import bitsandbytes
import numpy as np
import torch
from safetensors.torch import save_file
from transformers.optimization import Adafactor

OUT = Path(__file__).resolve().parent / "optimizers"
PACKAGES = ["torch", "transformers", "bitsandbytes", "numpy", "safetensors"]
STEPS = 4
# The matrix has blocks of 256 and a rest, and is large enough for 8 bits; the vector is not.
SHAPES = {"matrix": (36, 117), "vector": (33,)}
ADAM = dict(lr=3e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)


def adafactor(parameters):
    """As transformers' Trainer makes it for `optim = "adafactor"`."""
    return Adafactor(parameters, lr=3e-2, scale_parameter=False, relative_step=False, weight_decay=0.1)


CASES = {
    "adamw": lambda p: torch.optim.AdamW(p, **ADAM),
    "adamw_8bit": lambda p: bitsandbytes.optim.AdamW8bit(p, **ADAM),
    "adafactor": adafactor,
    "lion": lambda p: bitsandbytes.optim.Lion32bit(p, lr=3e-2, betas=(0.9, 0.99), weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=3e-2, weight_decay=0.1),
    "sgd_momentum": lambda p: torch.optim.SGD(p, lr=3e-2, momentum=0.9, weight_decay=0.1),
}


def draw(name, shape, scale):
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    return torch.from_numpy((scale * np.random.default_rng(seed).normal(0, 1, shape)).astype(np.float32))


def main():
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    tensors = {}
    for kind, shape in SHAPES.items():
        tensors[f"start.{kind}"] = draw(f"start {kind}", shape, 1.0)
        for t in range(1, STEPS + 1):
            tensors[f"grad.{kind}.{t}"] = draw(f"grad {kind} {t}", shape, 10.0 ** -(t % 3))
    for case, make in CASES.items():
        parameters = {kind: torch.nn.Parameter(tensors[f"start.{kind}"].clone()) for kind in SHAPES}
        optimizer = make(list(parameters.values()))
        for t in range(1, STEPS + 1):
            for kind, p in parameters.items():
                p.grad = tensors[f"grad.{kind}.{t}"].clone()
            optimizer.step()
        for kind, p in parameters.items():
            tensors[f"{case}.{kind}"] = p.detach().clone()
            state = optimizer.state[p]
            if state.get("state1") is not None and state["state1"].dtype == torch.uint8:
                for name, i in (("m", 1), ("v", 2)):
                    tensors[f"{case}.{kind}.{name}.codes"] = state[f"state{i}"].flatten()
                    tensors[f"{case}.{kind}.{name}.absmax"] = state[f"absmax{i}"]
    save_file(tensors, OUT / "updates.safetensors")
    about = dict(
        command="python tests/golden/optimizers.py",
        versions=dict(python=platform.python_version()) | {name: version(name) for name in PACKAGES},
        script=hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        files={"updates.safetensors": hashlib.sha256((OUT / "updates.safetensors").read_bytes()).hexdigest()},
    )
    (OUT / "manifest.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
