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

/// `instruction`, `input` (may be empty or missing), `output`.
pub(super) fn alpaca(line: &str) -> Result<Row, RowFault> {
    let [instruction, input, output] = cells(line, ["instruction", "input", "output"])?;
    let instruction = text("instruction", instruction)?;
    let input = optional_text("input", input)?.filter(|i| !i.is_empty());
    let prompt = match input {
        Some(input) => format!(
            "{TASK}{WITH_INPUT}{REQUEST}### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        ),
        None => format!("{TASK}{REQUEST}### Instruction:\n{instruction}\n\n### Response:\n"),
    };
    Ok(Row::Pair { prompt, completion: text("output", output)? })
}
