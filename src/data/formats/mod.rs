//! What a row is: one file a kind of row, each from the line's fields to what is tokenised. Knows nothing of files.

mod chat;
mod counted;
mod encode;
mod text;
mod tokenized;

pub(super) use encode::{Encoder, Outcome, TOO_LONG};
pub use text::alpaca_prompt;

use super::Message;
use super::error::RowFault;
use super::json::{self, Cell};
use crate::config::{Format, Source};

/// A row that was read and is not tokenised yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Row {
    /// Rendered with the chat template.
    Chat(Vec<Message>),
    /// Two texts end to end; only the second is counted.
    Pair { prompt: String, completion: String },
    /// A text that is cut into windows.
    Text(String),
    /// Ready as it is.
    Ids { ids: Vec<i64>, labels: Vec<i64> },
}

/// The name of a format in a config.
pub(super) fn name(format: Format) -> &'static str {
    match format {
        Format::ChatTemplate => "chat_template",
        Format::PromptCompletion => "prompt_completion",
        Format::Completion => "completion",
        Format::Alpaca => "alpaca",
        Format::Sharegpt => "sharegpt",
        Format::Tokenized => "tokenized",
    }
}

/// Reads a line as the source says.
///
/// # Errors
/// The line is not a row of this format.
pub(super) fn parse(source: &Source, line: &str) -> Result<Row, RowFault> {
    let row = match source.format {
        Format::ChatTemplate if chat::is_built(source) => chat::built(source, line),
        Format::ChatTemplate => chat::messages(source, line),
        Format::Sharegpt => chat::sharegpt(source, line),
        Format::PromptCompletion => text::pair(source, line),
        Format::Completion => text::plain(source, line),
        Format::Alpaca => text::alpaca(source, line),
        Format::Tokenized => tokenized::ids(line),
    };
    row.map_err(|fault| match fault {
        RowFault::Missing { field, .. } => {
            RowFault::Missing { field, shapes: format!("; the row has {}", json::keys(line)) }
        }
        other => other,
    })
}

/// A text field that must be there.
fn text(field: &str, cell: Option<Cell>) -> Result<String, RowFault> {
    match cell {
        Some(Cell::Text(text)) => Ok(text),
        Some(other) => Err(wrong(field, "a string", other.kind())),
        None => Err(missing(field)),
    }
}

/// A text field that may be missing or null.
fn optional_text(field: &str, cell: Option<Cell>) -> Result<Option<String>, RowFault> {
    match cell {
        None | Some(Cell::Other("null")) => Ok(None),
        cell => text(field, cell).map(Some),
    }
}

fn missing(field: impl Into<String>) -> RowFault {
    RowFault::Missing { field: field.into(), shapes: String::new() }
}

fn wrong(field: impl Into<String>, expected: &'static str, found: &'static str) -> RowFault {
    RowFault::WrongType { field: field.into(), expected, found }
}

/// Takes the cells of a line in the order of their names.
fn cells<const N: usize>(line: &str, names: [&str; N]) -> Result<[Option<Cell>; N], RowFault> {
    let mut found = json::fields(line, &names)?.into_iter();
    Ok(std::array::from_fn(|_| found.next().flatten()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::source;

    fn row(format: Format, line: &str) -> Result<Row, String> {
        parse(&source("x.jsonl", format), line).map_err(|e| e.to_string())
    }

    fn chat(turns: &[(&str, &str)]) -> Row {
        Row::Chat(turns.iter().map(|(r, c)| Message::new(r, c)).collect())
    }

    #[test]
    fn conversations_are_read_under_both_namings() {
        let line = r#"{"messages": [{"role": "user", "content": "a", "name": 1}, {"role": "assistant", "content": ""}]}"#;
        assert_eq!(row(Format::ChatTemplate, line), Ok(chat(&[("user", "a"), ("assistant", "")])));
        let line = r#"{"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}"#;
        assert_eq!(
            row(Format::Sharegpt, line),
            Ok(chat(&[("system", "s"), ("user", "a"), ("assistant", "b")]))
        );
    }

    #[test]
    fn prompt_and_completion_become_turns_or_stay_plain() {
        let mut source = source("x.jsonl", Format::ChatTemplate);
        source.field_prompt = Some("question".into());
        source.field_completion = Some("answer".into());
        source.field_system = Some("rule".into());
        let line = r#"{"question": "q", "answer": "a", "rule": null}"#;
        assert_eq!(
            parse(&source, line).map_err(|e| e.to_string()),
            Ok(chat(&[("user", "q"), ("assistant", "a")]))
        );
        source.format = Format::PromptCompletion;
        let pair = Row::Pair { prompt: "q".into(), completion: "a".into() };
        assert_eq!(parse(&source, line), Ok(pair));
    }

    #[test]
    fn alpaca_uses_the_prompt_with_input_only_where_there_is_one() {
        let pair = |line| match row(Format::Alpaca, line) {
            Ok(Row::Pair { prompt, completion }) => (prompt, completion),
            other => panic!("{other:?}"),
        };
        let (with, completion) = pair(r#"{"instruction": "I", "input": "X", "output": "O"}"#);
        assert!(
            with.contains("paired with an input")
                && with.ends_with("### Instruction:\nI\n\n### Input:\nX\n\n### Response:\n")
        );
        assert_eq!(completion, "O");
        for line in
            [r#"{"instruction": "I", "input": "", "output": "O"}"#, r#"{"instruction": "I", "output": "O"}"#]
        {
            let (without, _) = pair(line);
            assert!(
                !without.contains("Input") && without.ends_with("### Instruction:\nI\n\n### Response:\n"),
                "{without}"
            );
        }
    }

    #[test]
    fn alpacas_fields_may_have_names_of_their_own() {
        let mut source = source("x.jsonl", Format::Alpaca);
        source.field_prompt = Some("question".into());
        source.field_completion = Some("answer".into());
        let line = r#"{"question": "Q", "input": "X", "answer": "A", "instruction": "I", "output": "O"}"#;
        let row = Row::Pair { prompt: alpaca_prompt("Q", Some("X")), completion: "A".into() };
        assert_eq!(parse(&source, line), Ok(row));
        let error = parse(&source, r#"{"instruction": "I", "output": "O"}"#).unwrap_err().to_string();
        assert!(error.contains("`question` is missing; the row has `instruction`, `output`"), "{error}");
    }

    #[test]
    fn sharegpt_reads_the_field_that_is_named() {
        let mut source = source("x.jsonl", Format::Sharegpt);
        let line = r#"{"messages": [{"from": "human", "value": "a"}], "conversations": [{"from": "human", "value": "b"}]}"#;
        assert_eq!(parse(&source, line), Ok(chat(&[("user", "b")])));
        source.field_messages = "messages".into();
        assert_eq!(parse(&source, line), Ok(chat(&[("user", "a")])));
    }

    #[test]
    fn a_system_field_stands_before_messages_that_have_no_system_turn() {
        let under = |format: Format, line: &str| {
            let source = Source { field_system: Some("system".into()), ..source("x.jsonl", format) };
            parse(&source, line).map_err(|e| e.to_string())
        };
        let asked = chat(&[("system", "S"), ("user", "a")]);
        let plain = chat(&[("user", "a")]);
        let openai = r#"{"role": "user", "content": "a"}"#;
        let theirs = r#"{"from": "human", "value": "a"}"#;
        for (format, field, own, turn) in [
            (Format::ChatTemplate, "messages", r#"{"role": "system", "content": "S"}"#, openai),
            (Format::Sharegpt, "conversations", r#"{"from": "system", "value": "S"}"#, theirs),
        ] {
            let row = |system: &str| format!(r#"{{{system} "{field}": [{turn}]}}"#);
            assert_eq!(under(format, &row(r#""system": "S","#)), Ok(asked.clone()));
            assert_eq!(under(format, &row("")), Ok(plain.clone()));
            assert_eq!(under(format, &row(r#""system": null,"#)), Ok(plain.clone()));
            let error = under(format, &row(r#""system": 1,"#)).unwrap_err();
            assert!(error.contains("`system` must be a string, found number"), "{error}");
            // What the row does not take does not matter either.
            for system in [r#""other""#, "1"] {
                let line = format!(r#"{{"system": {system}, "{field}": [{own}, {turn}]}}"#);
                assert_eq!(under(format, &line), Ok(asked.clone()), "{line}");
            }
        }
    }

    #[test]
    fn a_weight_of_0_mutes_a_message_under_both_namings() {
        let muted = |format: Format, line: &str| match row(format, line) {
            Ok(Row::Chat(messages)) => messages.iter().map(|m| m.muted).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        let line = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}"#;
        assert_eq!(muted(Format::ChatTemplate, line), [false, true]);
        let line = r#"{"conversations": [{"from": "gpt", "value": "b", "weight": 0}, {"from": "gpt", "value": "b", "weight": 1}]}"#;
        assert_eq!(muted(Format::Sharegpt, line), [true, false]);
    }

    #[test]
    fn keys_that_would_change_the_text_pass_where_they_say_nothing() {
        for (turn, beside) in [
            (r#""tool_calls": [], "reasoning_content": """#, r#""tools": []"#),
            (r#""tool_calls": null, "reasoning_content": null"#, r#""tools": null"#),
            (r#""function_call": """#, r#""tools": "[]""#),
            (r#""weight": 1"#, r#""tools": []"#),
            (r#""weight": null"#, r#""tools": []"#),
        ] {
            let line = format!(r#"{{"messages": [{{"role": "user", "content": "a", {turn}}}], {beside}}}"#);
            assert_eq!(row(Format::ChatTemplate, &line), Ok(chat(&[("user", "a")])), "{line}");
        }
    }

    #[test]
    fn a_field_that_does_not_fit_is_named_with_what_was_found() {
        for (format, line, fact) in [
            (
                Format::ChatTemplate,
                r#"{"question": "q"}"#,
                "field `messages` is missing; the row has `question`",
            ),
            (
                Format::ChatTemplate,
                r#"{"messages": null}"#,
                "`messages` must be an array of messages, found null",
            ),
            (Format::ChatTemplate, r#"{"messages": []}"#, "found empty array"),
            (Format::ChatTemplate, r#"{"messages": [1]}"#, "found array of integers"),
            (Format::ChatTemplate, r#"{"messages": [{"role": "user"}]}"#, "`messages[0].content` is missing"),
            (
                Format::ChatTemplate,
                r#"{"messages": [{"role": "user", "content": ["a"]}]}"#,
                "`messages[0].content` must be a string, found array",
            ),
            (
                Format::ChatTemplate,
                r#"{"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}"#,
                "`messages[0].tool_calls`",
            ),
            (
                Format::ChatTemplate,
                r#"{"messages": [{"role": "assistant", "content": "a", "reasoning_content": "b"}]}"#,
                "`messages[0].reasoning_content` is not supported",
            ),
            (
                Format::ChatTemplate,
                r#"{"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}"#,
                "`tools` is not supported",
            ),
            (
                Format::Sharegpt,
                r#"{"tools": "[{}]", "conversations": [{"from": "human", "value": "a"}]}"#,
                "`tools` is not supported",
            ),
            (
                Format::Sharegpt,
                r#"{"conversations": [{"from": "bing", "value": "a"}]}"#,
                "`conversations[0].from` is \"bing\"",
            ),
            (
                Format::Sharegpt,
                r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "tool_calls": [1]}]}"#,
                "`conversations[1].tool_calls` is not supported: only `from` and `value` are read",
            ),
            (
                Format::ChatTemplate,
                r#"{"messages": [{"role": "assistant", "content": "b", "weight": 2}]}"#,
                "`messages[0].weight` must be 0 or 1, found 2",
            ),
            (
                Format::PromptCompletion,
                r#"{"prompt": "a", "completion": 5}"#,
                "`completion` must be a string, found number",
            ),
            (Format::Completion, r#"{"text": {}}"#, "found object"),
            (
                Format::Alpaca,
                r#"{"instruction": "I", "input": 3, "output": "O"}"#,
                "`input` must be a string, found number",
            ),
            (
                Format::Tokenized,
                r#"{"input_ids": [1, 2], "labels": [1]}"#,
                "`labels` has 1 items, `input_ids` has 2",
            ),
            (Format::Tokenized, r#"{"input_ids": [1, "a"], "labels": [1]}"#, "array of mixed types"),
        ] {
            let error = row(format, line).unwrap_err();
            assert!(error.contains(fact), "{line}: {error}");
        }
    }
}
