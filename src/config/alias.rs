//! What other trainers' spellings mean in ours.

use super::Error;
use super::keys::Means;
use super::place::Place;
use super::raw::{Node, Value};

/// Whether a value says nothing under this name: it takes no other name's place.
pub(super) fn is_silent(means: Means, value: &Value) -> bool {
    matches!((means, value), (Means::TargetLinear, Value::Flag(false)))
}

/// The value as the key itself would hold it; `None` where it says nothing. Values that are not understood are left
/// for the key's own check.
pub(super) fn translate(means: Means, written: &str, mut node: Node) -> Result<Option<Node>, (Place, Error)> {
    let value = match (means, &node.value) {
        (Means::Not, Value::Flag(b)) => Value::Flag(!b),
        (Means::TargetLinear, Value::Flag(true)) | (Means::LoraTarget, Value::Text(_))
            if all_linear(&node.value) =>
        {
            Value::Text("all-linear".to_owned())
        }
        (_, value) if is_silent(means, value) => return Ok(None),
        (Means::TargetLinear, other) => {
            return Err((
                node.place.clone(),
                Error::Type {
                    key: written.to_owned(),
                    expected: "true or false".to_owned(),
                    found: other.described(),
                },
            ));
        }
        (Means::LoraTarget | Means::Commas, Value::Text(text)) => Value::List(
            text.split(',')
                .map(|name| Node {
                    value: Value::Text(name.trim().to_owned()),
                    place: node.place.clone(),
                    typed: None,
                })
                .collect(),
        ),
        (Means::FourBits, Value::Int(4)) => Value::Flag(true),
        (Means::FourBits, other) => {
            return Err((
                node.place.clone(),
                Error::NotAvailable {
                    what: format!("`{written}` = {}", other.quoted()),
                    instead: "a quantised base has 4 bits; a GGUF file keeps its own types",
                },
            ));
        }
        (Means::Resume, Value::Text(text)) => match text.as_str() {
            "auto" | "true" => Value::Flag(true),
            "false" => Value::Flag(false),
            _ => {
                return Err((
                    node.place.clone(),
                    Error::Rule {
                        key: written.to_owned(),
                        rule: "names a checkpoint".to_owned(),
                        tip: "true goes on from the last checkpoint in `output_dir`; \
                              `fttrain resume RUN` from that of another folder",
                    },
                ));
            }
        },
        _ => return Ok(Some(node)),
    };
    node.value = value;
    Ok(Some(node))
}

fn all_linear(value: &Value) -> bool {
    match value {
        Value::Flag(all) => *all,
        Value::Text(text) => text == "all" || text == "all-linear",
        _ => false,
    }
}
