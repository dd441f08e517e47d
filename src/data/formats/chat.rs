//! Rows that are conversations: messages, `ShareGPT`'s naming of them, or two fields that become two turns.

use super::super::Message;
use super::super::error::RowFault;
use super::super::json::{Cell, Leaf, Turn};
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
    let mut messages = system_turn(system, ruled)?;
    messages.push(Message { role: "user".into(), content: text(prompt, asked)? });
    messages.push(Message { role: "assistant".into(), content: text(completion, answered)? });
    Ok(Row::Chat(messages))
}

/// A list of `{role, content}`.
pub(super) fn messages(source: &Source, line: &str) -> Result<Row, RowFault> {
    let field = source.field_messages.as_str();
    let system = source.field_system.as_deref();
    let [list, ruled, tools] = cells(line, [field, system.unwrap_or_default(), TOOLS])?;
    without_tools(tools.as_ref())?;
    let mut messages = system_turn(system, ruled)?;
    for (i, turn) in turns(field, list)?.into_iter().enumerate() {
        let at = |key: &str| format!("{field}[{i}].{key}");
        if let Some(key) = turn.unread {
            return Err(RowFault::Value {
                field: at(key),
                wrong: "is not supported: only `role` and `content` are read".into(),
            });
        }
        let role = leaf(&at("role"), turn.role)?;
        if role.len() > MAX_ROLE_BYTES {
            return Err(RowFault::Value {
                field: at("role"),
                wrong: format!("is longer than {MAX_ROLE_BYTES} bytes"),
            });
        }
        let content = leaf(&at("content"), turn.content)?;
        messages.push(Message { role, content });
    }
    Ok(Row::Chat(messages))
}

/// A list of `{from, value}`.
pub(super) fn sharegpt(source: &Source, line: &str) -> Result<Row, RowFault> {
    let field = source.field_messages.as_str();
    let system = source.field_system.as_deref();
    let [list, ruled, tools] = cells(line, [field, system.unwrap_or_default(), TOOLS])?;
    without_tools(tools.as_ref())?;
    let mut messages = system_turn(system, ruled)?;
    for (i, turn) in turns(field, list)?.into_iter().enumerate() {
        let at = |key: &str| format!("{field}[{i}].{key}");
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
        messages.push(Message { role: role.into(), content });
    }
    Ok(Row::Chat(messages))
}

fn system_turn(field: Option<&str>, cell: Option<Cell>) -> Result<Vec<Message>, RowFault> {
    let Some(field) = field else {
        return Ok(Vec::new());
    };
    let system = optional_text(field, cell)?;
    Ok(system.map(|content| Message { role: "system".into(), content }).into_iter().collect())
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
