"""Does PEFT read a folder that fttrain wrote as fttrain does? Compares logits, in f32.

    python tests/golden/check_adapter.py BASE ADAPTER LOGITS.json [--tolerance 1e-4]

BASE      Hugging Face folder of the base model
ADAPTER   the run's folder, or a checkpoint's (adapter_config.json, adapter_model.safetensors); `-` for the base alone,
          which is also how the folder of a full run, or of a merge, is checked
LOGITS    what fttrain makes of it: {"ids": [...], "logits": [[...], ...]}, T rows of V, or a list of such objects

Prints the largest |difference| over the largest |logit|. Exit 1 above the tolerance, or where the adapter changes
nothing, or where PEFT misses a tensor or is left with one.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM


def load(base, adapter):
    """The model in f32, eager. PEFT only warns of a tensor it misses, and says nothing of one it has no place for."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    if adapter == "-":
        return model
    model = PeftModel.from_pretrained(model, adapter).eval()
    needed = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    with safe_open(Path(adapter) / "adapter_model.safetensors", "pt") as file:
        stored = set(file.keys())
    if needed != stored:
        sys.exit(f"PEFT needs {sorted(needed - stored)} and has no place for {sorted(stored - needed)}")
    return model


@torch.no_grad()
def logits_of(model, ids):
    """[T, V]"""
    return model(input_ids=torch.tensor([ids])).logits[0]


def compare(model, ids, given):
    """The deviation of one sequence from what PEFT gives, and how far the adapter moves that from the base."""
    ours = torch.tensor(given, dtype=torch.float64)
    theirs = logits_of(model, ids).double()
    if ours.shape != theirs.shape:
        sys.exit(f"logits of {list(ours.shape)} where PEFT gives {list(theirs.shape)}")
    if not torch.isfinite(ours).all():
        sys.exit("logits that are not finite")
    most = theirs.abs().max()
    moved = 1.0
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            moved = ((logits_of(model, ids) - theirs).abs().max() / most).item()
    return ((ours - theirs).abs().max() / most).item(), moved


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("adapter")
    parser.add_argument("logits")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    a = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    with open(a.logits, encoding="utf-8") as file:
        given = json.load(file)
    model = load(a.base, a.adapter)
    found = [compare(model, one["ids"], one["logits"]) for one in (given if isinstance(given, list) else [given])]
    worst, moved = max(gap for gap, _ in found), max(moved for _, moved in found)
    print(json.dumps(dict(max_deviation=worst, tolerance=a.tolerance, sequences=len(found), adapter_moves=moved)))
    if moved <= a.tolerance:
        sys.exit(f"the adapter moves the logits by {moved:.1e} only: this comparison could not fail")
    sys.exit(0 if worst <= a.tolerance else 1)


if __name__ == "__main__":
    main()
