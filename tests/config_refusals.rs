//! What a config must not say, each with its place, its fact and its hint; and files that are no config.

use fttrain::config::{self, MethodFlag};
use fttrain::error::{Error, Kind};
use std::path::Path;

const LEAST: &str = "\
base_model = \"org/name\"
output_dir = \"out\"
[[datasets]]
path = \"train.jsonl\"
";

fn refused(text: &str, flag: Option<MethodFlag>) -> Error {
    match config::parse("a.toml", text, flag, &[]) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(error) => {
            assert_eq!(error.kind, Kind::Usage, "{error}");
            error
        }
    }
}

/// The whole message for one line on top of the least config.
fn message(line: &str) -> String {
    refused(&format!("{line}\n{LEAST}"), Some(MethodFlag::Lora)).to_string()
}

fn behind(lines: &str) -> String {
    refused(&format!("{LEAST}{lines}\n"), Some(MethodFlag::Lora)).to_string()
}

fn set(key: &str, value: &str) -> String {
    let overrides = [(key.to_owned(), value.to_owned())];
    match config::parse("a.toml", LEAST, Some(MethodFlag::Lora), &overrides) {
        Ok(_) => panic!("accepted: {key}={value}"),
        Err(error) => error.to_string(),
    }
}

#[track_caller]
fn contains(text: &str, all: &[&str]) {
    for part in all {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}

#[test]
fn three_errors_at_once_are_all_listed_in_order() {
    let text = "\
base_model = \"org/name\"
lora_r = 0
learning_rat = 1e-4
[[datasets]]
path = \"train.jsonl\"
type = \"csv\"
";
    assert_eq!(
        refused(text, Some(MethodFlag::Lora)).to_string(),
        "error: a.toml:2:10: `lora_r` must be at least 1, at most 4294967295, got 0
  hint: usual values are 8 … 64
error: a.toml:3:1: unknown key `learning_rat`
  hint: did you mean `learning_rate`?
error: a.toml:6:8: `type` must be one of \"chat_template\", \"prompt_completion\", \"completion\", \"alpaca\", \
\"sharegpt\", \"tokenized\", got \"csv\"
error: a.toml: `output_dir` is missing
  hint: add output_dir = \"runs/{run}\""
    );
}

#[test]
fn a_syntax_error_shows_the_line_and_a_caret() {
    let text = "base_model = \"x\"\nlora_r = = 4\n";
    let error = refused(text, None).to_string();
    contains(&error, &["a.toml:2:10: ", "\n 2 | lora_r = = 4\n   |          ^"]);
    assert_eq!(error.matches("error: ").count(), 1, "{error}");
    let error = refused("seed = 1\nseed = 2\nx = [\n", None).to_string();
    contains(&error, &["a.toml:2:1: duplicate key `seed`", "a.toml:3:"]);
}

#[test]
fn yaml_is_recognised() {
    contains(&refused("base_model: org/name\n", None).to_string(), &["fttrain import"]);
    contains(&refused("# axolotl\ndatasets:\n  - path: x\n", None).to_string(), &["fttrain import"]);
}

#[test]
fn numbers_that_cannot_be_meant() {
    for value in ["nan", "inf", "-inf", "0", "0.0", "-1e-4", "1e400", "1e39", "-0.0"] {
        contains(
            &message(&format!("learning_rate = {value}")),
            &["a.toml:1:17: `learning_rate` must be finite and above 0, got ", "usual values"],
        );
    }
    contains(&message("learning_rate = nan"), &["got nan"]);
    contains(&message("learning_rate = 1e400"), &["1e400", "64 bits"]);
    for value in ["0", "-1", "9223372036854775808", "18446744073709551616", "4294967296"] {
        for key in [
            "gradient_accumulation_steps",
            "micro_batch_size",
            "lora_r",
            "max_steps",
            "num_epochs",
            "save_steps",
        ] {
            let line = format!("{key} = {value}");
            contains(&message(&line), &["a.toml:1:", &format!("`{key}` must be"), value]);
        }
    }
    contains(&message("sequence_len = 7"), &["at least 8", "got 7"]);
    contains(&message("lora_alpha = 0"), &["finite and above 0"]);
    contains(&message("lora_dropout = 1"), &["from 0 to below 1"]);
    contains(&message("adam_beta2 = 1.0"), &["from 0 to below 1"]);
    contains(&message("adam_epsilon = 0"), &["above 0"]);
    contains(&message("warmup_ratio = 1.1"), &["from 0 to 1"]);
    contains(&message("weight_decay = -0.1"), &["at least 0"]);
    contains(&message("max_grad_norm = nan"), &["at least 0"]);
    contains(&message("seed = -1"), &["`seed` must be"]);
    contains(&message("threads = 0"), &["`threads`"]);
    for value in ["-1", "1.5", "nan", "-0.1"] {
        contains(&message(&format!("val_set_size = {value}")), &["a share between 0 and 1"]);
    }
    contains(&message("num_epochs = 0.5"), &["whole number", "max_steps"]);
    for (table, line) in [
        ("cost", "usd_per_hour = -1"),
        ("cost", "usd_per_hour = nan"),
        ("cost", "billing_granularity_s = 0"),
        ("budget", "max_usd = 0"),
        ("budget", "max_hours = -2"),
        ("budget", "max_energy_kwh = inf"),
        ("meter", "interval_ms = 9"),
        ("meter", "interval_ms = 60001"),
    ] {
        contains(&behind(&format!("[{table}]\n{line}")), &["a.toml:6:", &format!("`{table}.")]);
    }
    // Every price has a ceiling, so that no bill is infinite.
    for (key, least, most) in [
        ("usd_per_hour", "0", "1,000,000"),
        ("hardware_usd", "0", "1,000,000,000"),
        ("hardware_life_hours", "1", "1,000,000"),
        ("usd_per_kwh", "0", "1,000"),
        ("grid_g_per_kwh", "0", "10,000"),
    ] {
        for value in ["1e308", "1e20", "inf", "nan", "-1"] {
            let said = behind(&format!("[cost]\n{key} = {value}"));
            let range = format!("`cost.{key}` must be from {least} to {most}, got {value}");
            contains(&said, &[&format!("a.toml:6:{}: {range}", key.len() + 4)]);
        }
    }
}

#[test]
fn other_types_are_named() {
    contains(
        &message("gradient_accumulation_steps = \"4\""),
        &[
            "a.toml:1:31: `gradient_accumulation_steps`: expected integer",
            "got string \"4\"",
            "without quotes",
        ],
    );
    contains(&message("lora_r = 4.0"), &["expected integer", "got float 4.0"]);
    contains(&message("shuffle = \"yes\""), &["expected true or false", "got string \"yes\""]);
    contains(&message("bf16 = \"true\""), &["true, false or \"auto\""]);
    contains(&message("revision = 5"), &["expected string, got integer 5", "in quotes"]);
    contains(&message("learning_rate = 1979-05-27"), &["got date 1979-05-27"]);
    contains(&message("roles_to_train = [1]"), &["`roles_to_train[0]`: expected string"]);
    contains(&message("cost = 3"), &["`cost`: expected table, got integer 3"]);
    let text = "base_model = \"m\"\noutput_dir = \"o\"\n[datasets]\npath = \"x\"\n";
    contains(&refused(text, None).to_string(), &["got a table", "[[datasets]]"]);
    let text = "base_model = \"m\"\noutput_dir = \"o\"\ndatasets = [\"x.jsonl\"]\n";
    contains(&refused(text, None).to_string(), &["a.toml:3:13", "datasets[0]", "[[datasets]]"]);
    let text = "base_model = \"m\"\noutput_dir = \"o\"\ndatasets = []\n";
    contains(&refused(text, None).to_string(), &["names no file"]);
}

#[test]
fn unknown_keys_get_the_advice_that_fits() {
    contains(&message("learning_rat = 1"), &["a.toml:1:1: unknown key", "did you mean `learning_rate`?"]);
    contains(&message("usd_per_hour = 1"), &["belongs under [cost]"]);
    contains(&message("field_prompt = \"q\""), &["belongs under [[datasets]]"]);
    contains(&behind("lora_r = 8"), &["a.toml:5:1: unknown key `lora_r`", "above all tables"]);
    contains(&behind("[cost]\nmachin = \"x\""), &["unknown key `cost.machin`", "did you mean `machine`?"]);
    contains(&behind("[costs]\nmachine = \"x\""), &["unknown key `costs`", "did you mean `cost`?"]);
    contains(&message("flash_attention = true"), &["attention", "remove"]);
    contains(&message("wandb_project = \"x\""), &["metrics.jsonl"]);
    contains(&message("special_tokens = {}"), &["tokenizer"]);
    contains(&message("tf32 = true"), &["bf16"]);
    contains(&message("lifecycle = {}"), &["not available yet"]);
    contains(&behind("[lifecycle]\nkeep = 1"), &["[lifecycle] is not available yet"]);
}

#[test]
fn what_is_not_there_yet_is_never_ignored() {
    for line in ["report_to = [\"wandb\"]", "quantization_bit = 8"] {
        contains(&message(line), &["a.toml:1:", "not available yet", "hint: "]);
    }
}

#[test]
fn a_name_and_its_alias_are_two_names_of_one_key() {
    contains(&message("lora_r = 8\nlora_rank = 8"), &["a.toml:2:1: `lora_r` and `lora_rank`"]);
    contains(&message("packing = true\nsample_packing = true"), &["`packing` and `sample_packing`"]);
    contains(
        &message("lora_target_linear = true\nlora_target_modules = [\"q_proj\"]"),
        &["`lora_target_linear` and `lora_target_modules`"],
    );
}

#[test]
fn updates_in_the_backward_pass_need_one_micro_batch_and_no_clipping() {
    let text = format!("optimizer_in_backward = true\ngradient_accumulation_steps = 4\n{LEAST}");
    let error = refused(&text, Some(MethodFlag::Full)).to_string();
    contains(
        &error,
        &[
            "a.toml:1:25: `optimizer_in_backward` = true contradicts `gradient_accumulation_steps` = 4",
            "set gradient_accumulation_steps = 1",
            "contradicts `max_grad_norm` = 1",
            "set max_grad_norm = 0",
        ],
    );
    contains(&message("optimizer = \"adam_mini\""), &["`optimizer` must be one of", "adamw_8bit", "lion"]);
    contains(&message("momentum = 1"), &["`momentum`", "from 0 to below 1"]);
    contains(&message("master_weights = \"fp16\""), &["`master_weights`", "bf16"]);
}

#[test]
fn what_is_not_to_be_forgotten_needs_rows_and_a_start() {
    let error = message("retention_share = 0.1\newc = 5");
    contains(
        &error,
        &[
            "`retention_share` needs rows of what is not to be forgotten: [[retention_datasets]]",
            "`ewc` needs rows",
        ],
    );
    contains(&message("retention_share = 0.6"), &["`retention_share`", "from 0 to 0.5"]);
    contains(&message("l2_sp = -1"), &["`l2_sp`", "finite and at least 0"]);
    let error = message("l2_sp = 0.1\nreinit_weights = true");
    contains(&error, &["`l2_sp` contradicts `reinit_weights` = true", "nothing to hold on to"]);
    let rows = "[[retention_datasets]]\npath = \"old.jsonl\"";
    for keys in ["retention_share = 0.5", "ewc = 5", "l2_sp = 0.1", "retention_share = 0"] {
        let text = format!("{keys}\n{LEAST}\n{rows}\n");
        let config = config::parse("a.toml", &text, Some(MethodFlag::Lora), &[])
            .unwrap_or_else(|e| panic!("{e}"))
            .config;
        assert_eq!(config.data.retention_datasets.len(), 1, "{keys}");
    }
}

#[test]
fn contradictions_name_both_keys() {
    contains(
        &message("warmup_steps = 5\nwarmup_ratio = 0.1"),
        &["a.toml:2:16: `warmup_steps` contradicts `warmup_ratio`"],
    );
    contains(
        &message("warmup_steps = 50\nmax_steps = 10"),
        &["a.toml:1:16: `warmup_steps` = 50 contradicts `max_steps` = 10"],
    );
    contains(
        &behind("[cost]\nmachine = \"aws/x\"\nusd_per_hour = 1"),
        &["`cost.machine` contradicts `cost.usd_per_hour`"],
    );
    contains(
        &message("val_set_size = 5\ntest_datasets = [{ path = \"x\" }]"),
        &["`val_set_size` contradicts `test_datasets`"],
    );
    let four_bits = format!("load_in_4bit = true\n{LEAST}");
    for flag in [None, Some(MethodFlag::Full)] {
        contains(&refused(&four_bits, flag).to_string(), &["`load_in_4bit` = true", "`adapter`"]);
    }
    contains(
        &refused(&four_bits, Some(MethodFlag::Lora)).to_string(),
        &["`load_in_4bit`", "`--lora`", "--qlora"],
    );
    contains(
        &refused(&format!("adapter = \"qlora\"\nload_in_4bit = false\n{LEAST}"), None).to_string(),
        &["`load_in_4bit` = false contradicts `adapter` = \"qlora\""],
    );
    contains(
        &refused(&format!("adapter = \"lora\"\n{LEAST}"), Some(MethodFlag::Full)).to_string(),
        &["`adapter` = \"lora\" contradicts `--full`"],
    );
    contains(
        &refused(&format!("lora_model_dir = \"x\"\n{LEAST}"), None).to_string(),
        &["`lora_model_dir` contradicts full fine-tuning"],
    );
    contains(
        &behind("field_prompt = \"q\"\nfield_completion = \"a\"\nfield_messages = \"m\""),
        &["`field_messages` contradicts `field_prompt`"],
    );
}

#[test]
fn keys_that_need_another_say_which() {
    contains(&message("early_stopping_patience = 2"), &["needs rows to evaluate on", "`val_set_size`"]);
    contains(&message("load_best_model_at_end = true"), &["needs rows to evaluate on"]);
    contains(&behind("field_prompt = \"q\""), &["needs `field_completion`"]);
    contains(&behind("field_completion = \"q\""), &["needs `field_prompt`"]);
    contains(&behind("[[datasets]]\ntype = \"alpaca\""), &["a.toml:5:1: `path` is missing"]);
}

#[test]
fn texts_that_break_a_rule() {
    contains(&message("lora_target_modules = \"(\""), &["a.toml:1:23", "is no regular expression"]);
    contains(&message("lora_target_modules = \"(a{1000}){1000}\""), &["is no regular expression"]);
    contains(&message("lora_target_modules = []"), &["names no module"]);
    contains(&message("lora_target_modules = \"q_proj,v_proj\""), &["no module matches", "a list"]);
    contains(&message("revision = \"../..\""), &["is no revision"]);
    contains(&message("chat_template = \"gemma\""), &["is no Jinja template", "chatml"]);
    contains(&message("chat_template = \"none.jinja\""), &["none.jinja, which cannot be read"]);
    contains(&message("purpose = \"\""), &["is empty"]);
    contains(
        &message("resume_from_checkpoint = \"out/checkpoints\""),
        &["names a checkpoint", "fttrain resume"],
    );
    contains(&behind("split = \"train[5\""), &["is no part of a file"]);
    let folder = |name: &str| refused(&LEAST.replace("\"out\"", name), None).to_string();
    contains(&folder("\"a\\u0000b\""), &["NUL"]);
    contains(&folder(&format!("\"{}\"", "x".repeat(300))), &["255 bytes"]);
    contains(&folder("\"CON\""), &["device on Windows"]);
    contains(&folder("\"out.\""), &["dot"]);
    contains(&folder("\"\""), &["is empty"]);
}

#[test]
fn overrides_are_refused_at_their_own_place() {
    contains(&set("lora_r", "0"), &["error: --set lora_r=0: `lora_r` must be at least 1"]);
    contains(&set("learning_rat", "1"), &["--set learning_rat=1: unknown key", "`learning_rate`"]);
    contains(&set("seed", "abc"), &["--set seed=abc: `seed`: expected integer", "got string \"abc\""]);
    contains(&set("cost.machin", "x"), &["--set cost.machin=x: unknown key `cost.machin`", "`machine`"]);
    contains(&set("datasets.7.path", "x"), &["--set datasets.7.path=x", "a row from 0 to 1"]);
    contains(&set("datasets.x.path", "x"), &["a row from 0 to 1"]);
    contains(&set("a.b.c", "x"), &["unknown key `a.b.c`"]);
    contains(&set("", "x"), &["unknown key ``"]);
    contains(&set("adapter", "full"), &["--set adapter=full", "`--lora`"]);
}

#[test]
fn secrets_are_never_repeated() {
    let secret = "hf_abcdefghijklmnop";
    for text in [
        message(&format!("hf_token = \"{secret}\"")),
        message(&format!("revision = \"{secret}?\"")),
        refused(&format!("hf_token = \"{secret}\nx = 1"), None).to_string(),
        set("hub_token", secret),
        set("revision", &format!("{secret}?")),
        message("mlflow_tracking_uri = \"http://user:abcdefghijklmnop@host\""),
    ] {
        assert!(!text.contains("abcdefghijklmnop"), "{text}");
    }
    contains(&message("hf_token = \"x\""), &["HF_TOKEN"]);
}

#[test]
fn a_file_with_a_thousand_faults_stays_readable() {
    let text: String = (0..1000).fold(String::new(), |text, i| text + &format!("key_{i} = 1\n"));
    let error = refused(&text, None);
    assert!(error.problems.len() < 100, "{}", error.problems.len());
    contains(&error.to_string(), &["more problems"]);
}

fn load(path: &Path) -> String {
    let error = config::load(path, Some(MethodFlag::Lora), &[]).unwrap_err();
    assert_eq!(error.kind, Kind::Usage);
    error.to_string()
}

#[test]
fn files_that_are_no_config() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    contains(&load(folder.path()), &["is a folder, not a file"]);
    contains(&load(&folder.path().join("none.toml")), &["none.toml: cannot be read"]);
    contains(&load(&file("empty.toml", b"")), &["is empty"]);
    contains(&load(&file("comment.toml", b"# nothing\n")), &["`base_model`", "`output_dir`", "`datasets`"]);
    contains(&load(&file("long.toml", &vec![b'#'; (1 << 20) + 1])), &["is longer than 1.0 MiB"]);
    let utf16: Vec<u8> = LEAST.encode_utf16().flat_map(u16::to_le_bytes).collect();
    contains(&load(&file("utf16.toml", &utf16)), &["is UTF-16 (little endian)", "UTF-8"]);
    contains(&load(&file("utf16bom.toml", &[b"\xfe\xff".as_slice(), b"\0a"].concat())), &["big endian"]);
    contains(
        &load(&file("latin1.toml", b"x = 1\ny = \"caf\xe9\"\n")),
        &["latin1.toml:2:9: byte 0xe9 is not UTF-8"],
    );
    let with_mark = file("bom.toml", format!("\u{feff}{LEAST}").as_bytes());
    assert!(config::load(&with_mark, Some(MethodFlag::Lora), &[]).is_ok());
    let exact = file("exact.toml", format!("{LEAST}{}", "#".repeat((1 << 20) - LEAST.len())).as_bytes());
    assert!(config::load(&exact, Some(MethodFlag::Lora), &[]).is_ok());
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.toml");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    contains(&load(&pipe), &["is a pipe (FIFO), not a file"]);
    contains(&load(Path::new("/dev/zero")), &["is a device, not a file"]);
}

#[test]
fn patterns_and_starts_that_cannot_be_meant_are_refused() {
    contains(&message("rank_pattern = { q_proj = 0 }"), &["a.toml:1:27: `rank_pattern.q_proj`", "got 0"]);
    contains(&message("rank_pattern = { \"(\" = 2 }"), &["`rank_pattern.(` is no regular expression"]);
    contains(&message("alpha_pattern = { q_proj = -1 }"), &["`alpha_pattern.q_proj`", "above 0"]);
    contains(&message("rank_pattern = 8"), &["expected table of patterns"]);
    contains(&message("init_lora_weights = \"olora\""), &["`init_lora_weights` must be true, \"pissa\""]);
    contains(&message("init_lora_weights = false"), &["`init_lora_weights` must be"]);
    contains(
        &message("adapter = \"lora\"\nlora_model_dir = \"a\"\ninit_lora_weights = \"pissa\""),
        &["`init_lora_weights` contradicts `lora_model_dir`"],
    );
    contains(&message("adapter = \"qlora\"\ninit_lora_weights = \"pissa\""), &["contradicts QLoRA"]);
}

#[test]
fn updates_in_the_backward_pass_name_both_keys_that_stand_in_their_way() {
    let text = message("optimizer_in_backward = true\ngradient_accumulation_steps = 2");
    contains(&text, &["contradicts `gradient_accumulation_steps` = 2", "contradicts `max_grad_norm` = 1"]);
    contains(
        &message("optimizer = \"adamw_4bit\""),
        &["`optimizer` must be one of \"adamw\", \"adamw_8bit\""],
    );
}
