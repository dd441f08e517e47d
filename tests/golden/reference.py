"""The other side of the parity tests: transformers, PEFT and torch.optim, in the plainest loop there is.

`load` opens the written files; `exactly` makes everything float64, so that what is stored is the truth and not one
library's rounding. Knows nothing of files of goldens: `make.py` writes them.
"""

from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM, Trainer

IGNORE = -100


def load(folder, adapter=None, fresh=None):
    """The base in f32 with eager attention, and, with `adapter` or a `fresh` one, PEFT around it, ready to train."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.config.use_cache = False
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    if fresh is not None:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **fresh))
        settle_signs(model)
    return model.train()


@torch.no_grad()
def settle_signs(model):
    """The sign of a singular pair is free; here the largest entry of each row of A is positive, as fttrain has it."""
    for module in model.modules():
        if getattr(module, "lora_A", None):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            signs = a.gather(1, a.abs().argmax(1, keepdim=True)).sign()
            a.mul_(signs)
            b.mul_(signs.T)


@contextmanager
def exactly(model):
    """The same model in float64, for as long as the context is open.

    transformers raises to float32 inside the norms, the rope and the softmax; here that means float64.
    """
    with (
        patch.object(torch, "float32", torch.float64),
        patch.object(torch, "float", torch.float64),
        patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        model = model.double()
        decoder = model.get_base_model().model if isinstance(model, PeftModel) else model.model
        decoder.rotary_emb = type(decoder.rotary_emb)(config=decoder.config)
        yield model


def logits(model, ids):
    """[T, V] of one sequence."""
    return model(input_ids=torch.tensor([ids])).logits[0]


def loss_sum(model, row):
    """Σ of the token losses of one row, and how many tokens were counted: labels shifted, −100 not counted."""
    targets = torch.tensor(row["labels"])[1:]
    total = F.cross_entropy(logits(model, row["input_ids"])[:-1], targets, ignore_index=IGNORE, reduction="sum")
    return total, int((targets != IGNORE).sum())


def additive(seen, model):
    """[1, 1, T, T]: 0 where a position may look, the lowest number elsewhere."""
    dtype = model.dtype
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[None, None]


def packed_loss(model, rows):
    """The same over rows packed into one sequence: block-diagonal causal mask, positions restarted."""
    lengths = [len(row["input_ids"]) for row in rows]
    segment = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths))
    position = torch.cat([torch.arange(n) for n in lengths])
    back = position[:, None] - position[None, :]
    full = (segment[:, None] == segment[None, :]) & (back >= 0)
    mask = additive(full, model)
    if getattr(model.config, "sliding_window", None):
        windowed = full & (back < model.config.sliding_window)
        mask = dict(full_attention=mask, sliding_attention=additive(windowed, model))
    ids = torch.tensor([[token for row in rows for token in row["input_ids"]]])
    out = model(input_ids=ids, attention_mask=mask, position_ids=position[None]).logits[0]
    # A segment's first label is never a target: nothing before it in its own segment predicts it.
    labels = [IGNORE if i == 0 else label for row in rows for i, label in enumerate(row["labels"])]
    targets = torch.tensor(labels)[1:]
    return F.cross_entropy(out[:-1], targets, ignore_index=IGNORE, reduction="mean")


def optimizer_of(model, settings):
    """torch's AdamW; decay by name as in transformers' Trainer, never on norms and biases."""
    betas = (settings["adam_beta1"], settings["adam_beta2"])
    options = dict(lr=settings["learning_rate"], betas=betas, eps=settings["adam_epsilon"], foreach=False)
    if "loraplus_lr_ratio" in settings:
        ratio, decay = settings["loraplus_lr_ratio"], settings["weight_decay"]
        return create_loraplus_optimizer(
            model, torch.optim.AdamW, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay, **options
        )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decayed = Trainer.get_decay_parameter_names(None, model)
    groups = [
        dict(params=[p for name, p in trained.items() if name in decayed], weight_decay=settings["weight_decay"]),
        dict(params=[p for name, p in trained.items() if name not in decayed], weight_decay=0.0),
    ]
    return torch.optim.AdamW(groups, **options)


def schedule_of(optimizer, settings, steps):
    """transformers' schedules; update k, from 0, uses the k-th rate."""
    warmup = settings.get("warmup_steps", 0)
    match settings["lr_scheduler"]:
        case "cosine" if "cosine_min_lr_ratio" in settings:
            return transformers.get_cosine_with_min_lr_schedule_with_warmup(
                optimizer, warmup, steps, min_lr_rate=settings["cosine_min_lr_ratio"]
            )
        case "cosine":
            return transformers.get_cosine_schedule_with_warmup(optimizer, warmup, steps)
        case "linear":
            return transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)
        case "constant":
            return transformers.get_constant_schedule_with_warmup(optimizer, warmup)


def groups_of(rows, settings):
    """The rows of each optimizer step: file order, epoch by epoch, a group never crosses an epoch."""
    size = settings["micro_batch_size"] * settings["gradient_accumulation_steps"]
    epoch = [rows[i : i + size] for i in range(0, len(rows), size)]
    return epoch * settings["num_epochs"]


def accumulate(model, group):
    """Gradients of Σ token losses / Σ counted tokens over the group; returns that loss and the count."""
    parts = [loss_sum(model, row) for row in group]
    count = sum(n for _, n in parts)
    loss = sum(total for total, _ in parts) / count
    loss.backward()
    return loss.item(), count


def train(model, rows, settings):
    """Trains in place; one dict a step, in the words of metrics.jsonl."""
    groups = groups_of(rows, settings)
    optimizer = optimizer_of(model, settings)
    schedule = schedule_of(optimizer, settings, len(groups))
    trained = [p for p in model.parameters() if p.requires_grad]
    steps = []
    for number, group in enumerate(groups, 1):
        optimizer.zero_grad(set_to_none=True)
        loss, count = accumulate(model, group)
        norm = torch.nn.utils.clip_grad_norm_(trained, settings["max_grad_norm"], foreach=False).item()
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        tokens = sum(len(row["input_ids"]) for row in group)
        steps.append(
            dict(step=number, loss=loss, grad_norm=norm, learning_rate=rate, tokens=tokens, loss_tokens=count)
        )
    return steps


@torch.no_grad()
def mean_loss(model, rows):
    """Σ / Σ over all rows."""
    parts = [loss_sum(model, row) for row in rows]
    return (sum(total for total, _ in parts) / sum(n for _, n in parts)).item()


@torch.no_grad()
def greedy(model, prompt, tokens):
    """The likeliest continuation, each step from scratch, and the smallest lead of a choice over its runner-up."""
    ids, lead = list(prompt), float("inf")
    for _ in range(tokens):
        values, choices = logits(model, ids)[-1].topk(2)
        lead = min(lead, (values[0] - values[1]).item())
        ids.append(choices[0].item())
    return ids[len(prompt) :], lead
