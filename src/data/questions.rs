//! Rows as questions with the answer that is wanted: for evaluation by what a model says, not by its loss.

use super::Message;
use super::error::Error;
use super::formats::{self, Row};
use super::reader::Lines;
use super::split::Split;
use crate::config::{Data, Format, OnBadRow, Source};
use crate::error::{Problem, Result};
use std::collections::HashSet;

/// A row whose last answer is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Line in its file, from 1.
    pub line: u64,
    /// What is asked: turns before the answer, or one prompt.
    pub turns: Vec<Message>,
    /// The turns are rendered by the chat template; else the prompt stands as it is.
    pub chat: bool,
    /// The answer that is wanted.
    pub answer: String,
}

/// Which rows of a file are taken.
#[derive(Debug, Clone, Copy)]
pub enum Rows<'a> {
    /// All of its split but those of so many questions at the start.
    Behind(usize),
    /// These of the file, from 0.
    Among(&'a HashSet<u64>),
    /// All of its split but these of the file, from 0.
    Without(&'a HashSet<u64>),
}

/// The first `limit` questions of some rows of a file; with `on_bad_row = "skip"` those that are wrong or hold no answer
/// are passed over, as the loss of the same rows does it.
///
/// # Errors
/// The file cannot be read, a row is wrong, or rows hold no answer.
pub fn questions(source: &Source, rules: &Data, rows: Rows, limit: usize) -> Result<Vec<Question>> {
    let open = || Lines::open(&source.path, rules.max_line_bytes);
    let split = Split::parse(source.split.as_deref().unwrap_or("train"))?;
    let mut lines = open()?;
    let mut all = u64::MAX;
    if split.needs_count() {
        all = 0;
        let mut counted = open()?;
        while counted.next_line()?.is_some() {
            all += 1;
        }
    }
    let range = split.range(all);
    let wanted = |row: u64| match rows {
        Rows::Behind(_) => row >= range.start,
        Rows::Among(these) => these.contains(&row),
        Rows::Without(these) => row >= range.start && !these.contains(&row),
    };
    let mut ahead = match rows {
        Rows::Behind(questions) => questions,
        _ => 0,
    };
    let skips = rules.on_bad_row == OnBadRow::Skip;
    // Of the other formats no row has an answer: nothing would be left.
    let asks = !matches!(source.format, Format::Completion | Format::Tokenized);
    let mut found = Vec::new();
    for row in 0..range.end {
        if found.len() >= limit {
            break;
        }
        let Some(line) = lines.next_line()? else { break };
        if !wanted(row) {
            continue;
        }
        let number = line.number;
        let question =
            line.text.and_then(|text| formats::parse(source, &text)).map(|row| question(row, number));
        match question {
            Ok(Some(_)) if ahead > 0 => ahead -= 1,
            Ok(Some(question)) => found.push(question),
            Ok(None) if skips && asks => {}
            Err(_) if skips => {}
            Ok(None) => {
                let (path, format) = (source.path.clone(), formats::name(source.format));
                return Err(Error::NoAnswer { path, line: number, format }.into());
            }
            Err(fault) => {
                let message = format!("{}:{number}: {fault}", source.path.display());
                let problems = vec![Problem { message, hint: crate::error::Fault::hint(&fault) }];
                return Err(crate::error::Error { kind: crate::error::Fault::kind(&fault), problems });
            }
        }
    }
    Ok(found)
}

fn question(row: Row, line: u64) -> Option<Question> {
    match row {
        Row::Chat(mut turns) => {
            let last = turns.iter().rposition(|turn| turn.role == "assistant")?;
            turns.truncate(last + 1);
            let answer = turns.pop()?.content;
            (!turns.is_empty()).then_some(Question { line, turns, chat: true, answer })
        }
        Row::Pair { prompt, completion } => Some(Question {
            line,
            turns: vec![Message::new("user", &prompt)],
            chat: false,
            answer: completion,
        }),
        Row::Text(_) | Row::Ids { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{data, source};
    use super::*;

    #[test]
    fn rows_are_asked_up_to_their_last_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let row = |n: usize| format!("{{\"prompt\": \"q{n}\", \"completion\": \"a{n}\"}}\n");
        std::fs::write(&path, (0..6).map(row).collect::<String>()).unwrap();
        let mut pairs = source(path.to_str().unwrap(), Format::PromptCompletion);
        let rules = data(Vec::new());
        let found = questions(&pairs, &rules, Rows::Behind(1), 2).unwrap();
        let said: Vec<_> = found.iter().map(|q| (q.line, &*q.turns[0].content, &*q.answer, q.chat)).collect();
        assert_eq!(said, [(2, "q1", "a1", false), (3, "q2", "a2", false)]);
        let these = HashSet::from([0, 4]);
        let lines = |rows| -> Vec<u64> {
            questions(&pairs, &rules, rows, 3).unwrap().iter().map(|question| question.line).collect()
        };
        assert_eq!((lines(Rows::Among(&these)), lines(Rows::Without(&these))), (vec![1, 5], vec![2, 3, 4]));
        pairs.split = Some("train[50%:]".into());
        assert_eq!(questions(&pairs, &rules, Rows::Behind(0), 99).unwrap().len(), 3);

        let chat = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}"#;
        std::fs::write(&path, format!("{chat}\n")).unwrap();
        let chat = source(path.to_str().unwrap(), Format::ChatTemplate);
        let found = questions(&chat, &rules, Rows::Behind(0), 9).unwrap();
        assert_eq!((found[0].turns.len(), &*found[0].answer, found[0].chat), (3, "d", true));
        let text = source(path.to_str().unwrap(), Format::Completion);
        let text = questions(&text, &rules, Rows::Behind(0), 9);
        assert!(text.unwrap_err().to_string().contains("rows.jsonl:1"), "no text field");
    }

    #[test]
    fn rows_that_the_loss_skips_are_not_asked_either() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let row = |user: &str| {
            format!(
                "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{user}\"}}, \
                 {{\"role\": \"assistant\", \"content\": \"b\"}}]}}\n"
            )
        };
        let unanswered = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n";
        std::fs::write(&path, format!("[1]\n{}{unanswered}{}{}", row("c"), row("d"), row("e"))).unwrap();
        let chat = source(path.to_str().unwrap(), Format::ChatTemplate);
        let mut rules = data(Vec::new());
        let error = questions(&chat, &rules, Rows::Behind(0), 9).unwrap_err().to_string();
        assert!(error.contains("rows.jsonl:1: a row must be an object"), "{error}");
        rules.on_bad_row = OnBadRow::Skip;
        let lines = |rows, limit| -> Vec<u64> {
            questions(&chat, &rules, rows, limit).unwrap().iter().map(|question| question.line).collect()
        };
        assert_eq!(lines(Rows::Behind(0), 9), [2, 4, 5]);
        // Examples are the first questions, not the first rows: no row is both.
        assert_eq!((lines(Rows::Behind(0), 2), lines(Rows::Behind(2), 9)), (vec![2, 4], vec![5]));
        std::fs::write(&path, "{\"text\": \"a\"}\n").unwrap();
        let text = source(path.to_str().unwrap(), Format::Completion);
        let error = questions(&text, &rules, Rows::Behind(0), 9).unwrap_err().to_string();
        assert!(error.contains("no prompt before an answer"), "{error}");
    }
}
