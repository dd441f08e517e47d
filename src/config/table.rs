//! Every key: its type, range, default, unit, meaning and other names, in the order of the resolved config.

use super::MOST_USD_PER_HOUR;
use super::keys::{Key, Means, Preset, Table};
use super::kinds::{Bounds, Kind};
use Bounds::{BelowOne, Half, NotNegative, Positive, Within};
use Kind::{
    AutoCount, AutoFlag, Count, Epochs, Flag, HeldOut, Model, Names, OutputDir, Path, Pattern, Prompts, Real,
    Revision, Sources, Start, Targets, Template, Text,
};
use Preset::{ByMethod, Is, Required, Unset};

/// Most of anything that is counted: products of two still fit in 64 bits.
pub(super) const MANY: u64 = u32::MAX as u64;

/// From nothing to all.
const SHARE: Bounds = Within { min: 0, max: 1 };

/// From nothing to more than anybody pays, so that no bill is infinite.
const fn up_to(max: u32) -> Kind {
    Real(Within { min: 0, max })
}

/// Some of it, up to what nobody has.
const SOME: Kind = Count { min: 1, max: MANY };

const fn top(name: &'static str, kind: Kind, preset: Preset, meaning: &'static str) -> Key {
    Key::new(Table::Top, name, kind, preset, meaning)
}

const fn row(name: &'static str, kind: Kind, preset: Preset, meaning: &'static str) -> Key {
    Key::new(Table::Dataset, name, kind, preset, meaning)
}

const fn cost(name: &'static str, kind: Kind, preset: Preset, meaning: &'static str) -> Key {
    Key::new(Table::Cost, name, kind, preset, meaning).may_change()
}

const fn budget(name: &'static str, kind: Kind, preset: Preset, meaning: &'static str) -> Key {
    Key::new(Table::Budget, name, kind, preset, meaning).may_change()
}

/// All keys.
#[rustfmt::skip]
pub(super) static KEYS: &[Key] = &[
    top("base_model", Model, Required("base_model = \"org/name\", a folder or a .gguf file"),
        "Model to fine-tune: a folder, a .gguf file, or a hub name")
        .tip("give a folder, a .gguf file, or a hub name like org/name")
        .aka(&[("model_name_or_path", Means::Same), ("base_model_name_or_path", Means::Same)]),
    top("revision", Revision, Unset("main"), "Branch, tag or commit on the hub")
        .tip("use a branch, a tag or a commit's hash")
        .aka(&[("revision_of_model", Means::Same), ("model_revision", Means::Same)]),
    top("reinit_weights", Flag, Is("false"), "Start from config.json alone, with fresh random weights"),
    top("bf16", AutoFlag, Is("\"auto\""),
        "Keep the base in bf16; false: all in f32; \"auto\": the device decides").may_change(),

    top("adapter", Kind::one_of(&["lora", "qlora", "full"]), Unset("full, or what the flag says"),
        "What is trained: a low-rank adapter, one on a 4-bit base, or every weight")
        .tip("leave `adapter` out for full fine-tuning").aka(&[("finetuning_type", Means::Same)]),
    top("lora_r", SOME, Is("16"), "Rank of the adapter")
        .tip("usual values are 8 … 64").aka(&[("r", Means::Same), ("lora_rank", Means::Same)]),
    top("lora_alpha", Real(Positive), Is("32"), "Scale of the adapter: alpha / r, or alpha / √r with rsLoRA")
        .tip("usual values are r … 2 r"),
    top("lora_dropout", Real(BelowOne), Is("0"), "Drop probability on the adapter's input").unit("share"),
    top("lora_target_modules", Targets, Is("\"all-linear\""),
        "Modules with an adapter: every linear but the output head, names or their .-suffixes, or a regular \
         expression that matches whole names")
        .tip("write \"all-linear\", a list like [\"q_proj\", \"v_proj\"], or a regular expression")
        .aka(&[("target_modules", Means::Same), ("lora_target", Means::LoraTarget),
               ("lora_target_linear", Means::TargetLinear)]),
    top("use_rslora", Flag, Is("false"), "Scale by alpha / √r")
        .aka(&[("peft_use_rslora", Means::Same)]),
    top("use_dora", Flag, Is("false"), "DoRA: each row of the adapted weight has a trained length of its own")
        .aka(&[("peft_use_dora", Means::Same)]),
    top("rank_pattern", Pattern { ranks: true }, Unset("`lora_r` for all"),
        "Ranks of single modules: a regular expression for the end of their names, and the rank; the first that \
         matches holds")
        .tip("write { q_proj = 8, 'layers.0.mlp.*' = 32 }"),
    top("alpha_pattern", Pattern { ranks: false }, Unset("`lora_alpha` for all"),
        "Alphas of single modules, likewise")
        .tip("write { q_proj = 16, 'layers.0.mlp.*' = 64 }"),
    top("init_lora_weights", Start, Is("true"),
        "What an adapter starts from: true, A random and B zero; \"pissa\", the principal singular vectors, which the \
         base loses; \"pissa_niter_N\", the same in N rounds of subspace iteration")
        .tip("use true, \"pissa\", or \"pissa_niter_4\" for large models")
        .aka(&[("peft_init_lora_weights", Means::Same)]),
    top("loraplus_lr_ratio", Real(Positive), Unset("1"), "LoRA+: learning rate of B over that of A")
        .tip("usual values are 2 … 16"),
    top("lora_modules_to_save", Names, Is("[]"), "Modules trained whole and saved beside the adapter")
        .tip("write a list like [\"embed_tokens\", \"lm_head\"]")
        .aka(&[("modules_to_save", Means::Same), ("additional_target", Means::Commas)]),
    top("lora_model_dir", Path, Unset("a fresh adapter"),
        "Start from this PEFT adapter; rank, alpha, targets and scale come from it")
        .tip("give the folder that holds adapter_config.json")
        .aka(&[("adapter_name_or_path", Means::Same)]),
    top("load_in_4bit", Flag, Is("false"), "Quantise a 16-bit base to NF4; implied by qlora")
        .aka(&[("quantization_bit", Means::FourBits)]),
    top("bnb_4bit_use_double_quant", Flag, Is("true"), "Quantise the scales of NF4 once more")
        .aka(&[("double_quantization", Means::Same)]),

    top("datasets", Sources { empty: false },
        Required("[[datasets]] with path = \"train.jsonl\" and type = \"chat_template\""),
        "Files to learn from, one table each")
        .tip("write [[datasets]], then path = \"train.jsonl\" below it"),
    top("test_datasets", Sources { empty: true }, Unset("see `val_set_size`"),
        "Files to evaluate on, one table each"),
    top("retention_datasets", Sources { empty: true }, Unset("nothing is said about what is lost"),
        "What the model is not to forget: its loss on half of these rows, which are never learned from, is measured \
         before and after; the other half is for replay and EWC"),
    top("retention_share", Real(Half), Is("0"),
        "Replay: share of an epoch's rows that are drawn from the kept half of the retention set, anew for each epoch, \
         beside all of the run's own. Needs [[retention_datasets]]")
        .unit("share").tip("0.01 … 0.1 is usual"),
    top("val_set_size", HeldOut, Is("0"),
        "Rows held out for evaluation: below 1 a share, from 1 a count; the last rows after the seeded shuffle")
        .unit("share or rows").tip("0 holds out nothing, 0.05 one row in twenty, 100 a hundred rows")
        .aka(&[("val_size", Means::Same)]),
    top("sequence_len", Count { min: 8, max: MANY }, Is("2048"), "Longest row, and the size of a pack").unit("tokens")
        .tip("usual values are 512 … 8192")
        .aka(&[("cutoff_len", Means::Same), ("max_seq_length", Means::Same), ("max_length", Means::Same)]),
    top("excess_length_strategy", Kind::one_of(&["drop", "truncate", "raise"]), Is("\"drop\""),
        "What happens to longer rows; always counted, and more than 5 % dropped is refused"),
    top("sample_packing", Flag, Is("true"), "Fill packs of `sequence_len` with whole rows that never see each other")
        .aka(&[("packing", Means::Same)]),
    top("train_on_inputs", Flag, Is("false"), "Count every token in the loss, prompts too")
        .aka(&[("train_on_prompt", Means::Same)]),
    top("roles_to_train", Names, Is("[\"assistant\"]"), "Roles whose messages are counted")
        .tip("write a list like [\"assistant\"]"),
    top("train_on_eos", Kind::one_of(&["turn", "all", "last", "none"]), Is("\"turn\""),
        "Which end-of-turn tokens are counted: behind counted turns, all turns, the last turn, none"),
    top("chat_template", Template, Unset("the model's own"),
        "Jinja template in place of the model's own, the path of a .jinja file, or \"chatml\"; other named templates are not \
         known")
        .tip("leave it out for the model's own template, or give \"chatml\" or the path of a .jinja file")
        .aka(&[("chat_template_jinja", Means::Same)]),
    top("shuffle", Flag, Is("true"), "Shuffle rows, by `seed` and epoch")
        .aka(&[("shuffle_merged_datasets", Means::Same), ("disable_shuffling", Means::Not)]),
    top("on_bad_row", Kind::one_of(&["fail", "skip"]), Is("\"fail\""),
        "What a broken row does: refuse the data, or be left out and counted"),
    top("max_line_bytes", SOME, Is("33554432"), "A longer line is refused").unit("bytes"),

    top("micro_batch_size", SOME, Is("1"), "Rows (packs, with packing) that go through the model at once").unit("rows")
        .aka(&[("per_device_train_batch_size", Means::Same)]),
    top("gradient_accumulation_steps", SOME, Is("1"), "Micro-batches in an optimizer step"),
    top("num_epochs", Epochs { max: 100_000 }, Is("1"), "Passes over the data").unit("epochs").may_change()
        .tip("a part of an epoch is set by `max_steps`")
        .aka(&[("num_train_epochs", Means::Same)]),
    top("max_steps", SOME, Unset("`num_epochs` decides"),
        "Optimizer steps; wins over `num_epochs` and repeats epochs").unit("steps").may_change()
        .tip("leave it out to train `num_epochs`"),
    top("learning_rate", Real(Positive), ByMethod { adapter: "2e-4", full: "2e-5" }, "Peak learning rate")
        .tip("usual values are 1e-4 … 5e-4 for LoRA, 1e-5 … 5e-5 for full fine-tuning"),
    top("lr_scheduler", Kind::Choice {
            values: &["cosine", "linear", "constant"],
            synonyms: &[("constant_with_warmup", "constant")],
        }, Is("\"cosine\""), "Shape of the learning rate behind the warm-up")
        .aka(&[("lr_scheduler_type", Means::Same)]),
    top("warmup_steps", Count { min: 0, max: MANY }, Unset("0"), "Steps of linear warm-up; the first has rate 0")
        .unit("steps"),
    top("warmup_ratio", Real(SHARE), Unset("see `warmup_steps`"), "Warm-up as a share of all steps, rounded up")
        .unit("share").tip("0.03 … 0.1 is usual; a number of steps is `warmup_steps`"),
    top("cosine_min_lr_ratio", Real(SHARE), Is("0"), "Floor of the cosine, as a share of the peak").unit("share"),
    top("optimizer", Kind::Choice {
            values: &["adamw", "adamw_8bit", "adafactor", "lion", "sgd"],
            synonyms: &[
                ("adamw_torch", "adamw"), ("adamw_torch_fused", "adamw"), ("adamw_hf", "adamw"),
                ("adamw_bnb_8bit", "adamw_8bit"), ("lion_32bit", "lion"),
            ],
        }, Is("\"adamw\""),
        "Optimizer: AdamW with moments in f32 or, as bitsandbytes has it, in 8 bits; Adafactor and Lion as transformers \
         and their papers have them; SGD as torch has it")
        .tip("use \"adamw\"").aka(&[("optim", Means::Same)]),
    top("weight_decay", Real(NotNegative), Is("0"),
        "Decoupled weight decay (with sgd, added to the gradient); never on norms and biases")
        .tip("usual values are 0 … 0.1"),
    top("adam_beta1", Real(BelowOne), Is("0.9"), "Decay of AdamW's first moment; Lion's first β"),
    top("adam_beta2", Real(BelowOne), Is("0.999"), "Decay of AdamW's second moment; Lion's second β, 0.99 where not set"),
    top("adam_epsilon", Real(Positive), Is("1e-8"), "Added to AdamW's denominator"),
    top("momentum", Real(BelowOne), Is("0"), "SGD's momentum").tip("0.9 is usual"),
    top("master_weights", Kind::one_of(&["f32", "bf16"]), Is("\"f32\""),
        "How full fine-tuning keeps its weights: in f32, or in bf16 alone, each update rounded at random so that small \
         steps are not lost"),
    top("optimizer_in_backward", Flag, Is("false"),
        "Update each tensor as soon as its gradient is whole, so that all gradients never stand at once; a gradient that \
         is not finite is then found block by block. Needs gradient_accumulation_steps = 1 and max_grad_norm = 0"),
    top("l2_sp", Real(NotNegative), Is("0"),
        "L2-SP: λ of ½·λ·‖w − w₀‖², added to the loss, which holds what is trained near its start: all weights, or an \
         adapter's own tensors. Refused with reinit_weights; not on a GPU")
        .tip("0.001 … 0.1 is usual"),
    top("ewc", Real(NotNegative), Is("0"),
        "EWC: λ of ½·λ·Σ F·(w − w₀)², added to the loss, F the diagonal of the Fisher information: the mean over the kept \
         rows of the retention set of the squared gradient of a row's mean token loss. Of a new adapter it holds B alone: \
         where B is 0, nothing depends on A yet. Needs [[retention_datasets]]; refused with reinit_weights; not on a GPU")
        .tip("gradients are small, and their squares more so: begin with 10,000"),
    top("max_grad_norm", Real(NotNegative), Is("1"), "Gradients are scaled down to this norm; 0 = never"),
    top("gradient_checkpointing", AutoFlag, Is("\"auto\""),
        "Recompute activations in the backward pass; \"auto\": when memory needs it").may_change()
        .aka(&[("disable_gradient_checkpointing", Means::Not)]),
    top("device", Kind::Device, Is("\"auto\""), "Where the run computes: \"cuda:1\" is the second GPU").may_change(),
    top("threads", AutoCount { min: 1, max: 4096 }, Is("\"auto\""),
        "Worker threads; \"auto\": the cores that this process may use").unit("threads").may_change(),
    top("seed", Count { min: 0, max: i64::MAX.cast_unsigned() }, Is("42"), "Everything random follows from it"),

    top("eval_steps", SOME, Unset("only before the first and after the last step"), "Steps from evaluation to evaluation")
        .unit("steps").may_change(),
    top("early_stopping_patience", SOME, Unset("never"), "Evaluations without a lower loss before the run stops")
        .unit("evaluations").may_change().aka(&[("early_stopping_steps", Means::Same)]),
    top("load_best_model_at_end", Flag, Is("false"), "End with the weights of the lowest evaluation loss"),
    top("save_steps", SOME, Unset("only at a stop and at the end"), "Steps from checkpoint to checkpoint")
        .unit("steps").may_change(),
    top("save_total_limit", SOME, Unset("all"), "Checkpoints kept; the best one is kept beside them")
        .unit("checkpoints").may_change(),
    top("logging_steps", SOME, Is("10"), "Steps from progress line to progress line where there is no terminal")
        .unit("steps").may_change(),

    top("output_dir", OutputDir, Required("output_dir = \"runs/{run}\""),
        "Folder of the run; {run} becomes the run's short id").may_change()
        .tip("names of at most 255 bytes, without NUL, and a last one that every system can write"),
    top("auto_resume_from_checkpoints", Flag, Is("false"), "Go on from the folder's last checkpoint if there is one")
        .may_change().aka(&[("resume_from_checkpoint", Means::Resume)]),
    top("purpose", Text, Is("\"experiment\""), "What the run is for, in the ledger: experiment, pilot, final, or your own word")
        .may_change(),
    top("project", Text, Unset("none"), "What the run belongs to, in the ledger: money is summed by it").may_change(),
    top("sample_prompts", Prompts, Is("[]"), "Prompts answered before and after training").may_change(),
    top("report_to", Names, Is("[]"), "Trackers that follow the run: mlflow, tensorboard, csv").may_change()
        .tip("write a list of mlflow, tensorboard, csv; metrics.jsonl and report.json are written in any case"),
    top("mlflow_tracking_uri", Text, Unset("MLFLOW_TRACKING_URI of the environment"), "Address of the MLflow server")
        .may_change()
        .tip("an http:// or https:// address; name and password go into MLFLOW_TRACKING_USERNAME and _PASSWORD"),
    top("mlflow_experiment_name", Text, Unset("`project`, or fttrain"), "Experiment of the MLflow server").may_change(),

    row("path", Path, Required("path = \"train.jsonl\""), "JSON Lines file").tip("give the path of a .jsonl file"),
    row("type", Kind::one_of(&["chat_template", "prompt_completion", "completion", "alpaca", "sharegpt", "tokenized"]),
        Is("\"chat_template\""), "What a row is"),
    row("split", Text, Unset("all rows"), "Part of the file: train[:N], train[N:], train[N:M], percent signs allowed"),
    row("field_messages", Text, Unset("messages; with sharegpt conversations"), "Field with the messages"),
    row("field_prompt", Text, Unset("none; with prompt_completion prompt, with alpaca instruction"),
        "Field that becomes the user turn or the prompt")
        .aka(&[("field_instruction", Means::Same)]),
    row("field_completion", Text, Unset("none; with prompt_completion completion, with alpaca output"),
        "Field that becomes the assistant turn or the completion")
        .aka(&[("field_output", Means::Same)]),
    row("field", Text, Is("\"text\""), "Field with the text of completion").aka(&[("field_text", Means::Same)]),
    row("field_system", Text, Unset("none"), "Field with a system message"),

    cost("machine", Text, Unset("cost is \"unknown\""), "Row of the price table: provider/instance"),
    cost("spot", Flag, Is("false"), "The row's spot price in place of the one on demand"),
    cost("price_file", Path, Unset("the shipped table alone"),
        "A price table of one's own, a CSV file with the shipped one's columns; its rows win")
        .tip("its first line is provider,instance,usd_per_hour_on_demand,source,as_of and what else you have"),
    cost("usd_per_hour", up_to(MOST_USD_PER_HOUR), Unset("see `machine`"), "A price of one's own").unit("USD / h")
        .tip("give the price of the whole machine for an hour, in US dollars"),
    cost("hardware_usd", up_to(1_000_000_000), Unset("see `machine`"),
        "What a machine of one's own cost; an hour is this over `hardware_life_hours`").unit("USD")
        .tip("give what the whole machine cost, in US dollars"),
    cost("hardware_life_hours", Real(Within { min: 1, max: 1_000_000 }), Unset("needed with `hardware_usd`"),
        "Hours of work in the life of a machine of one's own").unit("h")
        .tip("three years at half load are 13,000"),
    cost("usd_per_kwh", up_to(1000), Unset("electricity is part of the price"),
        "Price of electricity on a machine of one's own, paid beside the hour").unit("USD / kWh")
        .tip("0.1 … 0.4 is usual"),
    cost("billing_granularity_s", SOME, Unset("the price row's, or 1"), "Bills are rounded up to this").unit("s"),
    cost("minimum_s", SOME, Unset("the price row's, or none"), "Shortest bill").unit("s"),
    cost("bill_from", Kind::one_of(&["run", "boot"]), Is("\"run\""),
        "What is paid for: the run, or the machine since it started (set-up, download and idle time as phases of \
         their own)"),
    cost("release_after_s", Count { min: 0, max: MANY }, Unset("0"),
        "Stated: how long the machine is kept, and paid for, behind the run").unit("s"),
    cost("region", Text, Unset("no carbon is computed"),
        "Region of the grid, for carbon: a row of the shipped table, such as europe-west3 or Frankfurt"),
    cost("grid_g_per_kwh", up_to(10_000), Unset("see `region`"),
        "Carbon of a kilowatt-hour, for a grid that the table does not have").unit("g CO2e / kWh")
        .tip("20 … 700 is usual"),

    budget("max_usd", Real(Positive), Unset("no cap"), "Most that the run may cost").unit("USD"),
    budget("max_hours", Real(Positive), Unset("no cap"), "Longest that the run may take").unit("h"),
    budget("max_memory_gib", Real(Positive), Unset("no cap"), "Most memory that the run may take").unit("GiB"),
    budget("max_energy_kwh", Real(Positive), Unset("no cap"), "Most energy that the run may take").unit("kWh"),
    budget("repeats", Kind::one_of(&["warn", "refuse"]), Is("\"warn\""), "What an exact repeat of an earlier run gets"),

    Key::new(Table::Meter, "interval_ms", Count { min: 10, max: 60_000 }, Is("100"), "From sample to sample")
        .unit("ms").may_change(),
];
