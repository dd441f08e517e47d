//! What configs mean: defaults, aliases, overrides, the flag, and that a resolved config says the same.

use super::*;
use std::collections::BTreeSet;

const LEAST: &str = r#"
base_model = "org/name"
output_dir = "out"
[[datasets]]
path = "train.jsonl"
"#;

fn load(text: &str, flag: Option<MethodFlag>, set: &[(&str, &str)]) -> crate::error::Result<Resolved> {
    let set: Vec<(String, String)> = set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    parse("a.toml", text, flag, &set)
}

/// The least config with lines put on top.
fn with(lines: &str) -> Resolved {
    load(&format!("{lines}\n{LEAST}"), Some(MethodFlag::Lora), &[])
        .unwrap_or_else(|error| panic!("{lines}\n{error}"))
}

/// What is odd about a config, without the places.
fn odd(resolved: &Resolved) -> BTreeSet<&str> {
    resolved.warnings.iter().filter_map(|warning| Some(warning.split_once(": ")?.1)).collect()
}

fn lora(config: &Config) -> &Lora {
    match &config.method {
        Method::Lora(lora) | Method::Qlora { lora, .. } => lora,
        Method::Full => panic!("full"),
    }
}

#[test]
fn defaults_are_those_of_the_design() {
    let resolved = with("");
    let config = &resolved.config;
    let lora = lora(config);
    assert_eq!((lora.r, lora.alpha, lora.dropout), (Some(16), Some(32.0), 0.0));
    assert_eq!(lora.targets, Some(Targets::AllLinear));
    assert_eq!(lora.rslora, Some(false));
    assert_eq!(config.base.bf16, None);
    assert_eq!(config.data.sequence_len, 2048);
    assert_eq!(config.data.excess_length, ExcessLength::Drop);
    assert!(config.data.sample_packing && config.data.shuffle);
    assert_eq!(config.data.roles_to_train, ["assistant"]);
    assert_eq!(config.data.max_line_bytes, 32 << 20);
    assert_eq!(config.data.val_set, ValSet::None);
    let train = &config.train;
    assert_eq!((train.micro_batch_size, train.gradient_accumulation_steps), (1, 1));
    assert_eq!((train.num_epochs, train.max_steps), (1, None));
    assert_eq!((train.learning_rate, train.lr_scheduler), (2e-4, LrScheduler::Cosine));
    assert_eq!(train.warmup, Warmup::Steps(0));
    assert_eq!((train.adam_beta1, train.adam_beta2, train.adam_epsilon), (0.9, 0.999, 1e-8));
    assert_eq!((train.weight_decay, train.max_grad_norm), (0.0, 1.0));
    assert_eq!((train.seed, train.device, train.threads), (42, Device::Auto, None));
    assert_eq!(config.cost.price, Price::Unknown);
    assert!(!config.output.auto_resume);
    assert_eq!(config.meter.interval_ms, 100);
    assert_eq!(config.data.datasets[0].format, Format::ChatTemplate);
    let full = load(LEAST, None, &[]).unwrap();
    assert_eq!((full.config.method, full.config.train.learning_rate), (Method::Full, 2e-5));
}

#[test]
fn the_flag_sets_the_method_when_the_config_does_not() {
    let lora = load(LEAST, Some(MethodFlag::Lora), &[]).unwrap();
    assert!(matches!(lora.config.method, Method::Lora(_)));
    assert!(lora.toml.contains("adapter = \"lora\"  # --lora"));
    let qlora = load(LEAST, Some(MethodFlag::Qlora), &[]).unwrap();
    assert!(matches!(qlora.config.method, Method::Qlora { double_quant: true, .. }));
    assert!(qlora.toml.contains("load_in_4bit = true  # --qlora"));
    let full = load(LEAST, Some(MethodFlag::Full), &[]).unwrap();
    assert_eq!(full.config.method, Method::Full);
    let text = format!("adapter = \"lora\"\n{LEAST}");
    assert!(load(&text, Some(MethodFlag::Lora), &[]).is_ok());
    let error = load(&text, Some(MethodFlag::Qlora), &[]).unwrap_err().to_string();
    assert!(error.contains("a.toml:1:11: `adapter` = \"lora\" contradicts `--qlora`"), "{error}");
}

#[test]
fn other_trainers_names_mean_the_same() {
    let same = [
        ("r = 4", "lora_r = 4"),
        ("lora_rank = 4", "lora_r = 4"),
        ("target_modules = [\"q_proj\"]", "lora_target_modules = [\"q_proj\"]"),
        ("lora_target = \"q_proj, v_proj\"", "lora_target_modules = [\"q_proj\", \"v_proj\"]"),
        ("lora_target = \"all\"", "lora_target_modules = \"all-linear\""),
        ("lora_target_linear = true", "lora_target_modules = \"all-linear\""),
        ("lora_target_linear = false\nlora_target_modules = [\"q\"]", "lora_target_modules = [\"q\"]"),
        ("modules_to_save = [\"lm_head\"]", "lora_modules_to_save = [\"lm_head\"]"),
        ("additional_target = \"a,b\"", "lora_modules_to_save = [\"a\", \"b\"]"),
        ("peft_use_rslora = true", "use_rslora = true"),
        ("peft_use_dora = true", "use_dora = true"),
        ("peft_init_lora_weights = \"pissa\"", "init_lora_weights = \"pissa\""),
        ("adapter_name_or_path = \"ad\"", "lora_model_dir = \"ad\""),
        ("cutoff_len = 64", "sequence_len = 64"),
        ("max_seq_length = 64", "sequence_len = 64"),
        ("packing = false", "sample_packing = false"),
        ("per_device_train_batch_size = 3", "micro_batch_size = 3"),
        ("num_train_epochs = 3.0", "num_epochs = 3"),
        ("lr_scheduler_type = \"linear\"", "lr_scheduler = \"linear\""),
        ("lr_scheduler = \"constant_with_warmup\"", "lr_scheduler = \"constant\""),
        ("optim = \"adamw_torch\"", "optimizer = \"adamw\""),
        ("val_size = 0.1", "val_set_size = 0.1"),
        ("val_set_size = 100.0", "val_set_size = 100"),
        ("shuffle_merged_datasets = false", "shuffle = false"),
        ("disable_shuffling = true", "shuffle = false"),
        ("disable_gradient_checkpointing = true", "gradient_checkpointing = false"),
        ("train_on_prompt = true", "train_on_inputs = true"),
        ("resume_from_checkpoint = true", "auto_resume_from_checkpoints = true"),
        ("resume_from_checkpoint = \"auto\"", "auto_resume_from_checkpoints = true"),
        ("finetuning_type = \"lora\"", "adapter = \"lora\""),
        ("chat_template = \"tokenizer_default\"", ""),
        ("report_to = \"none\"", "report_to = []"),
        ("lora_alpha = 8", "lora_alpha = 8.0"),
    ];
    for (foreign, ours) in same {
        let (foreign_means, ours_means) = (with(foreign), with(ours));
        assert_eq!(foreign_means.config, ours_means.config, "{foreign}");
    }
    let foreign = "model_name_or_path = \"m\"\noutput_dir = \"o\"\nfinetuning_type = \"lora\"\nquantization_bit = 4\n\
                   [[datasets]]\npath = \"x\"\nfield_instruction = \"q\"\nfield_output = \"a\"\n";
    let config = load(foreign, None, &[]).unwrap().config;
    assert!(matches!(config.method, Method::Qlora { .. }));
    assert_eq!(config.base.model, "m");
    assert_eq!(config.data.datasets[0].field_prompt.as_deref(), Some("q"));
    let full = LEAST.replace("base_model", "finetuning_type = \"full\"\nbase_model");
    assert_eq!(load(&full, None, &[]).unwrap().config.method, Method::Full);
}

#[test]
fn what_an_adapter_folder_says_is_left_to_it() {
    let config = with("lora_model_dir = \"old\"\nlora_alpha = 8").config;
    let lora = lora(&config);
    assert_eq!((lora.r, &lora.targets, lora.rslora), (None, &None, None));
    assert_eq!(lora.alpha, Some(8.0));
}

#[test]
fn overrides_win_and_say_so() {
    let text = format!("lora_rank = 4\nwarmup_steps = 3\n{LEAST}[cost]\nmachine = \"aws/x\"\n");
    let set = [
        ("lora_r", "8"),
        ("warmup_ratio", "0.1"),
        ("output_dir", "2024"),
        ("purpose", "two words"),
        ("cost.usd_per_hour", "1.5"),
        ("budget.max_usd", "3"),
        ("datasets.0.path", "other.jsonl"),
        ("datasets.1.path", "more.jsonl"),
        ("test_datasets.0.path", "test.jsonl"),
        ("lora_target_modules", "[\"q_proj\"]"),
        ("seed", "1"),
        ("seed", "2"),
    ];
    let resolved = load(&text, Some(MethodFlag::Lora), &set).unwrap();
    let config = &resolved.config;
    assert_eq!(lora(config).r, Some(8));
    assert_eq!(lora(config).targets, Some(Targets::Names(vec!["q_proj".to_owned()])));
    assert_eq!(config.train.warmup, Warmup::Ratio(0.1));
    assert_eq!(config.output.dir, PathBuf::from("2024"));
    assert_eq!(config.output.purpose, "two words");
    assert_eq!(config.cost.price, Price::PerHour(1.5));
    assert_eq!(config.budget.max_usd, Some(3.0));
    assert_eq!(config.data.datasets[0].path, PathBuf::from("other.jsonl"));
    assert_eq!(config.data.datasets[1].path, PathBuf::from("more.jsonl"));
    assert_eq!(config.data.test_datasets[0].path, PathBuf::from("test.jsonl"));
    assert_eq!(config.train.seed, 2);
    for line in
        ["lora_r = 8  # --set", "micro_batch_size = 1  # default", "base_model = \"org/name\"  # file"]
    {
        assert!(resolved.toml.contains(line), "{line}\n{}", resolved.toml);
    }
}

#[test]
fn an_override_that_says_nothing_takes_nothing_away() {
    let targets = |text: &str, value: &str| {
        let text = format!("{text}\n{LEAST}");
        let resolved = load(&text, Some(MethodFlag::Lora), &[("lora_target_linear", value)]).unwrap();
        lora(&resolved.config).targets.clone()
    };
    let listed = "lora_target_modules = [\"q_proj\"]";
    assert_eq!(targets(listed, "false"), Some(Targets::Names(vec!["q_proj".to_owned()])));
    assert_eq!(targets(listed, "true"), Some(Targets::AllLinear));
    assert_eq!(targets("lora_target_linear = true", "false"), Some(Targets::AllLinear));
}

#[test]
fn roles_have_the_names_by_which_rows_are_read() {
    let roles = |of: &str, list: &str| {
        let text = format!("roles_to_train = {list}\n{LEAST}type = \"{of}\"");
        load(&text, None, &[]).unwrap()
    };
    let named = roles("sharegpt", "[\"gpt\", \"human\", \"assistant\", \"tool\"]");
    assert_eq!(named.config.data.roles_to_train, ["assistant", "user", "tool"]);
    let usual = roles("sharegpt", "[\"assistant\", \"user\", \"tool\"]");
    assert_eq!(named.settings, usual.settings, "equal runs have equal settings");
    // Elsewhere a role is what the rows and the template call it.
    assert_eq!(roles("chat_template", "[\"gpt\"]").config.data.roles_to_train, ["gpt"]);
    assert_eq!(roles("chat_template", "[\"bot\", \"bot\"]").config.data.roles_to_train, ["bot", "bot"]);
}

#[test]
fn a_resolved_config_means_the_same() {
    let template =
        "chat_template = '''{% for m in messages %}\n\t\"{{ m.content }}\" \\ \u{e9}{% endfor %}'''";
    let configs = vec![
        with(""),
        with(template),
        with("lora_model_dir = \"old\"\nuse_rslora = true"),
        with("val_set_size = 0.25\neval_steps = 5\nearly_stopping_patience = 2\nload_best_model_at_end = true"),
        with("warmup_ratio = 0.03\nmax_steps = 7\nbf16 = false\ngradient_checkpointing = true\nthreads = 3"),
        with("lora_target_modules = '.*\\.(q|v)_proj'\nsample_prompts = [\"a\\nb\", \"\\\"c\\\"\"]"),
        load(LEAST, Some(MethodFlag::Qlora), &[("bnb_4bit_use_double_quant", "false")]).unwrap(),
        load(LEAST, Some(MethodFlag::Full), &[("learning_rate", "1e-5")]).unwrap(),
        load(&format!("lora_r = 3\n{LEAST}"), None, &[]).unwrap(),
        with("lr_scheduler = \"linear\"\nmomentum = 0.9\nmaster_weights = \"bf16\""),
        with("optimizer = \"lion\"\nlr_scheduler = \"constant\"\ncosine_min_lr_ratio = 0.1"),
        with("rank_pattern = { q_proj = 8, 'layers\\.0\\..*' = 2 }\nalpha_pattern = { 'mlp\\..*' = 3 }"),
        load(
            &format!("optimizer = \"sgd\"\nmomentum = 0.9\nmaster_weights = \"bf16\"\n{LEAST}"),
            Some(MethodFlag::Full),
            &[],
        )
        .unwrap(),
        load(
            &format!(
                "{LEAST}type = \"alpaca\"\nfield = \"x\"\n[[datasets]]\npath = \"b\"\n\
                 type = \"tokenized\""
            ),
            None,
            &[],
        )
        .unwrap(),
        load(
            &format!(
                "{LEAST}type = \"sharegpt\"\nsplit = \"train[:10%]\"\n[[datasets]]\npath = \"b\"\n\
                 type = \"prompt_completion\"\n[[test_datasets]]\npath = \"c\"\ntype = \"completion\"\nfield = \"t\"\n\
                 [cost]\nusd_per_hour = 0\nbilling_granularity_s = 60\n\
                 [budget]\nmax_hours = 2\nmax_memory_gib = 7.5\nmax_energy_kwh = 1e-3\nrepeats = \"refuse\"\n\
                 [meter]\ninterval_ms = 50"
            ),
            Some(MethodFlag::Lora),
            &[],
        )
        .unwrap(),
    ];
    for first in &configs {
        let again = load(&first.toml, None, &[]).unwrap_or_else(|error| panic!("{error}\n{}", first.toml));
        assert_eq!(first.config, again.config, "{}", first.toml);
        assert_eq!(first.settings, again.settings);
        assert_eq!(differences(first, &again), Vec::new());
        assert_eq!(settings_of(&first.toml), first.settings);
        assert_eq!(odd(first), odd(&again), "{}", first.toml);
    }
}

#[test]
fn a_resolved_config_names_every_key() {
    let toml = with("").toml;
    for key in table::KEYS.iter().filter(|key| key.table != Table::Dataset) {
        let set = format!("\n{} = ", key.name);
        let unset = format!("\n# {} is not set: ", key.name);
        let rows = key.name == "datasets";
        assert!(rows || toml.contains(&set) || toml.contains(&unset), "{}", key.name);
    }
}

#[test]
fn what_no_method_uses_is_said() {
    let resolved = load(&format!("lora_r = 8\n{LEAST}"), None, &[]).unwrap();
    assert_eq!(
        resolved.warnings,
        ["a.toml:1:10: `lora_r` has no effect: without an adapter every weight is trained"]
    );
    let resolved = load(&format!("{LEAST}type = \"alpaca\"\nfield = \"x\""), None, &[]).unwrap();
    assert!(resolved.warnings[0].contains("`field` has no effect with type = \"alpaca\""));
    let resolved = load(&format!("{LEAST}type = \"alpaca\"\nfield_system = \"x\""), None, &[]).unwrap();
    assert!(resolved.warnings[0].contains("`field_system` has no effect with type = \"alpaca\""));
    assert_eq!(with("").warnings, Vec::<String>::new());
    for (preset, other, fact) in [
        ("momentum = 0", "momentum = 0.9", "`momentum` has no effect: it is SGD's"),
        (
            "master_weights = \"f32\"",
            "master_weights = \"bf16\"",
            "`master_weights` has no effect: an adapter is trained in f32",
        ),
        (
            "lr_scheduler = \"linear\"\ncosine_min_lr_ratio = 0.0",
            "lr_scheduler = \"linear\"\ncosine_min_lr_ratio = 0.1",
            "`cosine_min_lr_ratio` has no effect with lr_scheduler = \"linear\"",
        ),
    ] {
        assert_eq!(odd(&with(preset)), BTreeSet::new(), "{preset}");
        assert_eq!(odd(&with(other)), BTreeSet::from([fact]), "{other}");
    }
}

#[test]
fn a_resume_may_change_what_does_not_change_the_learning() {
    let set = |set: &[(&str, &str)]| load(LEAST, Some(MethodFlag::Lora), set).unwrap();
    let old = set(&[("max_steps", "10")]);
    let harmless = set(&[
        ("max_steps", "20"),
        ("num_epochs", "3"),
        ("save_steps", "5"),
        ("output_dir", "elsewhere"),
        ("threads", "2"),
        ("purpose", "final"),
        ("cost.usd_per_hour", "2"),
        ("budget.max_usd", "9"),
        ("meter.interval_ms", "50"),
        ("auto_resume_from_checkpoints", "true"),
    ]);
    assert_eq!(differences(&old, &harmless).len(), 10);
    assert_eq!(resume_conflicts(&old, &harmless), Vec::new());
    let other = set(&[("lora_r", "8"), ("max_steps", "10"), ("datasets.0.path", "b"), ("val_set_size", "3")]);
    let conflicts = resume_conflicts(&old, &other);
    let told: Vec<String> = conflicts.iter().map(|d| format!("{}: {} -> {}", d.key, d.old, d.new)).collect();
    assert_eq!(
        told,
        ["datasets.0.path: \"train.jsonl\" -> \"b\"", "lora_r: 16 -> 8", "val_set_size: 0 -> 3"]
    );
}

#[test]
fn formats_have_their_own_field_names() {
    let row = |of: &str| {
        let text = format!("{LEAST}type = \"{of}\"");
        load(&text, None, &[]).unwrap().config.data.datasets[0].clone()
    };
    assert_eq!(row("sharegpt").field_messages, "conversations");
    assert_eq!(row("chat_template").field_messages, "messages");
    assert_eq!(row("prompt_completion").field_prompt.as_deref(), Some("prompt"));
    assert_eq!(row("completion").field_text, "text");
    assert_eq!(row("chat_template").field_prompt, None);
}

#[test]
fn a_template_file_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.jinja");
    std::fs::write(&path, "{{ messages }}").unwrap();
    let resolved = with(&format!("chat_template = {path:?}"));
    assert_eq!(resolved.config.data.chat_template.as_deref(), Some("{{ messages }}"));
}

#[test]
fn no_prefix_or_cut_of_a_config_crashes() {
    let text = include_str!("../../configs/smollm2-gsm8k.toml");
    let hostile = [
        "",
        "\u{feff}",
        "[",
        "[[",
        "a",
        "a=",
        "[[datasets]]",
        "datasets = 1",
        "datasets = [1]",
        "[datasets]",
        "[cost]\nmachine = [[[[[[1]]]]]]",
        "cost = 3",
        "[[cost]]",
        "a.b.c.d = 1",
        "\0",
        "\"\" = 1",
        "'\\n' = 1",
        "base_model = 1979-05-27",
        "test_datasets = {}",
        "lora_target_modules = [[]]",
        "seed = 0x10",
    ];
    for text in hostile {
        let _ = load(text, Some(MethodFlag::Lora), &[]);
    }
    let characters: Vec<char> = text.chars().collect();
    for end in 0..characters.len() {
        let cut: String = characters[..end].iter().collect();
        let _ = load(&cut, Some(MethodFlag::Lora), &[]);
    }
    for hole in (0..characters.len()).step_by(3) {
        let broken: String = characters[..hole].iter().chain(&characters[hole + 1..]).collect();
        let _ = load(&broken, None, &[]);
    }
    let deep = ["[".repeat(100_000), "a.".repeat(100_000), "a={".repeat(100_000)];
    for text in deep.iter().chain([&format!("x = {}", deep[0])]) {
        assert!(load(text, None, &[]).is_err());
        let _ = load(LEAST, None, &[("seed", text), (text, "1")]);
    }
}

#[test]
fn patterns_keep_their_order_and_come_back_from_the_resolved_config() {
    let text = "rank_pattern = { q_proj = 8, 'layers\\.0\\..*' = 2 }\nalpha_pattern = { 'mlp\\..*' = 3 }";
    let resolved = with(&format!("adapter = \"lora\"\n{text}"));
    let meant = lora(&resolved.config);
    assert_eq!(meant.rank_pattern, [("q_proj".to_owned(), 8), (r"layers\.0\..*".to_owned(), 2)]);
    assert_eq!(meant.alpha_pattern, [(r"mlp\..*".to_owned(), 3.0)]);
    assert_eq!(load(&resolved.toml, None, &[]).unwrap().config, resolved.config);
    let section = format!("adapter = \"lora\"\n{LEAST}\n[rank_pattern]\nq_proj = 8\n");
    let config = load(&section, None, &[]).unwrap().config;
    assert_eq!(lora(&config).rank_pattern, [("q_proj".to_owned(), 8)]);
}

#[test]
fn an_adapter_starts_as_the_config_says() {
    let start = |text: &str| lora(&with(&format!("adapter = \"lora\"\n{text}")).config).init;
    assert_eq!(start(""), LoraInit::Zero);
    assert_eq!(start("init_lora_weights = true"), LoraInit::Zero);
    assert_eq!(start("init_lora_weights = \"pissa\""), LoraInit::Pissa { rounds: None });
    assert_eq!(start("init_lora_weights = \"pissa_niter_4\""), LoraInit::Pissa { rounds: Some(4) });
}
