//! `[[datasets]]`, `[[test_datasets]]` and `[[retention_datasets]]`: one file of rows each, and which of its fields say something.

use super::error::Problems;
use super::place::shown;
use super::section::Section;
use super::{Error, Format, Source};
use std::path::PathBuf;

/// One file of rows.
pub(super) fn meant(row: &mut Section, problems: &mut Problems) -> Source {
    let format = format_of(row.text("type").unwrap_or_default());
    check_pair(row, format, problems);
    check_split(row, problems);
    warn_of_idle_fields(row, format, problems);
    let text = |name: &str| row.text(name).map(str::to_owned);
    let paired = |name: &str, default: &str| match format {
        Format::PromptCompletion => text(name).or_else(|| Some(default.to_owned())),
        _ => text(name),
    };
    let messages = match format {
        Format::Sharegpt => "conversations",
        _ => "messages",
    };
    Source {
        path: text("path").map(PathBuf::from).unwrap_or_default(),
        format,
        split: text("split"),
        field_messages: text("field_messages").unwrap_or_else(|| messages.to_owned()),
        field_prompt: paired("field_prompt", "prompt"),
        field_completion: paired("field_completion", "completion"),
        field_text: text("field").unwrap_or_default(),
        field_system: text("field_system"),
    }
}

fn format_of(name: &str) -> Format {
    match name {
        "prompt_completion" => Format::PromptCompletion,
        "completion" => Format::Completion,
        "alpaca" => Format::Alpaca,
        "sharegpt" => Format::Sharegpt,
        "tokenized" => Format::Tokenized,
        _ => Format::ChatTemplate,
    }
}

fn check_pair(row: &Section, format: Format, problems: &mut Problems) {
    let (prompt, completion) = (row.any("field_prompt"), row.any("field_completion"));
    match (prompt, completion) {
        (Some(one), None) => problems.push(
            &one.node.place,
            Error::Needs { key: one.written.clone(), needs: "`field_completion` beside it" },
        ),
        (None, Some(one)) => problems.push(
            &one.node.place,
            Error::Needs { key: one.written.clone(), needs: "`field_prompt` beside it" },
        ),
        _ => {}
    }
    if let (Format::ChatTemplate, Some(messages), Some(prompt)) = (format, row.any("field_messages"), prompt)
    {
        let error = Error::Contradiction {
            first: format!("`{}`", messages.written),
            second: format!("`{}`", prompt.written),
            why: "a row is a list of messages or a pair",
            way_out: "keep one of them",
        };
        problems.push(&messages.node.place, error);
    }
}

/// `name`, `name[:N]`, `name[N:]` or `name[N:M]`; N and M are rows or percent.
fn check_split(row: &Section, problems: &mut Problems) {
    let Some(setting) = row.get("split") else {
        return;
    };
    let text = row.text("split").unwrap_or_default();
    if !is_split(text) {
        let error = Error::Rule {
            key: setting.written.clone(),
            rule: format!("is no part of a file: \"{}\"", shown(text)),
            tip: "write train, train[:1000], train[1000:], train[10%:90%]",
        };
        problems.push(&setting.node.place, error);
    }
}

fn is_split(text: &str) -> bool {
    let name =
        |n: &str| !n.is_empty() && n.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let Some((head, slice)) = text.split_once('[') else {
        return name(text);
    };
    let Some((from, to)) = slice.strip_suffix(']').and_then(|s| s.split_once(':')) else {
        return false;
    };
    let rising = match (bound(from), bound(to)) {
        (Some(Bound::Rows(a)), Some(Bound::Rows(b))) | (Some(Bound::Percent(a)), Some(Bound::Percent(b))) => {
            a < b
        }
        (Some(_), Some(_)) => true,
        _ => false,
    };
    name(head) && rising
}

enum Bound {
    Open,
    Rows(u64),
    Percent(u64),
}

fn bound(text: &str) -> Option<Bound> {
    if text.is_empty() {
        return Some(Bound::Open);
    }
    let (digits, percent) = match text.strip_suffix('%') {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    if !percent {
        return Some(Bound::Rows(n));
    }
    (n <= 100).then_some(Bound::Percent(n))
}

/// A field that its format never reads is a mistake that would go unseen.
fn warn_of_idle_fields(row: &Section, format: Format, problems: &mut Problems) {
    let idle: &[&str] = match format {
        Format::ChatTemplate => &["field"],
        Format::PromptCompletion | Format::Alpaca => &["field_messages", "field", "field_system"],
        Format::Completion => &["field_messages", "field_prompt", "field_completion", "field_system"],
        Format::Sharegpt => &["field_prompt", "field_completion", "field"],
        Format::Tokenized => &["field_messages", "field_prompt", "field_completion", "field", "field_system"],
    };
    for name in idle {
        if let Some(setting) = row.changed(name) {
            let of = row.text("type").unwrap_or_default();
            problems.warn(
                &setting.node.place,
                format!("`{}` has no effect with type = \"{of}\"", setting.written),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_parts_of_a_file() {
        for good in [
            "train",
            "train[:100]",
            "train[100:]",
            "train[10:20]",
            "train[:10%]",
            "train[10%:90%]",
            "train[5:10%]",
        ] {
            assert!(is_split(good), "{good}");
        }
        for bad in [
            "",
            "train[",
            "train[]",
            "train[:]x",
            "train[a:b]",
            "train[-5:]",
            "train[20:10]",
            "train[:101%]",
            "train[:+5]",
            "../x",
        ] {
            assert!(!is_split(bad), "{bad}");
        }
    }
}
