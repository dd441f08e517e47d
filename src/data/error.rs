//! What can be wrong with data, tokenizers and templates: of a row, and of a dataset as a whole.

use crate::error::{Fault, Kind};
use std::path::PathBuf;

/// What is wrong with one row; its place is added by whoever knows the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowFault {
    /// The line passes `max_line_bytes`.
    #[error("the line is longer than `max_line_bytes` = {limit}")]
    LineTooLong {
        /// The cap, bytes.
        limit: u64,
    },
    /// Bytes that are not UTF-8.
    #[error("invalid UTF-8 at byte {at} of the line, byte {offset} of the file")]
    Utf8 {
        /// From the start of the line, 0 the first.
        at: usize,
        /// From the start of the file.
        offset: u64,
    },
    /// Not JSON.
    #[error("{message}")]
    Json {
        /// The parser's words, without the place.
        message: String,
        /// Byte of the line, 1 the first.
        column: usize,
    },
    /// Some other JSON value than an object.
    #[error("a row must be an object, found {found}")]
    NotAnObject {
        /// JSON type.
        found: &'static str,
    },
    /// A field that the format needs.
    #[error("field `{field}` is missing{shapes}")]
    Missing {
        /// Its path inside the row.
        field: String,
        /// The fields that are there, and those of the first row.
        shapes: String,
    },
    /// A field of another type.
    #[error("field `{field}` must be {expected}, found {found}")]
    WrongType {
        /// Its path inside the row.
        field: String,
        /// JSON type wanted.
        expected: &'static str,
        /// JSON type found.
        found: &'static str,
    },
    /// A field whose value cannot be used.
    #[error("field `{field}` {wrong}")]
    Value {
        /// Its path inside the row.
        field: String,
        /// What is wrong with the value.
        wrong: String,
    },
    /// The template refused the row, or cannot be run.
    #[error("chat template: {0}")]
    Template(String),
    /// The rendered text does not show where the messages lie.
    #[error("the chat template {0}: which tokens to count cannot be told")]
    Unplaced(String),
    /// The tokenizer failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// Longer than `sequence_len`, with `excess_length_strategy = "raise"`.
    #[error("the row has {tokens} tokens, `sequence_len` is {limit}")]
    TooLong {
        /// `N`, or `more than N` where it was not worth counting.
        tokens: String,
        /// `sequence_len`.
        limit: usize,
    },
}

impl RowFault {
    /// The name under which rows are counted when they are skipped.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::LineTooLong { .. } => "line too long",
            Self::Utf8 { .. } => "invalid UTF-8",
            Self::Json { .. } => "invalid JSON",
            Self::NotAnObject { .. } => "not an object",
            Self::Missing { .. } => "missing field",
            Self::WrongType { .. } => "wrong type",
            Self::Value { .. } => "bad value",
            Self::Template(_) => "refused by the chat template",
            Self::Unplaced(_) => "changed by the chat template",
            Self::Tokenizer(_) => "refused by the tokenizer",
            Self::TooLong { .. } => "too long",
        }
    }

    /// Byte of the line, 1 the first, where one is known.
    pub fn column(&self) -> Option<usize> {
        match self {
            Self::Json { column, .. } => Some(*column),
            Self::Utf8 { at, .. } => Some(at + 1),
            _ => None,
        }
    }
}

impl Fault for RowFault {
    fn kind(&self) -> Kind {
        match self {
            Self::Template(_) | Self::Tokenizer(_) => Kind::Model,
            _ => Kind::Data,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::LineTooLong { .. } => "split the row, or raise `max_line_bytes`".into(),
            Self::Utf8 { at: 0, offset: 0 } => {
                "save the file as UTF-8; UTF-16 and packed files are not read".into()
            }
            Self::NotAnObject { found: "array" } => {
                "write one object a line (JSON Lines), not one array".into()
            }
            Self::Missing { .. } | Self::WrongType { .. } => {
                "check `type` and the `field_*` keys of the dataset, or leave such rows out with \
                 `on_bad_row = \"skip\"`"
                    .into()
            }
            Self::Unplaced(_) => {
                "set `train_on_inputs = true`, give another `chat_template`, or leave such rows out with \
                 `on_bad_row = \"skip\"`"
                    .into()
            }
            Self::TooLong { .. } => {
                "raise `sequence_len`, or set `excess_length_strategy` to \"drop\" or \"truncate\"".into()
            }
            _ => "correct the row, or leave such rows out with `on_bad_row = \"skip\"`".into(),
        })
    }
}

/// What is wrong with a file, a dataset or a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened or read.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A file is another one than when the run looked first.
    #[error("{}: the file changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A row from which no question can be made.
    #[error("{}:{line}: a {format} row has no prompt before an answer", path.display())]
    NoAnswer {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// Of the row.
        format: &'static str,
    },
    /// `split` is not understood.
    #[error("`split = \"{0}\"` is not understood")]
    Split(String),
    /// There is nothing to learn from.
    #[error("{}: no rows are left{reasons}", path.display())]
    NoRows {
        /// The file.
        path: PathBuf,
        /// ` of N: counts by reason`.
        reasons: String,
    },
    /// More than the tolerated share is longer than `sequence_len`.
    #[error(
        "{}: {dropped} of {rows} rows ({share:.1} %) are longer than `sequence_len` = {limit} and would be dropped",
        path.display()
    )]
    TooManyDropped {
        /// The file.
        path: PathBuf,
        /// Rows over the limit.
        dropped: u64,
        /// Rows in all.
        rows: u64,
        /// dropped / rows, per cent.
        share: f64,
        /// `sequence_len`.
        limit: usize,
        /// Length that would keep all but 5 %; `None` = not counted.
        keeps: Option<u64>,
    },
    /// No target of the dataset ends a text.
    #[error("{}: no counted token ends a turn or a text, so the model would never learn to stop", path.display())]
    NeverStops {
        /// The file.
        path: PathBuf,
        /// Share of rows that were cut, per cent.
        truncated: f64,
    },
    /// The held-out part leaves nothing.
    #[error("`val_set_size` holds out {held_out} of {rows} rows and leaves none to train on")]
    ValSet {
        /// Rows wanted.
        held_out: usize,
        /// Rows there are.
        rows: usize,
    },
    /// A retention set that has no two halves.
    #[error("the retention set has {rows} rows: half of them are judged, the other half is kept")]
    Retention {
        /// Rows there are.
        rows: usize,
    },
    /// A tokenizer, template or vocabulary that cannot be used.
    #[error("{place}: {fact}")]
    Tokenizer {
        /// File, or what stands in for it.
        place: String,
        /// The fact.
        fact: String,
        /// What to do.
        hint: &'static str,
    },
    /// The format needs a template and there is none.
    #[error("the base model has no chat template, and the data is `type = \"{format}\"`")]
    NoTemplate {
        /// The dataset's type.
        format: &'static str,
    },
    /// A step that the plan does not hold.
    #[error("step {step} of a plan of {steps} steps")]
    NoSuchStep {
        /// Asked for, from 0.
        step: u64,
        /// There are.
        steps: u64,
    },
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Split(_) => Kind::Usage,
            Self::Tokenizer { .. } | Self::NoTemplate { .. } => Kind::Model,
            Self::NoSuchStep { .. } => Kind::Bug,
            _ => Kind::Data,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::File { hint, .. } => return hint.clone(),
            Self::Changed { .. } => "start again when nobody writes to it".into(),
            Self::NoAnswer { .. } => {
                "exact match needs rows with a prompt and an answer: chat_template, sharegpt, prompt_completion or alpaca"
                    .into()
            }
            Self::Split(_) => {
                "write `train`, `train[:100]`, `train[100:]` or `train[10%:20%]`; a local file is one split".into()
            }
            Self::NoRows { .. } => "look at the rows named above and at `split`".into(),
            Self::TooManyDropped { keeps, .. } => match keeps {
                Some(tokens) => format!(
                    "`sequence_len = {tokens}` would keep 95 %; or set `excess_length_strategy = \"truncate\"`"
                ),
                None => "raise `sequence_len`, or set `excess_length_strategy = \"truncate\"`".into(),
            },
            Self::NeverStops { truncated, .. } if *truncated > 0.0 => format!(
                "{truncated:.0} % of the rows were cut: raise `sequence_len`"
            ),
            Self::NeverStops { .. } => {
                "the template must put an end-of-turn token behind an assistant turn, and `train_on_eos` must not be \
                 \"none\""
                    .into()
            }
            Self::ValSet { .. } => "lower `val_set_size`, or name `[[test_datasets]]`".into(),
            Self::Retention { .. } => "give at least two rows".into(),
            Self::Tokenizer { hint, .. } => (*hint).into(),
            Self::NoTemplate { .. } => {
                "set `chat_template` to a .jinja file or to \"chatml\", or use `type = \"prompt_completion\"`".into()
            }
            Self::NoSuchStep { .. } => return None,
        })
    }
}
