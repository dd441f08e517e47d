//! Typed, bounded access to a model's named values, the same for `config.json` and GGUF metadata: a value of the
//! wrong type or outside its bounds is refused with the file, the field and the rule.

use super::Error;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// A value as it stands in the file.
pub(super) enum Scalar<'a> {
    Whole(i128),
    Float(f64),
    Flag(bool),
    Text(&'a str),
    /// A list or an object, by its name.
    Other(&'static str),
}

impl Scalar<'_> {
    fn shown(&self) -> String {
        match self {
            Self::Whole(n) => n.to_string(),
            Self::Float(x) => x.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Text(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
            Self::Other(name) => (*name).to_string(),
        }
    }
}

/// Named values of one file.
pub(super) trait Fields {
    /// The file, as messages show it.
    fn file(&self) -> String;

    /// The value of a field; absent and null are the same.
    fn scalar(&self, field: &str) -> Option<Scalar<'_>>;

    /// The field's full name, as messages show it.
    fn full_name(&self, field: &str) -> String {
        field.to_string()
    }

    /// Refuses a value by a rule: "must be …".
    fn refuse(&self, field: &str, rule: impl Into<String>, got: impl Into<String>) -> Error {
        Error::Field { file: self.file(), field: self.full_name(field), rule: rule.into(), got: got.into() }
    }

    /// Refuses a value that is known elsewhere but not here.
    fn unsupported(&self, field: &str, got: impl Into<String>, supported: &str) -> Error {
        Error::Unsupported {
            file: self.file(),
            field: self.full_name(field),
            got: got.into(),
            supported: supported.into(),
        }
    }

    /// A count inside its bounds.
    fn whole(&self, field: &str, bounds: RangeInclusive<usize>) -> Result<Option<usize>, Error> {
        let Some(value) = self.scalar(field) else {
            return Ok(None);
        };
        match value {
            Scalar::Whole(n) if usize::try_from(n).is_ok_and(|n| bounds.contains(&n)) => {
                Ok(usize::try_from(n).ok())
            }
            other => Err(self.refuse(
                field,
                format!("must be a whole number from {} to {}", bounds.start(), bounds.end()),
                other.shown(),
            )),
        }
    }

    /// A count that has no default.
    fn required(&self, field: &str, bounds: RangeInclusive<usize>) -> Result<usize, Error> {
        self.whole(field, bounds)?
            .ok_or_else(|| Error::Missing { file: self.file(), field: self.full_name(field) })
    }

    /// A finite number inside its bounds.
    fn float(&self, field: &str, bounds: RangeInclusive<f64>) -> Result<Option<f64>, Error> {
        let Some(value) = self.scalar(field) else {
            return Ok(None);
        };
        let number = match value {
            Scalar::Float(x) => Some(x),
            // Counts this large lose digits, not their bounds.
            Scalar::Whole(n) => Some(n as f64),
            _ => None,
        };
        match number {
            Some(x) if bounds.contains(&x) => Ok(Some(x)),
            _ => Err(self.refuse(
                field,
                format!("must be a number from {:e} to {:e}", bounds.start(), bounds.end()),
                value.shown(),
            )),
        }
    }

    /// A number that has no default.
    fn required_float(&self, field: &str, bounds: RangeInclusive<f64>) -> Result<f64, Error> {
        self.float(field, bounds)?
            .ok_or_else(|| Error::Missing { file: self.file(), field: self.full_name(field) })
    }

    /// true or false.
    fn flag(&self, field: &str) -> Result<Option<bool>, Error> {
        match self.scalar(field) {
            None => Ok(None),
            Some(Scalar::Flag(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.refuse(field, "must be true or false", other.shown())),
        }
    }

    /// A word.
    fn text(&self, field: &str) -> Result<Option<&str>, Error> {
        match self.scalar(field) {
            None => Ok(None),
            Some(Scalar::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.refuse(field, "must be a string", other.shown())),
        }
    }
}

/// An object of `config.json`.
pub(super) struct Json<'a> {
    pub file: &'a str,
    /// Names of the objects around this one, each with a dot.
    pub prefix: &'a str,
    pub map: &'a Map<String, Value>,
}

impl Json<'_> {
    /// One id, a list of ids, or null: what `bos_token_id` and `eos_token_id` hold.
    pub(super) fn ids(&self, field: &str, default: &[u32]) -> Result<Vec<u32>, Error> {
        let id = |value: &Value| {
            value.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| {
                let got: String = value.to_string().chars().take(80).collect();
                self.refuse(field, "must be a token id or a list of token ids", got)
            })
        };
        match self.map.get(field) {
            None => Ok(default.to_vec()),
            Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(all)) => all.iter().map(id).collect(),
            Some(one) => Ok(vec![id(one)?]),
        }
    }
}

impl Fields for Json<'_> {
    fn file(&self) -> String {
        self.file.to_string()
    }

    fn full_name(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }

    fn scalar(&self, field: &str) -> Option<Scalar<'_>> {
        Some(match self.map.get(field)? {
            Value::Null => return None,
            Value::Bool(flag) => Scalar::Flag(*flag),
            Value::String(text) => Scalar::Text(text),
            Value::Array(_) => Scalar::Other("a list"),
            Value::Object(_) => Scalar::Other("an object"),
            Value::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => Scalar::Whole(n.into()),
                (None, Some(n)) => Scalar::Whole(n.into()),
                (None, None) => Scalar::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
        })
    }
}
