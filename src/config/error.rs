//! Why a config is refused: each fact with the action that helps, and the collection of all of them in the order of
//! their places.

use super::keys::{self, Table};
use super::place::{Place, shown};
use crate::error::{Fault, Kind, Problem};
use crate::units::Bytes;

/// Problems that are listed; a broken file would fill the screen otherwise.
const LISTED: usize = 50;

/// One fact that is wrong with a config; its place is put in front.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot be read: {cause}")]
    Unreadable {
        /// In its words.
        cause: String,
    },
    /// A folder, pipe, socket or device: reading it could block for ever.
    #[error("is {what}, not a file")]
    NotAFile {
        /// With its article.
        what: &'static str,
    },
    /// More than a person writes.
    #[error("is longer than {limit}")]
    TooLong {
        /// The most that is read.
        limit: Bytes,
    },
    /// Nothing in it.
    #[error("is empty")]
    Empty,
    /// Another encoding, recognised.
    #[error("is {encoding}, not UTF-8")]
    Encoding {
        /// Its name.
        encoding: &'static str,
    },
    /// Another encoding, not recognised.
    #[error("byte 0x{byte:02x} is not UTF-8")]
    NotUtf8 {
        /// The first byte that cannot be.
        byte: u8,
    },
    /// Not TOML.
    #[error("{what}\n{excerpt}")]
    Syntax {
        /// The parser's words.
        what: String,
        /// The line and a caret.
        excerpt: String,
        /// The text reads like YAML.
        yaml: bool,
    },
    /// No such key.
    #[error("unknown key `{}`", shown(key))]
    UnknownKey {
        /// As written.
        key: String,
        /// Where it stands.
        table: Table,
    },
    /// A key without a default is not there.
    #[error("`{key}` is missing")]
    Missing {
        /// Its name.
        key: &'static str,
        /// What to write.
        example: &'static str,
    },
    /// Another type.
    #[error("`{key}`: expected {expected}, got {found}")]
    Type {
        /// As written.
        key: String,
        /// With the range.
        expected: String,
        /// Type and value.
        found: String,
    },
    /// A value that cannot be meant.
    #[error("`{key}` must be {range}, got {found}")]
    Range {
        /// As written.
        key: String,
        /// What is allowed.
        range: String,
        /// What is there.
        found: String,
        /// Usual values, where they are known.
        tip: &'static str,
    },
    /// A rule that a text breaks.
    #[error("`{key}` {rule}")]
    Rule {
        /// As written.
        key: String,
        /// What is wrong.
        rule: String,
        /// What to do.
        tip: &'static str,
    },
    /// A key and its alias, or a key from two sources of one file.
    #[error("`{first}` and `{second}` are two names of one key")]
    Twice {
        /// The one that stands first.
        first: String,
        /// The other.
        second: String,
    },
    /// Two keys that cannot both hold.
    #[error("{first} contradicts {second}: {why}")]
    Contradiction {
        /// With its value.
        first: String,
        /// With its value.
        second: String,
        /// In a few words.
        why: &'static str,
        /// What to do.
        way_out: &'static str,
    },
    /// A key that has no meaning without another.
    #[error("`{key}` needs {needs}")]
    Needs {
        /// As written.
        key: String,
        /// The other.
        needs: &'static str,
    },
    /// Known, and not there in this edition.
    #[error("{what} is not available yet")]
    NotAvailable {
        /// Key and value.
        what: String,
        /// What to do in its place.
        instead: &'static str,
    },
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hint(&self) -> Option<String> {
        let fixed = match self {
            Self::UnknownKey { key, table } => return Some(keys::advice(*table, key)),
            Self::Missing { example, .. } => return Some(format!("add {example}")),
            Self::Twice { first, .. } => return Some(format!("keep `{first}`, remove the other")),
            Self::Unreadable { .. } => "give the path of a TOML file that you may read",
            Self::NotAFile { .. } => "give the path of a regular file: the run keeps a copy of it",
            Self::TooLong { .. } => "a config holds keys only; data belongs in files of its own",
            Self::Empty => "`base_model`, `output_dir` and one `[[datasets]]` are the least",
            Self::Encoding { .. } | Self::NotUtf8 { .. } => "save the file as UTF-8",
            Self::Syntax { yaml: true, .. } => {
                "this reads like YAML: `fttrain import FILE` turns an Axolotl config into ours"
            }
            Self::Syntax { .. } => "texts stand in quotes, lists in [ ], comments behind #",
            Self::Type { expected, .. } if expected.starts_with("table array") => {
                "write [[datasets]] on a line of its own, then path = \"train.jsonl\" below it"
            }
            Self::Type { expected, found, .. }
                if !expected.contains("string") && found.starts_with("string") =>
            {
                "write the value without quotes"
            }
            Self::Type { expected, .. } if expected.starts_with("string") => "write the value in quotes",
            Self::Type { .. } => return None,
            Self::Range { tip, .. } | Self::Rule { tip, .. } => tip,
            Self::Contradiction { way_out, .. } => way_out,
            Self::Needs { .. } => "add it, or remove the key",
            Self::NotAvailable { instead, .. } => instead,
        };
        (!fixed.is_empty()).then(|| fixed.to_owned())
    }
}

/// All that is wrong with one config.
#[derive(Debug)]
pub(super) struct Problems {
    file: String,
    found: Vec<(Place, Error)>,
    warnings: Vec<(Place, String)>,
}

impl Problems {
    /// None yet; `file` stands in front of every place.
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), found: Vec::new(), warnings: Vec::new() }
    }

    /// Adds one.
    pub(super) fn push(&mut self, place: &Place, error: Error) {
        self.found.push((place.clone(), error));
    }

    /// Adds what is odd, but not wrong.
    pub(super) fn warn(&mut self, place: &Place, warning: String) {
        self.warnings.push((place.clone(), warning));
    }

    /// Whether nothing is wrong so far.
    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// What is odd, sorted by place.
    pub(super) fn into_warnings(mut self) -> Vec<String> {
        self.warnings.sort_by(|a, b| a.0.cmp(&b.0));
        self.warnings.iter().map(|(place, text)| format!("{}: {text}", place.name(&self.file))).collect()
    }

    /// All that is wrong, sorted by place.
    pub(super) fn into_error(mut self) -> crate::error::Error {
        self.found.sort_by(|a, b| a.0.cmp(&b.0));
        let mut problems: Vec<Problem> = self
            .found
            .iter()
            .take(LISTED)
            .map(|(place, error)| Problem {
                message: format!("{}: {error}", place.name(&self.file)),
                hint: error.hint(),
            })
            .collect();
        if let Some(more) = self.found.len().checked_sub(LISTED).filter(|n| *n > 0) {
            problems
                .push(Problem { message: format!("{}: and {more} more problems", self.file), hint: None });
        }
        crate::error::Error { kind: Kind::Usage, problems }
    }
}
