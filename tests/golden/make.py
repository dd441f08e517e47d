"""Makes the goldens of `tests/parity.rs`: small random models, adapters and rows, and what torch, transformers and
PEFT make of them. Nothing here is written by fttrain.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make.py            # remakes every folder beside this file, and manifest.json
    python tests/golden/make.py --check    # remakes in a temporary folder and compares

See README.md for the layout. Every number is computed in float64 from the written f32 files; how far the same
libraries in f32 are from it stands in manifest.json, and is what the tests' tolerance rests on.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

import reference
from cases import CASES, SHAPE, TRAIN

HERE = Path(__file__).resolve().parent
PACKAGES = ["torch", "transformers", "peft", "numpy", "safetensors", "tokenizers"]
# A golden is no use where the peer's own f32 is not well inside the tests' 1e-4.
MOST_F32_DEVIATION = 2e-5
# A greedy choice closer than this could fall either way in f32.
LEAST_LEAD = 1e-2
DIGITS = 10

ABOUT_CASE = {
    "rows": "how many rows of rows.jsonl, from its start, are the first optimizer step of every run here; "
    "golden.safetensors holds `logits.I` [T, V] of the base for row I of them",
    "packed_loss": "mean loss of these rows packed into one sequence, block-diagonal mask, positions restarted",
    "mean_loss": "sum of token losses / counted tokens over all of rows.jsonl, base weights",
    "generate": "greedy continuation of `prompt`; `least_lead` is the smallest gap between a chosen logit and the next",
}
ABOUT_RUN = {
    "settings": "what run.toml says of the training; no packing, file order, dropout 0, f32",
    "steps": "one entry an optimizer step, in the words of metrics.jsonl: loss before the update, "
    "grad_norm before clipping",
    "mean_loss": "over all of rows.jsonl, before the first and after the last update",
    "golden.safetensors": "before any update `logits.I` of the rows of the first step and `grad.NAME` of its loss, "
    "unclipped, NAME as in adapter_model.safetensors or the base's file; `final_logits.0` after the last update",
}


def draw(case, name, shape, std, mean=0.0):
    """Normal numbers that depend on the case and the name alone."""
    seed = int.from_bytes(hashlib.sha256(f"{case}/{name}".encode()).digest()[:8])
    return torch.from_numpy(np.random.default_rng(seed).normal(mean, std, tuple(shape)).astype(np.float32))


def write_json(path, value):
    """Indented, but with what is flat and short on one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    for flat in (r"\[[^][{}]*\]", r"\{[^][{}]*\}"):
        text = re.sub(flat, one_line, text)
    path.write_text(text + "\n", newline="\n")


def one_line(found):
    line = re.sub(r"\n *", " ", found[0])
    line = line[0] + line[1:-1].strip() + line[-1]
    return line if len(line) <= 160 else found[0]


def rounded(value):
    """Digits past the tenth are the machine's, not the model's."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


def write_base(case, spec, folder):
    """config.json exactly as the case spells it, random weights by save_pretrained, a tokenizer of 80 words."""
    spelled = SHAPE | spec["config"]
    config = AutoConfig.for_model(**json.loads(json.dumps(spelled)))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            norm, table = "norm" in name, "embed" in name or "lm_head" in name
            std = 0.2 if norm or table else 0.1 if name.endswith("bias") else 0.15
            p.copy_(draw(case, name, p.shape, std, 1.0 if norm else 0.0))
    size = sum(p.numel() * 4 for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=size if spec.get("shards", 1) == 1 else size * 2 // 3)
    (folder / "generation_config.json").unlink(missing_ok=True)
    architecture = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    older = "rope_parameters" not in spelled
    extra = dict(hidden_act="silu", rms_norm_eps=1e-5, initializer_range=0.02)
    extra |= {"torch_dtype" if older else "dtype": "float32", "architectures": [architecture[spelled["model_type"]]]}
    write_json(folder / "config.json", dict(tie_word_embeddings=False) | spelled | extra)
    write_tokenizer(folder)


def write_tokenizer(folder):
    """One word a token: `w17` is 17."""
    words = ["<unk>", "<s>", "</s>"] + [f"w{i}" for i in range(3, SHAPE["vocab_size"])]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(words[:3])
    (folder / "tokenizer.json").write_text(tokenizer.to_str() + "\n", newline="\n")
    special = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    write_json(folder / "tokenizer_config.json", dict(tokenizer_class="PreTrainedTokenizerFast") | special)


def write_rows(case, spec, folder):
    """Random ids and labels: a masked prompt, a masked hole now and then, sometimes a first label that never counts."""
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{case}/rows".encode()).digest()[:8]))
    rows = []
    for _ in range(spec["count"]):
        ids = random.integers(3, SHAPE["vocab_size"], random.integers(spec["shortest"], spec["longest"] + 1)).tolist()
        labels = list(ids)
        prompt = int(random.integers(0, len(ids) // 2 + 1))
        labels[:prompt] = [reference.IGNORE] * prompt
        if len(ids) > 6 and random.random() < 0.5:
            hole = int(random.integers(len(ids) // 2, len(ids) - 1))
            labels[hole] = reference.IGNORE
        rows.append(dict(input_ids=ids, labels=labels))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), newline="\n")
    return rows


def write_adapter(case, run, spec, base, folder):
    """A PEFT folder with drawn A and B, by PEFT's own save_pretrained."""
    spec = dict(spec)
    b_std = spec.pop("b_std")
    model = get_peft_model(reference.load(base), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **spec))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_A" in name:
                p.copy_(draw(case, f"{run}/{name}", p.shape, p.shape[1] ** -0.5 / 3**0.5))
            elif "lora_B" in name:
                p.copy_(draw(case, f"{run}/{name}", p.shape, b_std))
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    # PEFT writes a set in whatever order it comes.
    config = json.loads((folder / "adapter_config.json").read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    write_json(folder / "adapter_config.json", config)


def write_config(base, folder, spec, settings):
    """The run as fttrain's config, paths relative to the repository."""
    lines = [f'base_model = "{base}"', "bf16 = false", 'device = "cpu"', f'output_dir = "target/golden/{folder.name}"']
    if fresh := spec.get("fresh"):
        lines += ['adapter = "lora"', f"lora_r = {fresh['r']}", f"lora_alpha = {fresh['lora_alpha']}"]
        lines += [f"lora_target_modules = {json.dumps(fresh['target_modules'])}"]
        lines += [f"init_lora_weights = {json.dumps(fresh['init_lora_weights'])}"]
    if adapter := spec.get("adapter"):
        lines += ['adapter = "lora"', f'lora_model_dir = "{folder.as_posix()}/adapter"']
        if saved := adapter.get("modules_to_save"):
            lines.append(f"lora_modules_to_save = {json.dumps(saved)}")
    lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    lines += ["sequence_len = 128", "sample_packing = false", "shuffle = false"]
    lines += ["", "[[datasets]]", f'path = "{base}/rows.jsonl"', 'type = "tokenized"']
    (folder / "run.toml").write_text("\n".join(lines) + "\n", newline="\n")


def saved_name(name):
    """A parameter's name in the file: PEFT's inner names carry the adapter's, the file's do not."""
    name = name.replace(".modules_to_save.default", "").replace(".default", "")
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def measure_base(model, rows, group, prompt):
    """Logits of the first group, losses and a greedy continuation."""
    with torch.no_grad():
        tensors = {f"logits.{i}": reference.logits(model, row["input_ids"]) for i, row in enumerate(group)}
        packed = reference.packed_loss(model, group).item()
    continuation, lead = reference.greedy(model, prompt, 20)
    numbers = dict(
        rows=len(group),
        packed_loss=packed,
        mean_loss=reference.mean_loss(model, rows),
        generate=dict(prompt=prompt, continuation=continuation, least_lead=lead),
    )
    return tensors, numbers


def measure_run(model, rows, settings):
    """Logits and gradients of the first step, then the whole training."""
    group = reference.groups_of(rows, settings)[0]
    with torch.no_grad():
        tensors = {f"logits.{i}": reference.logits(model, row["input_ids"]) for i, row in enumerate(group)}
    before = reference.mean_loss(model, rows)
    reference.accumulate(model, group)
    tensors |= {f"grad.{saved_name(n)}": p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    steps = reference.train(model, rows, settings)
    with torch.no_grad():
        tensors["final_logits.0"] = reference.logits(model, group[0]["input_ids"])
    after = reference.mean_loss(model, rows)
    return tensors, dict(settings=settings, steps=steps, mean_loss=dict(before=before, after=after))


def deviation(f32, f64):
    """Largest |difference| over largest |value|; 0 where both are all zero."""
    f32, f64 = torch.as_tensor(f32).double(), torch.as_tensor(f64).double()
    most = f64.abs().max().item()
    gap = (f32 - f64).abs().max().item()
    return gap / most if most > 0 else gap


def deviations(f32, f64):
    """Of each kind of golden, the worst."""
    worst = {}
    for name, value in f64[0].items():
        kind = name.split(".")[0]
        worst[kind] = max(worst.get(kind, 0.0), deviation(f32[0][name], value))
    for key in ("loss", "grad_norm"):
        pairs = zip(f32[1].get("steps", []), f64[1].get("steps", []))
        if gaps := [deviation(a[key], b[key]) for a, b in pairs]:
            worst[key] = max(gaps)
    return worst


def store(folder, about, tensors, numbers):
    tensors = {name: tensor.detach().to(torch.float32).contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "golden.safetensors")
    write_json(folder / "golden.json", rounded(dict(about=about) | numbers))


def both(load, measure):
    """The measurement in f32, as the peer gives it, and in float64, which is the golden."""
    f32 = measure(load())
    with reference.exactly(load()) as model:
        f64 = measure(model)
    worst = deviations(f32, f64)
    too_far = {kind: gap for kind, gap in worst.items() if gap > MOST_F32_DEVIATION}
    if too_far:
        sys.exit(f"f32 is too far from float64 to serve as a golden: {too_far}")
    return f64, worst


def clear_prompt(model, rows):
    """The first beginning of a row whose greedy continuation is no close call and does not end early."""
    for row in rows:
        prompt = row["input_ids"][:7]
        continuation, lead = reference.greedy(model, prompt, 20)
        if lead > LEAST_LEAD and SHAPE["eos_token_id"] not in continuation:
            return prompt
    sys.exit("no prompt with a clear continuation: draw other weights")


def check_packing(f64, group, case):
    """transformers itself must give packed rows the loss of separate ones."""
    packed, apart = f64[1]["packed_loss"], separate_loss(f64, group)
    if abs(apart - packed) > 1e-12 * apart:
        sys.exit(f"{case}: packed loss {packed} is not the rows' loss {apart}")


def check_names(f64, folder):
    """There is a gradient of every tensor in the folder's file, under the same name."""
    stored = {name for p in folder.glob("*model*.safetensors") for name in load_file(p)}
    given = {name.removeprefix("grad.") for name in f64[0] if name.startswith("grad.")}
    if stored != given:
        sys.exit(f"{folder}: gradients and tensors differ: {sorted(stored ^ given)}")


def separate_loss(f64, group):
    """Mean loss of separate rows, from their stored logits."""
    total, count = 0.0, 0
    for i, row in enumerate(group):
        log = torch.log_softmax(f64[0][f"logits.{i}"].double(), -1)
        for at, label in enumerate(row["labels"][1:]):
            if label != reference.IGNORE:
                total, count = total - log[at, label].item(), count + 1
    return total / count


def make_case(case, spec, at):
    """Writes one folder; returns f32's deviations from the goldens."""
    folder = at / case
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_base(case, spec, folder)
    rows = write_rows(case, spec["rows"], folder)
    runs = {run: TRAIN | part.get("train", {}) for run, part in spec["runs"].items()}
    group = reference.groups_of(rows, next(iter(runs.values())))[0]
    prompt = clear_prompt(reference.load(folder), rows)
    f64, worst = both(lambda: reference.load(folder), lambda model: measure_base(model, rows, group, prompt))
    check_packing(f64, group, case)
    store(folder, ABOUT_CASE, *f64)
    found = {case: worst}
    for run, settings in runs.items():
        part, place = spec["runs"][run], folder / run
        place.mkdir()
        adapter = place / "adapter" if "adapter" in part else None
        if adapter:
            write_adapter(case, run, part["adapter"], folder, adapter)
        write_config(folder.as_posix(), place, part, settings)
        fresh = part.get("fresh")
        f64, worst = both(
            lambda: reference.load(folder, adapter, fresh), lambda model: measure_run(model, rows, settings)
        )
        if not fresh:
            check_names(f64, adapter or folder)
        store(place, ABOUT_RUN, *f64)
        found[f"{case}/{run}"] = worst
    return found


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def made_files(at):
    return sorted(p for case in CASES for p in (at / case).rglob("*") if p.is_file())


def write_manifest(at, found):
    scripts = ["make.py", "cases.py", "reference.py", "requirements.txt"]
    write_json(
        at / "manifest.json",
        dict(
            command="python tests/golden/make.py",
            versions=dict(python=platform.python_version()) | {name: version(name) for name in PACKAGES},
            scripts={name: sha256(HERE / name) for name in scripts},
            f32_deviation_of_torch={
                name: {kind: float(f"{gap:.2g}") for kind, gap in worst.items()} for name, worst in found.items()
            },
            files={p.relative_to(at).as_posix(): sha256(p) for p in made_files(at)},
        ),
    )


def compare(at, committed):
    """Names what differs between two folders of goldens: bytes, and for tensors the largest deviation."""
    differing = 0
    for p in sorted({q.relative_to(r) for r in (at, committed) for q in made_files(r)}):
        a, b = at / p, committed / p
        if a.exists() and b.exists() and a.read_bytes() == b.read_bytes():
            continue
        differing += 1
        note = "present on one side only"
        if a.exists() and b.exists():
            note = "other bytes"
            if p.suffix == ".safetensors":
                x, y = load_file(a), load_file(b)
                note = "other tensors"
                if x.keys() == y.keys():
                    note = f"deviation {max(deviation(x[name], y[name]) for name in y):.2g}"
        print(f"{p}: {note}")
    print(f"{differing} of {len(made_files(committed))} files differ")
    return differing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="remake in a temporary folder and compare")
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.chdir(HERE.parent.parent)
    committed = HERE.relative_to(Path.cwd())
    with tempfile.TemporaryDirectory() as scratch:
        at = Path(scratch) / committed if arguments.check else committed
        if arguments.check:
            at.mkdir(parents=True)
            os.chdir(scratch)
        found = {}
        for case, spec in CASES.items():
            found |= make_case(case, spec, committed)
            print({name: f"{max(worst.values()):.1e}" for name, worst in found.items() if name.startswith(case)})
        if arguments.check:
            os.chdir(HERE.parent.parent)
            sys.exit(1 if compare(at, committed) else 0)
        write_manifest(committed, found)


if __name__ == "__main__":
    main()
