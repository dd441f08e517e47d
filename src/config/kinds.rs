//! The types that a key's value may have, with their ranges and how both are said.

use super::judge::{Judge, Verdict};
use super::keys::Key;
use super::raw::{Node, Value};
use crate::units::group_thousands;

/// A type with its range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// One line of text.
    Text,
    /// One of these; synonyms become the value behind them.
    Choice { values: &'static [&'static str], synonyms: &'static [(&'static str, &'static str)] },
    /// Where to compute.
    Device,
    /// `true` or `false`.
    Flag,
    /// `true`, `false` or `"auto"`.
    AutoFlag,
    /// An integer.
    Count { min: u64, max: u64 },
    /// An integer or `"auto"`.
    AutoCount { min: u64, max: u64 },
    /// An integer; 3.0 is 3, as other trainers write it.
    Epochs { max: u64 },
    /// A finite number.
    Real(Bounds),
    /// A share below 1 or a whole count.
    HeldOut,
    /// A list of names.
    Names,
    /// A list of texts, lines and all.
    Prompts,
    /// Which modules get an adapter.
    Targets,
    /// A value for each module that a pattern matches: ranks, or numbers above 0.
    Pattern { ranks: bool },
    /// What an adapter starts from.
    Start,
    /// A Jinja template, or the path of a `.jinja` file, which is read.
    Template,
    /// A branch, tag or commit.
    Revision,
    /// A model: folder, file or hub name.
    Model,
    /// A path to read from.
    Path,
    /// The folder that a run writes.
    OutputDir,
    /// Tables with a file each.
    Sources { empty: bool },
}

/// The range of a [`Kind::Real`]; always finite, also in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bounds {
    Positive,
    NotNegative,
    /// [0, 1)
    BelowOne,
    /// [min, max]
    Within {
        min: u32,
        max: u32,
    },
    /// [0, 0.5]
    Half,
}

impl Bounds {
    pub(super) fn hold(self, x: f64) -> bool {
        let size = x.is_finite() && x.abs() <= f64::from(f32::MAX);
        size && match self {
            Self::Positive => x > 0.0,
            Self::NotNegative => x >= 0.0,
            Self::BelowOne => (0.0..1.0).contains(&x),
            Self::Within { min, max } => (f64::from(min)..=f64::from(max)).contains(&x),
            Self::Half => (0.0..=0.5).contains(&x),
        }
    }

    pub(super) fn say(self) -> String {
        match self {
            Self::Positive => "finite and above 0".into(),
            Self::NotNegative => "finite and at least 0".into(),
            Self::BelowOne => "from 0 to below 1".into(),
            Self::Within { min, max } => format!("from {min} to {}", group_thousands(max.into())),
            Self::Half => "from 0 to 0.5".into(),
        }
    }
}

impl Kind {
    /// A choice without synonyms.
    pub(super) const fn one_of(values: &'static [&'static str]) -> Self {
        Self::Choice { values, synonyms: &[] }
    }

    /// Type and range, for the reference and for type errors.
    pub(super) fn say(self) -> String {
        match self {
            Self::Text | Self::Model | Self::Path | Self::OutputDir | Self::Revision => "string".into(),
            Self::Template => "string: a Jinja template or the path of a .jinja file".into(),
            Self::Choice { values, .. } => one_of(values),
            Self::Device => "\"auto\", \"cpu\", \"cuda\" or \"cuda:N\"".into(),
            Self::Flag => "true or false".into(),
            Self::AutoFlag => "true, false or \"auto\"".into(),
            Self::Count { min, max } => format!("integer {}", span(min, max)),
            Self::AutoCount { min, max } => format!("integer {} or \"auto\"", span(min, max)),
            Self::Epochs { max } => format!("integer {}", span(1, max)),
            Self::Real(bounds) => format!("number {}", bounds.say()),
            Self::HeldOut => "number: 0, a share below 1, or a whole count".into(),
            Self::Names | Self::Prompts => "list of strings".into(),
            Self::Targets => "\"all-linear\", a list of strings, or a regular expression".into(),
            Self::Pattern { ranks: true } => "table of patterns, each with an integer from 1".into(),
            Self::Pattern { ranks: false } => "table of patterns, each with a number above 0".into(),
            Self::Start => "true, \"pissa\" or \"pissa_niter_N\" with N from 1".into(),
            Self::Sources { .. } => "table array".into(),
        }
    }

    /// Judges one value; `written` is the key's name in the file.
    pub(super) fn accept(self, key: &Key, written: &str, node: Node) -> Verdict {
        let judge = Judge::new(self, key, written, &node);
        match self {
            Self::Flag if matches!(node.value, Value::Flag(_)) => Ok(Some(node)),
            Self::Flag => judge.refuse_type(&node),
            Self::AutoFlag => judge.auto(node, |v| matches!(v, Value::Flag(_))),
            Self::AutoCount { min, max } if matches!(node.value, Value::Int(_)) => {
                judge.count(node, min, max)
            }
            Self::AutoCount { .. } => judge.auto(node, |_| false),
            Self::Count { min, max } => judge.count(node, min, max),
            Self::Epochs { max } => judge.epochs(node, max),
            Self::Real(bounds) => judge.real(node, bounds),
            Self::HeldOut => judge.held_out(node),
            Self::Device => judge.device(node),
            Self::Names => judge.names(node),
            Self::Prompts => judge.prompts(node),
            Self::Targets => judge.targets(node),
            Self::Pattern { ranks } => judge.pattern(node, ranks),
            Self::Start => judge.start(node),
            Self::Sources { empty } => judge.sources(node, empty),
            Self::Choice { values, synonyms } => judge.choice(node, values, synonyms),
            Self::Template => judge.template(node),
            Self::Text | Self::Model | Self::Path | Self::OutputDir | Self::Revision => judge.line(node),
        }
    }
}

pub(super) fn span(min: u64, max: u64) -> String {
    if max == super::table::MANY {
        format!("at least {min}, at most {max}")
    } else {
        format!("from {min} to {max}")
    }
}

pub(super) fn one_of(values: &[&str]) -> String {
    let quoted: Vec<String> = values.iter().map(|v| format!("\"{v}\"")).collect();
    match quoted.as_slice() {
        [one] => one.clone(),
        [first, second] => format!("{first} or {second}"),
        many => format!("one of {}", many.join(", ")),
    }
}
