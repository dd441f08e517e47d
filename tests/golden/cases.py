"""The models, adapters and runs that goldens are made of: values only. README.md says what each is there for."""

SHAPE = dict(
    vocab_size=80, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=128,
    bos_token_id=1, eos_token_id=2,
)  # fmt: skip
TRAIN = dict(
    micro_batch_size=2, gradient_accumulation_steps=2, num_epochs=2, learning_rate=1e-2,
    lr_scheduler="cosine", warmup_steps=2, weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.999,
    adam_epsilon=1e-8, max_grad_norm=1.0,
)  # fmt: skip
LONG = dict(micro_batch_size=1)
# 19 rows in groups of 2 x 2: the last group of an epoch is 2 + 1 rows. Lengths are drawn from the range.
SHORT_ROWS = dict(count=19, shortest=3, longest=20)
LONG_ROWS = dict(count=10, shortest=70, longest=100)

# Without `adapter` or `fresh` in a run, every weight is trained. An `adapter` is drawn and saved before the run; a
# `fresh` one starts as PEFT starts it. `b_std` 0 leaves B at zero, as PEFT starts it.
CASES = {
    "llama": dict(
        config=dict(model_type="llama", rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
        shards=2,
        rows=SHORT_ROWS,
        runs={
            "lora": dict(adapter=dict(r=4, lora_alpha=8, target_modules="all-linear", b_std=0.05)),
            "loraplus": dict(
                adapter=dict(r=4, lora_alpha=8, target_modules="all-linear", b_std=0.0),
                train=dict(loraplus_lr_ratio=4.0, learning_rate=5e-3),
            ),
        },
    ),
    "llama-bias": dict(
        config=dict(
            model_type="llama", tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
            rope_theta=10000.0, rope_scaling=dict(type="linear", factor=2.0),
        ),  # fmt: skip
        rows=SHORT_ROWS,
        runs={
            "lora": dict(
                adapter=dict(r=4, lora_alpha=8, target_modules="all-linear", b_std=0.0),
                train=dict(cosine_min_lr_ratio=0.1, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-3),
            ),
            "full": dict(train=dict(learning_rate=2e-3, weight_decay=0.5)),
            "dora": dict(adapter=dict(r=4, lora_alpha=8, target_modules="all-linear", use_dora=True, b_std=0.05)),
        },
    ),
    "llama3-rope": dict(
        # Wavelengths 6, 63, 628 and 6283 tokens: one is kept, one lies on the ramp, two are divided.
        config=dict(
            model_type="llama", rope_theta=10000.0,
            rope_scaling=dict(
                rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),  # fmt: skip
        rows=LONG_ROWS,
        runs={
            "rslora": dict(
                adapter=dict(r=8, lora_alpha=4, target_modules=["q_proj", "v_proj"], use_rslora=True, b_std=0.05),
                train=dict(lr_scheduler="linear", **LONG),
            )
        },
    ),
    "qwen2": dict(
        config=dict(model_type="qwen2", rope_theta=1000000.0, use_sliding_window=False),
        rows=SHORT_ROWS,
        runs={
            "head": dict(
                adapter=dict(
                    r=4, lora_alpha=8, target_modules="all-linear", modules_to_save=["lm_head"], b_std=0.05
                )
            ),
            "head-and-embeddings": dict(
                adapter=dict(
                    r=2, lora_alpha=2, target_modules=["down_proj", "layers.1.self_attn.o_proj"],
                    modules_to_save=["embed_tokens", "lm_head"], b_std=0.0,
                ),  # fmt: skip
                train=dict(lr_scheduler="constant", warmup_steps=0, learning_rate=3e-3),
            ),
            "pissa": dict(
                fresh=dict(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights="pissa"),
                train=dict(learning_rate=2e-3),
            ),
        },
    ),
    "qwen2-window": dict(
        config=dict(
            model_type="qwen2", rope_theta=10000.0, use_sliding_window=True, sliding_window=5, max_window_layers=1
        ),
        rows=SHORT_ROWS,
        runs={"lora": dict(adapter=dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj"], b_std=0.05))},
    ),
    "qwen3": dict(
        config=dict(
            model_type="qwen3", tie_word_embeddings=True, head_dim=16,
            rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
        ),  # fmt: skip
        rows=SHORT_ROWS,
        runs={
            "lora": dict(
                adapter=dict(
                    r=4, lora_alpha=8, b_std=0.05,
                    target_modules=r"model\.layers\.\d+\.(self_attn\.[qk]|mlp\.down)_proj",
                ),  # fmt: skip
                # Between the norms of this run: some steps are clipped, some are not.
                train=dict(max_grad_norm=0.6),
            ),
            "full": dict(train=dict(learning_rate=2e-3, weight_decay=0.5)),
            "patterns": dict(
                adapter=dict(
                    r=4, lora_alpha=8, target_modules="all-linear", b_std=0.05,
                    rank_pattern={r"layers\.0\.self_attn\..*": 2, "down_proj": 6}, alpha_pattern={"1.mlp.up_proj": 3},
                )  # fmt: skip
            ),
        },
    ),
}
