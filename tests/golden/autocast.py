"""Makes `autocast.json`: the ten losses of each adapter run of `make.py`, as PyTorch trains it under bf16 autocast.

    pip install -r tests/golden/requirements.txt
    python tests/golden/autocast.py            # remakes autocast.json
    python tests/golden/autocast.py --check    # remakes it and compares

The same files, rows and settings as `make.py`'s runs, in torch's own mixed precision: weights and adapters f32, products
and their results bf16, norms, softmax and losses f32. `apart` is the largest distance of these losses from the same
run's in float64, relative: what rounding alone does, and what the test's tolerance has to be above.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

import torch

import reference
from cases import CASES, TRAIN
from make import HERE, PACKAGES, rounded, sha256, version, write_json

ABOUT = "losses of each optimizer step under torch.autocast('cpu', torch.bfloat16); `apart`: from float64, relative"


def run(case, name):
    """Ten losses, and how far they are from the golden's."""
    folder = HERE / case
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    settings = TRAIN | CASES[case]["runs"][name].get("train", {})
    model = reference.load(folder, folder / name / "adapter")
    # Its cache would hold the narrowed adapter of the first step for as long as the context is open.
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        losses = [step["loss"] for step in reference.train(model, rows, settings)]
    exact = [step["loss"] for step in json.loads((folder / name / "golden.json").read_text())["steps"]]
    apart = max(abs(a - b) / b for a, b in zip(losses, exact, strict=True))
    return dict(losses=losses, apart=float(f"{apart:.2g}"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with what is committed instead of writing")
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    os.chdir(HERE.parent.parent)
    runs = {
        f"{case}/{name}": run(case, name)
        for case, spec in CASES.items()
        for name, part in spec["runs"].items()
        if "adapter" in part
    }
    print({name: made["apart"] for name, made in runs.items()})
    made = rounded(
        dict(
            about=ABOUT,
            command="python tests/golden/autocast.py",
            versions=dict(python=platform.python_version()) | {name: version(name) for name in PACKAGES},
            scripts={name: sha256(HERE / name) for name in ["autocast.py", "cases.py", "reference.py"]},
            runs=runs,
        )
    )
    path = HERE / "autocast.json"
    if arguments.check:
        same = json.loads(path.read_text())["runs"] == made["runs"]
        sys.exit(0 if same else "autocast.json is another")
    write_json(path, made)


if __name__ == "__main__":
    main()
