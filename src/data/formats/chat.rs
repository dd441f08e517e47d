//! Rows that are conversations: messages, `ShareGPT`'s naming of them, or two fields that become two turns.

use super::super::Message;
use super::super::error::RowFault;
use super::super::json::{Cell, Leaf, Turn, Weight};
use super::{Row, cells, missing, optional_text, text, wrong};
use crate::config::Source;

/// Roles are names.
const MAX_ROLE_BYTES: usize = 64;
/// A row's field with the functions that a template would describe to the model.
const TOOLS: &str = "tools";

/// Whether the turns are built from fields.
pub(super) fn is_built(source: &Source) -> bool {
    source.field_prompt.is_some() || source.field_completion.is_some()
}

/// A user and an assistant turn from two fields, a system turn from a third.
pub(super) fn built(source: &Source, line: &str) -> Result<Row, RowFault> {
    let prompt = source.field_prompt.as_deref().unwrap_or("prompt");
    let completion = source.field_completion.as_deref().unwrap_or("completion");
    let system = source.field_system.as_deref();
    let [asked, answered, ruled] = cells(line, [prompt, completion, system.unwrap_or_default()])?;
    let mut messages: Vec<Message> = system_turn(system, ruled)?.into_iter().collect();
    messages.push(Message { role: "user".into(), content: text(prompt, asked)?, muted: false });
    messages.push(Message { role: "assistant".into(), content: text(completion, answered)?, muted: false });
    Ok(Row::Chat(messages))
}

/// A list of `{role, content}`.
pub(super) fn messages(source: &Source, line: &str) -> Result<Row, RowFault> {
    let field = source.field_messages.as_str();
    let system = source.field_system.as_deref();
    let [list, ruled, tools] = cells(line, [field, system.unwrap_or_default(), TOOLS])?;
    without_tools(tools.as_ref())?;
    let mut messages = Vec::new();
    for (i, turn) in turns(field, list)?.into_iter().enumerate() {
        let at = |key: &str| format!("{field}[{i}].{key}");
        let muted = is_muted(&turn, "`role` and `content`", at)?;
        let role = leaf(&at("role"), turn.role)?;
        if role.len() > MAX_ROLE_BYTES {
            return Err(RowFault::Value {
                field: at("role"),
                wrong: format!("is longer than {MAX_ROLE_BYTES} bytes"),
            });
        }
        let content = leaf(&at("content"), turn.content)?;
        messages.push(Message { role, content, muted });
    }
    under(system, ruled, messages).map(Row::Chat)
}

/// A list of `{from, value}`.
pub(super) fn sharegpt(source: &Source, line: &str) -> Result<Row, RowFault> {
    let field = source.field_messages.as_str();
    let system = source.field_system.as_deref();
    let [list, ruled, tools] = cells(line, [field, system.unwrap_or_default(), TOOLS])?;
    without_tools(tools.as_ref())?;
    let mut messages = Vec::new();
    for (i, turn) in turns(field, list)?.into_iter().enumerate() {
        let at = |key: &str| format!("{field}[{i}].{key}");
        let muted = is_muted(&turn, "`from` and `value`", at)?;
        let from = leaf(&at("from"), turn.from)?;
        let role = match from.as_str() {
            "human" | "user" => "user",
            "gpt" | "assistant" => "assistant",
            "system" => "system",
            other => {
                let other: String = other.chars().take(40).collect();
                return Err(RowFault::Value {
                    field: at("from"),
                    wrong: format!("is {other:?}, expected \"human\", \"gpt\" or \"system\""),
                });
            }
        };
        let content = leaf(&at("value"), turn.value)?;
        messages.push(Message { role: role.into(), content, muted });
    }
    under(system, ruled, messages).map(Row::Chat)
}

fn system_turn(field: Option<&str>, cell: Option<Cell>) -> Result<Option<Message>, RowFault> {
    let Some(field) = field else {
        return Ok(None);
    };
    let system = optional_text(field, cell)?;
    Ok(system.map(|content| Message { role: "system".into(), content, muted: false }))
}

/// A list of messages under the row's system turn; one that opens with its own keeps that alone.
fn under(field: Option<&str>, cell: Option<Cell>, messages: Vec<Message>) -> Result<Vec<Message>, RowFault> {
    if messages.first().is_some_and(|first| first.role == "system") {
        return Ok(messages);
    }
    let system = system_turn(field, cell)?;
    Ok(system.into_iter().chain(messages).collect())
}

/// Whether a message is marked as not to be learned; one that says more than what is `read` of it is refused.
fn is_muted(turn: &Turn, read: &str, at: impl Fn(&str) -> String) -> Result<bool, RowFault> {
    if let Some(key) = turn.unread {
        let wrong = format!("is not supported: only {read} are read");
        return Err(RowFault::Value { field: at(key), wrong });
    }
    match &turn.weight {
        Weight::One => Ok(false),
        Weight::Zero => Ok(true),
        Weight::Wrong(found) => {
            Err(RowFault::Value { field: at("weight"), wrong: format!("must be 0 or 1, found {found}") })
        }
    }
}

/// Functions change what a template writes, and are not read: only a field that says nothing passes.
fn without_tools(cell: Option<&Cell>) -> Result<(), RowFault> {
    match cell {
        None | Some(Cell::Empty | Cell::Other("null")) => Ok(()),
        // Some files keep them as JSON inside a text.
        Some(Cell::Text(text)) if matches!(text.trim(), "" | "[]" | "null") => Ok(()),
        Some(_) => Err(RowFault::Value {
            field: TOOLS.into(),
            wrong: "is not supported: only the messages of a row are read".into(),
        }),
    }
}

fn turns(field: &str, cell: Option<Cell>) -> Result<Vec<Turn>, RowFault> {
    match cell {
        Some(Cell::Messages(turns)) => Ok(turns),
        Some(Cell::Mixed { at, found }) => Err(wrong(format!("{field}[{at}]"), "a message", found)),
        Some(other) => Err(wrong(field, "an array of messages", other.kind())),
        None => Err(missing(field)),
    }
}

fn leaf(field: &str, leaf: Option<Leaf>) -> Result<String, RowFault> {
    match leaf {
        Some(Leaf::Text(text)) => Ok(text),
        Some(Leaf::Other(found)) => Err(wrong(field, "a string", found)),
        None => Err(missing(field)),
    }
}
