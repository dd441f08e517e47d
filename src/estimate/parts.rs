//! The names under which memory is predicted, tagged and compared.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The parts that memory is accounted under, predicted and measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Frozen weights of the base.
    BaseWeights,
    /// Trainable tensors; in full fine-tuning all weights.
    Adapter,
    /// Their gradients.
    Gradients,
    /// The optimizer's state, and what regularisers remember.
    Moments,
    /// What the forward pass saves for the backward pass.
    Activations,
    /// The largest transient buffers.
    Workspace,
    /// One chunk of logits.
    Logits,
    /// Tokenised samples and the tokenizer.
    Data,
    /// Code, allocator, thread stacks: resident before anything is loaded.
    Runtime,
}

impl Part {
    /// All, in the order of tables.
    pub const ALL: [Self; 9] = [
        Self::BaseWeights,
        Self::Adapter,
        Self::Gradients,
        Self::Moments,
        Self::Activations,
        Self::Workspace,
        Self::Logits,
        Self::Data,
        Self::Runtime,
    ];

    /// The name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::BaseWeights => "base weights",
            Self::Adapter => "adapter",
            Self::Gradients => "gradients",
            Self::Moments => "moments",
            Self::Activations => "activations",
            Self::Workspace => "workspace",
            Self::Logits => "logits",
            Self::Data => "data",
            Self::Runtime => "runtime",
        }
    }

    /// Stands for it in the ledger, and never for another one.
    fn letter(self) -> char {
        match self {
            Self::BaseWeights => 'w',
            Self::Adapter => 't',
            Self::Gradients => 'g',
            Self::Moments => 'm',
            Self::Activations => 'a',
            Self::Workspace => 's',
            Self::Logits => 'l',
            Self::Data => 'd',
            Self::Runtime => 'r',
        }
    }
}

/// Bytes of every part at one moment; written by name, without those that hold nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, u64>", into = "BTreeMap<String, u64>")]
pub struct PartBytes(pub [u64; Part::ALL.len()]);

impl PartBytes {
    /// Bytes of one part.
    pub fn of(&self, part: Part) -> u64 {
        self.named().find_map(|(other, bytes)| (other == part).then_some(bytes)).unwrap_or(0)
    }

    /// Every part with its bytes, in the order of tables.
    pub fn named(&self) -> impl Iterator<Item = (Part, u64)> {
        Part::ALL.into_iter().zip(self.0)
    }

    /// Bytes of all parts together.
    pub fn sum(&self) -> u64 {
        self.0.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

impl From<PartBytes> for BTreeMap<String, u64> {
    fn from(parts: PartBytes) -> Self {
        let held = parts.named().filter(|(_, bytes)| *bytes > 0);
        held.map(|(part, bytes)| (part.name().to_owned(), bytes)).collect()
    }
}

impl From<BTreeMap<String, u64>> for PartBytes {
    /// A name that this version does not know is left out.
    fn from(named: BTreeMap<String, u64>) -> Self {
        Self(Part::ALL.map(|part| named.get(part.name()).copied().unwrap_or(0)))
    }
}

/// Where thousands of them are kept: each part's letter with its bytes in hexadecimal.
impl fmt::Display for PartBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (part, bytes) in self.named().filter(|(_, bytes)| *bytes > 0) {
            write!(f, "{}{bytes:x}.", part.letter())?;
        }
        Ok(())
    }
}

impl FromStr for PartBytes {
    type Err = ();

    /// A letter that this version does not know is left out; what is no number is refused.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = Self::default();
        for word in text.split_terminator('.') {
            let mut letters = word.chars();
            let letter = letters.next().ok_or(())?;
            let bytes = u64::from_str_radix(letters.as_str(), 16).map_err(|_| ())?;
            for (part, held) in Part::ALL.into_iter().zip(&mut parts.0) {
                if part.letter() == letter {
                    *held = bytes;
                }
            }
        }
        Ok(parts)
    }
}

/// One part of the predicted peak.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPart {
    /// As [`Part::name`].
    pub name: String,
    /// Predicted bytes at the peak.
    #[serde(rename = "predicted_bytes")]
    pub bytes: u64,
}

/// Names and bytes for tables.
pub(crate) fn named(parts: [u64; 9]) -> Vec<MemoryPart> {
    Part::ALL
        .into_iter()
        .zip(parts)
        .map(|(part, bytes)| MemoryPart { name: part.name().into(), bytes })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_by_part_are_written_by_name_and_read_back() {
        let parts = PartBytes(Part::ALL.map(|part| if part == Part::Logits { 7 } else { 0 }));
        let text = serde_json::to_string(&parts).unwrap();
        assert_eq!(text, r#"{"logits":7}"#);
        assert_eq!(serde_json::from_str::<PartBytes>(&text).unwrap(), parts);
        assert_eq!((parts.of(Part::Logits), parts.of(Part::Data), parts.sum()), (7, 0, 7));
        assert_eq!(parts.to_string(), "l7.");
        let all = PartBytes(Part::ALL.map(|part| 4096 * (part as u64 + 1)));
        assert_eq!(all.to_string().parse(), Ok(all), "every part has a letter of its own");
        assert_eq!("?7.l7.".parse(), Ok(parts));
        assert_eq!(["l", "lx.", "."].map(str::parse::<PartBytes>), [Err(()); 3]);
        let newer: PartBytes = serde_json::from_str(r#"{"a later part":9,"logits":7}"#).unwrap();
        assert_eq!(newer, parts);
    }
}
