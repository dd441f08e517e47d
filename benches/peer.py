#!/usr/bin/env python3
"""What people run instead: PyTorch, transformers and PEFT, on the rows and batches that fttrain gets.

    python peer.py train MODEL ROWS --batch 4 --dtype f32|bf16|amp [--compile] [--checkpointing] [--steps 6]
                  [--device cpu|cuda]
    python peer.py rows MODEL --random 256 --count 32 > rows.jsonl
    python peer.py rows MODEL --gsm8k train.jsonl --count 64 > rows.jsonl

ROWS are JSON Lines of `input_ids` and `labels` (−100 = not counted), taken in their order again and again and padded to
the longest of their batch. `train` prints one JSON object: of every optimizer step its seconds, real tokens and counted
tokens. A step is forward, backward, clipping and AdamW, as in the usual training loop.
"""
import argparse
import itertools
import json
import time

import torch

IGNORE = -100


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("train")
    train.add_argument("model")
    train.add_argument("rows")
    train.add_argument("--batch", type=int, required=True)
    train.add_argument("--dtype", choices=["f32", "bf16", "amp"], default="f32")
    train.add_argument("--compile", action="store_true")
    train.add_argument("--nf4", action="store_true", help="the base in bitsandbytes' NF4: QLoRA")
    train.add_argument("--checkpointing", action="store_true")
    train.add_argument("--steps", type=int, default=6)
    train.add_argument("--rank", type=int, default=16)
    train.add_argument("--threads", type=int)
    train.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    rows = verbs.add_parser("rows")
    rows.add_argument("model")
    rows.add_argument("--random", type=int, metavar="TOKENS")
    rows.add_argument("--gsm8k", metavar="FILE")
    rows.add_argument("--count", type=int, required=True)
    return parser.parse_args()


def random_rows(model, tokens, count):
    """Rows of one length, every token counted."""
    from transformers import AutoConfig

    vocabulary = AutoConfig.from_pretrained(model).vocab_size
    for ids in torch.randint(0, vocabulary, (count, tokens), generator=torch.Generator().manual_seed(0)).tolist():
        yield dict(input_ids=ids, labels=ids)


def gsm8k_rows(model, path, count):
    """Questions and answers as conversations of which the answer alone is counted, up to its end-of-turn token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    with open(path) as file:
        for line in itertools.islice(file, count):
            row = json.loads(line)
            turns = [dict(role="user", content=row["question"]), dict(role="assistant", content=row["answer"])]
            as_ids = dict(tokenize=True, return_dict=False)
            prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, **as_ids)
            ids = tokenizer.apply_chat_template(turns, **as_ids)
            last = len(ids) - ids[::-1].index(tokenizer.eos_token_id)
            labels = [IGNORE] * len(prompt) + ids[len(prompt):last] + [IGNORE] * (len(ids) - last)
            yield dict(input_ids=ids, labels=labels)


def adapted(a):
    """The model with an adapter on every linear but the head, ready to train."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if a.dtype == "bf16" else torch.float32
    blocks = {}
    if a.nf4:
        from transformers import BitsAndBytesConfig

        nf4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        blocks = dict(quantization_config=BitsAndBytesConfig(**nf4, bnb_4bit_compute_dtype=dtype), device_map=a.device)
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=dtype, **blocks)
    model.config.use_cache = False
    lora = LoraConfig(r=a.rank, lora_alpha=2 * a.rank, lora_dropout=0.0, target_modules="all-linear")
    model = get_peft_model(model, lora).to(a.device)
    if a.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
        model.enable_input_require_grads()
    return model.train()


def padded(rows, device):
    """A batch of rows, as wide as its longest."""
    width = max(len(row["input_ids"]) for row in rows)
    fill = lambda key, value: torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows])
    batch = dict(input_ids=fill("input_ids", 0), labels=fill("labels", IGNORE))
    if any(len(row["input_ids"]) < width for row in rows):
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        batch["attention_mask"] = (torch.arange(width)[None] < lengths[:, None]).long()
    return {key: value.to(device) for key, value in batch.items()}


def train(a):
    if a.threads:
        torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    with open(a.rows) as file:
        rows = itertools.cycle([json.loads(line) for line in file])
    model = adapted(a)
    forward = torch.compile(model) if a.compile else model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, fused=True)
    steps = []
    for _ in range(a.steps):
        taken = list(itertools.islice(rows, a.batch))
        begun = time.perf_counter()
        with torch.autocast(a.device, dtype=torch.bfloat16, enabled=a.dtype == "amp"):
            loss = forward(**padded(taken, a.device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if a.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
        counted = sum(label != IGNORE for row in taken for label in row["labels"][1:])
        steps.append([seconds, sum(len(row["input_ids"]) for row in taken), counted])
    import peft
    import transformers

    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    peak = torch.cuda.max_memory_reserved() if a.device == "cuda" else None
    print(json.dumps(dict(steps=steps, loss=loss.item(), device_bytes=peak, versions=versions)))


def main():
    a = arguments()
    if a.verb == "train":
        train(a)
    else:
        made = gsm8k_rows(a.model, a.gsm8k, a.count) if a.gsm8k else random_rows(a.model, a.random, a.count)
        for row in made:
            print(json.dumps(row))


main()
