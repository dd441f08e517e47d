//! The files' tensors against the model's parameters: every name, shape and type, before anything is read.

use super::{Error, Found, Mismatch, Slot, Stored};
use crate::arch::Arch;
use crate::arch::safetensors::Dtype;
use std::collections::BTreeMap;

type Checked = (BTreeMap<String, Slot>, Vec<String>);

/// Keeps what the model needs; tells what else is worth knowing.
pub(super) fn check(found: Found, arch: &Arch, model: &str) -> Result<Checked, Error> {
    let mut found: BTreeMap<String, Slot> = found.into_iter().collect();
    let mut kept = BTreeMap::new();
    let mut mismatches = Vec::new();
    let mut notes = Vec::new();
    for parameter in arch.parameters() {
        let Some(slot) = found.remove(&parameter.name) else {
            mismatches.push(Mismatch::Missing { tensor: parameter.name, expected: parameter.shape });
            continue;
        };
        if slot.shape != parameter.shape {
            mismatches.push(Mismatch::Shape {
                tensor: parameter.name,
                expected: parameter.shape,
                found: slot.shape,
            });
        } else if !holds_weights(slot.stored) {
            mismatches.push(Mismatch::Dtype { tensor: parameter.name, found: slot.stored.name() });
        } else {
            kept.insert(parameter.name, slot);
        }
    }
    if arch.tie_word_embeddings {
        notes.push(match found.remove("lm_head.weight") {
            Some(_) => {
                "the output head is tied to the embedding; the file's own `lm_head.weight` is not used".into()
            }
            None => "the output head is tied to the embedding".into(),
        });
    }
    // Tables that old exporters wrote; they follow from the config.
    found.retain(|name, _| !name.ends_with(".rotary_emb.inv_freq"));
    mismatches.extend(found.into_iter().map(|(tensor, slot)| Mismatch::Extra { tensor, found: slot.shape }));
    if mismatches.is_empty() {
        return Ok((kept, notes));
    }
    Err(Error::Mismatch { model: model.to_owned(), mismatches })
}

fn holds_weights(stored: Stored) -> bool {
    match stored {
        Stored::Ggml(_) => true,
        Stored::Plain(dtype) => {
            matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
        }
    }
}
