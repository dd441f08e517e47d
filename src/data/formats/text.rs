//! Rows without a template: prompt and completion as they are, Alpaca's fixed prompt, plain text.

use super::super::error::RowFault;
use super::{Row, cells, optional_text, text};
use crate::config::Source;

/// The prompts of Stanford Alpaca, line ends as Axolotl writes them.
const TASK: &str = "Below is an instruction that describes a task";
const WITH_INPUT: &str = ", paired with an input that provides further context";
const REQUEST: &str = ". Write a response that appropriately completes the request.\n\n";

/// Two fields.
pub(super) fn pair(source: &Source, line: &str) -> Result<Row, RowFault> {
    let prompt = source.field_prompt.as_deref().unwrap_or("prompt");
    let completion = source.field_completion.as_deref().unwrap_or("completion");
    let [asked, answered] = cells(line, [prompt, completion])?;
    Ok(Row::Pair { prompt: text(prompt, asked)?, completion: text(completion, answered)? })
}

/// One field.
pub(super) fn plain(source: &Source, line: &str) -> Result<Row, RowFault> {
    let [cell] = cells(line, [&source.field_text])?;
    text(&source.field_text, cell).map(Row::Text)
}

/// `instruction`, `input` (may be empty or missing), `output`; the first and the last under names of their own where the
/// source says so.
pub(super) fn alpaca(source: &Source, line: &str) -> Result<Row, RowFault> {
    let asked = source.field_prompt.as_deref().unwrap_or("instruction");
    let answered = source.field_completion.as_deref().unwrap_or("output");
    let [instruction, input, output] = cells(line, [asked, "input", answered])?;
    let instruction = text(asked, instruction)?;
    let input = optional_text("input", input)?.filter(|i| !i.is_empty());
    let prompt = alpaca_prompt(&instruction, input.as_deref());
    Ok(Row::Pair { prompt, completion: text(answered, output)? })
}

/// The prompt of Stanford Alpaca for an instruction, with an input or without.
pub fn alpaca_prompt(instruction: &str, input: Option<&str>) -> String {
    match input {
        Some(input) => format!(
            "{TASK}{WITH_INPUT}{REQUEST}### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        ),
        None => format!("{TASK}{REQUEST}### Instruction:\n{instruction}\n\n### Response:\n"),
    }
}
