//! Which method a run uses, from the flag, `adapter` and `load_in_4bit`, and what the method makes of other keys.

use super::error::Problems;
use super::judge::pissa_rounds;
use super::keys::{self, Preset, Table};
use super::place::Place;
use super::raw::Value;
use super::section::{Origin, Section};
use super::{Error, Lora, LoraInit, Method, Targets};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// The flag in front of the config on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MethodFlag {
    /// `--lora`
    Lora,
    /// `--qlora`
    Qlora,
    /// `--full`
    Full,
}

impl MethodFlag {
    /// The value of `adapter`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Qlora => "qlora",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for MethodFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}", self.name())
    }
}

/// Keys that say something about an adapter only.
const ADAPTER_KEYS: [&str; 12] = [
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "init_lora_weights",
    "loraplus_lr_ratio",
    "lora_modules_to_save",
    "lora_model_dir",
];

/// Keys that an adapter's folder answers where the config says nothing.
const FROM_THE_ADAPTER: [&str; 6] =
    ["lora_r", "lora_alpha", "lora_target_modules", "use_rslora", "use_dora", "init_lora_weights"];

/// Decides the method and settles every key that depends on it.
pub(super) fn settle(top: &mut Section, flag: Option<MethodFlag>, problems: &mut Problems) -> MethodFlag {
    let method = decide(top, flag, problems);
    check_four_bits(top, method, flag, problems);
    if method == MethodFlag::Full {
        without_adapter(top, problems);
    } else if top.get("lora_model_dir").is_some() {
        forget_defaults(top, &FROM_THE_ADAPTER);
    }
    if method != MethodFlag::Qlora {
        forget_defaults(top, &["bnb_4bit_use_double_quant"]);
    }
    method
}

fn decide(top: &mut Section, flag: Option<MethodFlag>, problems: &mut Problems) -> MethodFlag {
    let Some(setting) = top.any("adapter").cloned() else {
        let (method, origin) = match flag {
            Some(flag) => (flag, Origin::Flag(flag)),
            None => (MethodFlag::Full, Origin::Default),
        };
        top.put("adapter", &format!("\"{}\"", method.name()), origin);
        return method;
    };
    // LLaMA-Factory names the method `lora` whatever the base, and the bits apart.
    let four_bits = top.flag("load_in_4bit") == Some(true);
    let named = match top.text("adapter") {
        Some("lora") if four_bits && setting.written == "finetuning_type" => MethodFlag::Qlora,
        Some("lora") => MethodFlag::Lora,
        Some("qlora") => MethodFlag::Qlora,
        Some(_) => MethodFlag::Full,
        // Refused already.
        None => return flag.unwrap_or(MethodFlag::Lora),
    };
    if let Some(flag) = flag.filter(|flag| *flag != named) {
        let error = Error::Contradiction {
            first: format!("`{}` = \"{}\"", setting.written, named.name()),
            second: format!("`{flag}`"),
            why: "they name two methods",
            way_out: "use the flag that fits the config, or leave the key out: the flag then sets it",
        };
        problems.push(&setting.node.place, error);
    }
    if top.text("adapter") != Some(named.name()) {
        let value = format!("\"{}\"", named.name());
        top.put("adapter", &value, Origin::From("quantization_bit"));
    }
    named
}

/// What decided the method, as a message names it.
fn source_of(top: &Section, flag: Option<MethodFlag>, method: MethodFlag) -> String {
    match (top.written("adapter"), flag) {
        (Some(setting), _) => format!("`{}` = \"{}\"", setting.written, method.name()),
        (None, Some(flag)) => format!("`{flag}` (`adapter` is \"{}\")", method.name()),
        (None, None) => "full fine-tuning (no `adapter`)".to_owned(),
    }
}

fn check_four_bits(top: &mut Section, method: MethodFlag, flag: Option<MethodFlag>, problems: &mut Problems) {
    let Some(setting) = top.written("load_in_4bit") else {
        if method == MethodFlag::Qlora {
            let origin = flag.map_or(Origin::From("adapter"), Origin::Flag);
            top.put("load_in_4bit", "true", origin);
        }
        return;
    };
    let four_bits = top.flag("load_in_4bit") == Some(true);
    let (why, way_out) = match (method, four_bits) {
        (MethodFlag::Full, true) => (
            "4-bit weights cannot be trained",
            "adapter = \"qlora\" trains an adapter on the 4-bit base; else remove `load_in_4bit`",
        ),
        (MethodFlag::Lora, true) => (
            "LoRA keeps the base in 16 or 32 bits",
            "use adapter = \"qlora\" (`--qlora`), or remove `load_in_4bit`",
        ),
        (MethodFlag::Qlora, false) => (
            "QLoRA is an adapter on a 4-bit base",
            "remove `load_in_4bit`, or use adapter = \"lora\" (`--lora`)",
        ),
        _ => return,
    };
    let error = Error::Contradiction {
        first: format!("`{}` = {four_bits}", setting.written),
        second: source_of(top, flag, method),
        why,
        way_out,
    };
    problems.push(&setting.node.place.clone(), error);
}

fn without_adapter(top: &mut Section, problems: &mut Problems) {
    if let Some(setting) = top.written("lora_model_dir") {
        let error = Error::Contradiction {
            first: format!("`{}`", setting.written),
            second: "full fine-tuning".to_owned(),
            why: "an adapter is continued with `adapter`",
            way_out: "merge it first (`fttrain merge`), or set adapter = \"lora\"",
        };
        problems.push(&setting.node.place, error);
    }
    for name in ADAPTER_KEYS {
        if let Some(setting) = top.written(name) {
            problems.warn(
                &setting.node.place,
                format!("`{}` has no effect: without an adapter every weight is trained", setting.written),
            );
        }
    }
    forget_defaults(top, &ADAPTER_KEYS);
    if top.written("learning_rate").is_none() && top.get("learning_rate").is_some() {
        let key = keys::find(Table::Top, "learning_rate");
        if let Some(Preset::ByMethod { full, .. }) = key.map(|(key, _)| key.preset) {
            top.put("learning_rate", full, Origin::Default);
        }
    }
}

fn forget_defaults(top: &mut Section, names: &[&str]) {
    for name in names {
        if top.any(name).is_some_and(|s| !s.is_written()) {
            top.remove(name);
        }
    }
}

/// The method with its settings.
pub(super) fn meant(top: &Section, method: MethodFlag, problems: &mut Problems) -> Method {
    let init = start(top);
    if let (Some(setting), LoraInit::Pissa { .. }) = (top.get("init_lora_weights"), init) {
        let beside = match (top.any("lora_model_dir"), method) {
            (Some(dir), _) => {
                Some((format!("`{}`", dir.written), "a continued adapter starts from its own values"))
            }
            (None, MethodFlag::Qlora) => Some((
                "QLoRA".to_owned(),
                "PiSSA takes its part out of the base, and a base quantised without it is another one",
            )),
            _ => None,
        };
        if let Some((second, why)) = beside {
            let first = format!("`{}`", setting.written);
            let error = Error::Contradiction { first, second, why, way_out: "remove `init_lora_weights`" };
            problems.push(&setting.node.place, error);
        }
    }
    let lora = || Lora {
        r: top.size("lora_r"),
        alpha: top.real("lora_alpha"),
        dropout: top.real("lora_dropout").unwrap_or_default(),
        targets: targets(top),
        rslora: top.flag("use_rslora"),
        dora: top.flag("use_dora"),
        rank_pattern: top.members("rank_pattern", |value| match value {
            Value::Int(r) => usize::try_from(*r).ok(),
            _ => None,
        }),
        alpha_pattern: top.members("alpha_pattern", |value| match value {
            Value::Real(alpha) => Some(*alpha),
            _ => None,
        }),
        init,
        modules_to_save: top.texts("lora_modules_to_save").unwrap_or_default(),
        model_dir: top.text("lora_model_dir").map(PathBuf::from),
    };
    match method {
        MethodFlag::Full => Method::Full,
        MethodFlag::Lora => Method::Lora(lora()),
        MethodFlag::Qlora => Method::Qlora {
            lora: lora(),
            double_quant: top.flag("bnb_4bit_use_double_quant").unwrap_or(true),
        },
    }
}

fn start(top: &Section) -> LoraInit {
    match top.text("init_lora_weights") {
        Some("pissa") => LoraInit::Pissa { rounds: None },
        Some(text) => LoraInit::Pissa { rounds: pissa_rounds(text) },
        None => LoraInit::Zero,
    }
}

fn targets(top: &Section) -> Option<Targets> {
    match (top.texts("lora_target_modules"), top.text("lora_target_modules")) {
        (Some(names), _) => Some(Targets::Names(names)),
        (None, Some("all-linear")) => Some(Targets::AllLinear),
        (None, Some(regex)) => Some(Targets::Regex(regex.to_owned())),
        (None, None) => None,
    }
}

/// The place of a key's value, or of the file.
pub(super) fn place_of(top: &Section, name: &str) -> Place {
    top.any(name).map_or(Place::File, |setting| setting.node.place.clone())
}
