//! Places in a config, and how its text is quoted in a message: short, on one line, without secrets.

use std::ops::Range;

/// Characters of a user's text that a message repeats.
const SHOWN: usize = 60;

/// Where something stands. The order is the order in which problems are listed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// In the file, both from 1, the column in characters.
    At { line: usize, column: usize },
    /// The file as a whole.
    File,
    /// On the command line: the n-th `--set`, already fit to be shown.
    Set { nth: usize, text: String },
}

impl Place {
    /// As it stands in front of a message.
    pub(super) fn name(&self, file: &str) -> String {
        match self {
            Self::At { line, column } => format!("{file}:{line}:{column}"),
            Self::File => file.to_owned(),
            Self::Set { text, .. } => text.clone(),
        }
    }

    /// The place of the n-th override.
    pub(super) fn set(nth: usize, key: &str, value: &str) -> Self {
        let secret = ["token", "secret", "password", "api_key"]
            .iter()
            .any(|word| key.to_ascii_lowercase().contains(word));
        let value = if secret { "…" } else { value };
        Self::Set { nth, text: format!("--set {}={}", shown(key), shown(value)) }
    }
}

/// The start of every line of a text: offsets become places.
#[derive(Debug)]
pub(super) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    /// Finds the lines.
    pub(super) fn of(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    fn line_of(&self, offset: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= offset).max(1);
        (line, self.starts.get(line - 1).copied().unwrap_or(0))
    }

    /// The place of a byte offset.
    pub(super) fn place(&self, offset: usize) -> Place {
        let (line, start) = self.line_of(offset);
        let before = self.text.get(start..offset).unwrap_or("");
        Place::At { line, column: before.chars().count() + 1 }
    }

    /// The line around a span with a caret below its start, cut to what fits a screen.
    pub(super) fn excerpt(&self, span: &Range<usize>) -> String {
        let (line, start) = self.line_of(span.start);
        let rest = self.text.get(start..).unwrap_or("");
        let whole = rest.split('\n').next().unwrap_or("").trim_end_matches('\r');
        let column = self.text.get(start..span.start).unwrap_or("").chars().count();
        let from = column.saturating_sub(SHOWN);
        let part: String =
            whole.chars().skip(from).take(2 * SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
        let gutter = line.to_string();
        let margin = " ".repeat(gutter.len());
        let indent = " ".repeat(column - from);
        format!(" {margin} |\n {gutter} | {}\n {margin} | {indent}^", without_secrets(&part))
    }
}

/// A user's text in a message: one line, cut, secrets blotted out.
pub(super) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        short.push('…');
    }
    // Quotes need no backslash where the text stands between others.
    without_secrets(&short.replace("\\'", "'").replace("\\\"", "\""))
}

/// Blots out what looks like a Hugging Face token (`hf_` and at least eight letters or digits), character for
/// character, so that carets keep their place.
pub(super) fn without_secrets(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("hf_") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let length = after.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(after.len());
        let (word, behind) = after.split_at(length);
        if length >= 8 {
            out.push_str(&"*".repeat(length));
        } else {
            out.push_str(word);
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_from_one() {
        let lines = Lines::of("a = 1\nü = [\n");
        assert_eq!(lines.place(0), Place::At { line: 1, column: 1 });
        assert_eq!(lines.place(9), Place::At { line: 2, column: 3 });
        assert_eq!(lines.place(999), Place::At { line: 3, column: 1 });
    }

    #[test]
    fn the_caret_stands_below_the_fault() {
        let lines = Lines::of("x = 1\nlearning_rate = = 2\n");
        assert_eq!(lines.excerpt(&(22..23)), "   |\n 2 | learning_rate = = 2\n   |                 ^");
    }

    #[test]
    fn a_very_long_line_is_cut_around_the_fault() {
        let text = "x".repeat(100_000);
        let excerpt = Lines::of(&text).excerpt(&(50_000..50_001));
        assert!(excerpt.len() < 400, "{}", excerpt.len());
    }

    #[test]
    fn tokens_are_blotted_out() {
        assert_eq!(shown("hf_abcdefghij!"), "hf_**********!");
        assert_eq!(shown("hf_hub"), "hf_hub");
        let set = Place::set(0, "hub_token", "abc");
        assert_eq!(set.name("f"), "--set hub_token=…");
    }
}
