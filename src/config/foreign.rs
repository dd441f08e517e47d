//! Keys of other trainers that have no counterpart here: each is refused with what stands in its place.

/// Whole names.
const NAMES: &[(&[&str], &str)] = &[
    (
        &[
            "flash_attention",
            "flash_attn",
            "xformers_attention",
            "sdp_attention",
            "eager_attention",
            "attn_implementation",
            "s2_attention",
            "flex_attention",
        ],
        "attention has one exact implementation here: remove the key",
    ),
    (
        &["tf32", "fp16", "float16", "bfloat16", "fp8", "pure_bf16", "torch_dtype"],
        "precision is set by `bf16` (true, false or \"auto\"), and in full fine-tuning by `master_weights`: remove the key",
    ),
    (
        &["load_in_8bit", "quantization_method", "quantization_type", "bnb_4bit_quant_type"],
        "a quantised base is 4-bit NF4 (adapter = \"qlora\") or a GGUF file's own types: remove the key",
    ),
    (
        &["special_tokens", "tokens", "add_special_tokens", "tokenizer_type", "tokenizer_config"],
        "the tokenizer is used as it comes with the model: remove the key",
    ),
    (
        &["model_type", "type_of_model", "is_llama_derived_model", "trust_remote_code"],
        "the model's family is read from its files, and no code of a model is run: remove the key",
    ),
    (
        &["pad_to_sequence_len", "group_by_length", "length_column_name", "eval_sample_packing"],
        "batches carry no padding here: remove the key",
    ),
    (
        &["dataset_prepared_path", "dataset_processes", "preprocessing_num_workers", "overwrite_cache"],
        "tokenised data is cached by its content: remove the key",
    ),
    (&["saves_per_epoch", "save_strategy"], "use `save_steps`"),
    (&["evals_per_epoch", "eval_strategy", "evaluation_strategy", "do_eval"], "use `eval_steps`"),
    (
        &["stage", "do_train", "rl", "strict", "debug", "plot_loss"],
        "the program does supervised fine-tuning only: remove the key",
    ),
    (
        &["dataset", "dataset_dir", "train_file", "data_path", "eval_dataset", "ds_type", "data_files"],
        "data is named by [[datasets]] with path = \"train.jsonl\" and type = \"chat_template\"",
    ),
    (&["template", "conversation"], "the model's own chat template is used; `chat_template` overrides it"),
    (&["max_samples", "shards"], "take a part with `split` under [[datasets]]: split = \"train[:1000]\""),
    (&["overwrite_output_dir"], "`--overwrite` on the command line moves an old run aside"),
    (
        &["batch_size", "global_batch_size"],
        "an optimizer step takes micro_batch_size × gradient_accumulation_steps rows",
    ),
    (
        &["hf_token", "hub_token", "hf_use_auth_token", "push_to_hub", "token"],
        "a token belongs in the variable HF_TOKEN, never in a config: remove the key",
    ),
    (
        &["layers_to_transform", "peft_layers_to_transform"],
        "`lora_target_modules` may be a regular expression that names layers",
    ),
    (
        &["lora_fan_in_fan_out", "fan_in_fan_out", "bias", "lora_bias", "task_type", "peft_type"],
        "adapters here have no bias and belong to causal language models: remove the key",
    ),
    (
        &["per_device_eval_batch_size", "eval_batch_size"],
        "evaluation batches follow `micro_batch_size` and `sequence_len`: remove the key",
    ),
    (&["lr_scheduler_kwargs"], "the cosine's floor is `cosine_min_lr_ratio`"),
    (
        &["device_map", "max_memory", "local_rank", "world_size", "ddp_timeout"],
        "a process computes on one device, set by `device`, and `torchrun`, `srun` or `mpirun` starts several: remove the key",
    ),
    (
        &["neftune_noise_alpha", "plugins", "use_unsloth", "torch_compile"],
        "not available here: remove the key",
    ),
    (&["rank"], "did you mean `lora_r`?"),
];

/// Beginnings of names.
const PREFIXES: &[(&[&str], &str)] = &[
    (
        &["wandb_", "comet_", "swanlab_", "use_wandb", "use_comet"],
        "metrics go to metrics.jsonl in the run's folder: remove the key",
    ),
    (
        &["deepspeed", "fsdp", "ddp_", "tensor_parallel", "context_parallel", "sequence_parallel"],
        "each process holds the whole model, and `torchrun`, `srun` or `mpirun` starts several: remove the key",
    ),
    (&["hub_", "push_to_hub"], "nothing is uploaded: remove the key"),
    (&["liger_", "unsloth_"], "kernels are chosen by the program: remove the key"),
    (
        &["galore_", "apollo_", "badam_", "lisa_", "relora", "dpo_", "kto_", "orpo_", "grpo"],
        "this way of training is not available: remove the key",
    ),
];

/// What stands in the place of a foreign key.
pub(super) fn hint(name: &str) -> Option<&'static str> {
    let whole = NAMES.iter().find(|(names, _)| names.contains(&name)).map(|(_, hint)| *hint);
    whole.or_else(|| {
        PREFIXES
            .iter()
            .find(|(starts, _)| starts.iter().any(|start| name.starts_with(start)))
            .map(|(_, hint)| *hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_families_of_names_have_a_hint() {
        assert!(hint("flash_attention").is_some_and(|h| h.contains("remove")));
        assert!(hint("wandb_project").is_some_and(|h| h.contains("metrics.jsonl")));
        assert!(hint("saves_per_epoch").is_some_and(|h| h.contains("save_steps")));
        for name in ["world_size", "deepspeed", "fsdp_config"] {
            assert!(hint(name).is_some_and(|h| h.contains("`torchrun`")), "{name}");
        }
        assert_eq!(hint("something_else"), None);
    }
}
