"""Does llama.cpp take a GGUF LoRA as fttrain means it? Compares the likeliest next tokens' log-probabilities.

    pip install xllamacpp==2026.10.11549      # llama.cpp's server in a wheel
    python tests/golden/check_gguf_lora.py BASE.gguf ADAPTER.gguf LOGITS.json

LOGITS   what fttrain makes of base and adapter: [{"ids": [...], "base": [V logits of the last], "adapted": [V]}, ...]

llama.cpp multiplies Q4 weights with 8-bit activations, so the base alone is off by that noise, which is measured first.
Exit 1 where llama.cpp refuses the file, where the noise is too large to tell anything, where with the adapter a
log-probability of one of the ten likeliest tokens is off by more than twice the noise, or where the adapter moves the
answer by less than ten times that.
"""

import argparse
import json
import math
import sys

import xllamacpp

MOST_NOISE = 0.4


def serve(base, adapter=None):
    params = xllamacpp.CommonParams()
    params.model.path = base
    params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
    params.cpuparams.n_threads = 2
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    return xllamacpp.Server(params)


def likeliest(server, ids):
    """Log-probability by token of the ten likeliest next ones."""
    asked = dict(prompt=ids, n_predict=1, n_probs=10, temperature=0.0, cache_prompt=False, samplers=[])
    answer = server.handle_completions(asked)
    answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
    try:
        tops = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    except (KeyError, IndexError, TypeError):
        sys.exit(f"llama.cpp answers {answer}")
    return {top["id"]: top["logprob"] for top in tops}


def log_softmax(logits):
    most = max(logits)
    total = most + math.log(sum(math.exp(x - most) for x in logits))
    return [x - total for x in logits]


def deviation(server, rows, which):
    worst = 0.0
    for row in rows:
        ours = log_softmax(row[which])
        worst = max(worst, *(abs(ours[token] - theirs) for token, theirs in likeliest(server, row["ids"]).items()))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("adapter")
    parser.add_argument("logits")
    a = parser.parse_args()
    with open(a.logits, encoding="utf-8") as file:
        rows = json.load(file)
    noise = deviation(serve(a.base), rows, "base")
    server = serve(a.base, a.adapter)
    off, moved = deviation(server, rows, "adapted"), deviation(server, rows, "base")
    print(json.dumps(dict(base_noise=noise, adapter_deviation=off, adapter_moves=moved)))
    sys.exit(0 if noise <= MOST_NOISE and off <= 2 * noise and moved > 20 * noise else 1)


if __name__ == "__main__":
    main()
