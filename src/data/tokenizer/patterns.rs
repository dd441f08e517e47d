//! The patterns by which a tokenizer.json cuts text into words. The tokenizers crate stops cutting without a word
//! where a pattern passes the engine's budget of steps; here that is an error.

use fancy_regex::Regex;
use serde::Deserialize;
use serde_json::Value;

/// A word longer than this is suspicious: the rest of a text may not have been cut.
pub(super) const LONG_WORD_BYTES: usize = 64;
/// Length of the texts that patterns are tried on.
const PROBE_CHARS: usize = 2000;

#[derive(Debug, Default)]
pub(super) struct Patterns(Vec<Regex>);

#[derive(Deserialize)]
struct Part {
    pre_tokenizer: Option<Value>,
}

impl Patterns {
    /// The patterns of a tokenizer.json, tried on long runs of one character.
    ///
    /// # Errors
    /// The pattern that needs too many steps.
    pub(super) fn of(tokenizer_json: &[u8]) -> Result<Self, String> {
        let part: Part = serde_json::from_slice(tokenizer_json).map_err(|e| e.to_string())?;
        let mut found = Vec::new();
        collect(part.pre_tokenizer.as_ref(), &mut found);
        let compiled = found.into_iter().map(|p| Regex::new(p).map_err(|e| e.to_string()));
        let patterns = Self(compiled.collect::<Result<_, _>>()?);
        for run in [' ', '\n', 'a', 'A', '1', '!', '_', 'é', '中'] {
            for end in ["", "!", "a", "1", " "] {
                let mut probe: String = std::iter::repeat_n(run, PROBE_CHARS).collect();
                probe.push_str(end);
                patterns.check(&probe)?;
            }
        }
        Ok(patterns)
    }

    /// # Errors
    /// The pattern that needs too many steps on this text.
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        for pattern in &self.0 {
            if pattern.find_iter(text).any(|found| found.is_err()) {
                let shown: String = pattern.as_str().chars().take(60).collect();
                return Err(format!("the word pattern {shown:?} needs too many steps"));
            }
        }
        Ok(())
    }
}

/// Patterns of `Split` steps, however they are nested.
fn collect<'a>(step: Option<&'a Value>, found: &mut Vec<&'a str>) {
    let Some(step) = step else { return };
    if let Some(pattern) = step.pointer("/pattern/Regex").and_then(Value::as_str) {
        found.push(pattern);
    }
    let nested = step.get("pretokenizers").and_then(Value::as_array);
    nested.into_iter().flatten().for_each(|s| collect(Some(s), found));
}
