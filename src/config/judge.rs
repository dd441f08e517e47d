//! One value before its key: accepted in one normal form, or refused with what was expected and what was found.

use super::keys::Key;
use super::kinds::{Bounds, Kind, one_of, span};
use super::place::{Place, shown};
use super::raw::{Node, Value};
use super::table::MANY;
use super::{Device, Error, paths, read};
use std::path::Path;

/// Longest text of a key that is no template and no prompt.
const TEXT_BYTES: usize = 4096;
/// Longest chat template, a file's too: the resolved config repeats it and must stay below its own limit.
const TEMPLATE_BYTES: u64 = 256 * 1024;
/// Memory that a compiled `lora_target_modules` may take.
const REGEX_BYTES: usize = 1 << 20;

/// What `accept` says: the value in its normal form, `None` where it says nothing, or the place and the fact.
pub(super) type Verdict = Result<Option<Node>, (Place, Error)>;

/// One value before its key.
pub(super) struct Judge<'a> {
    kind: Kind,
    key: &'a Key,
    written: &'a str,
    place: Place,
}

impl<'a> Judge<'a> {
    pub(super) fn new(kind: Kind, key: &'a Key, written: &'a str, node: &Node) -> Self {
        Self { kind, key, written, place: node.place.clone() }
    }
}

impl Judge<'_> {
    fn refuse(&self, error: Error) -> Verdict {
        Err((self.place.clone(), error))
    }

    pub(super) fn refuse_type(&self, node: &Node) -> Verdict {
        self.refuse(Error::Type {
            key: self.written.to_owned(),
            expected: self.kind.say(),
            found: node.value.described(),
        })
    }

    fn refuse_range(&self, node: &Node, range: impl Into<String>) -> Verdict {
        self.refuse(Error::Range {
            key: self.written.to_owned(),
            range: range.into(),
            found: node.value.quoted(),
            tip: self.key.tip,
        })
    }

    fn refuse_rule(&self, rule: impl Into<String>, tip: &'static str) -> Verdict {
        self.refuse(Error::Rule { key: self.written.to_owned(), rule: rule.into(), tip })
    }

    pub(super) fn auto(&self, node: Node, or: impl Fn(&Value) -> bool) -> Verdict {
        match &node.value {
            Value::Text(text) if text == "auto" => Ok(Some(node)),
            value if or(value) => Ok(Some(node)),
            _ => self.refuse_type(&node),
        }
    }

    pub(super) fn count(&self, node: Node, min: u64, max: u64) -> Verdict {
        match node.value {
            Value::Int(n) if u64::try_from(n).is_ok_and(|n| (min..=max).contains(&n)) => Ok(Some(node)),
            Value::Int(_) | Value::Overflow { kind: "integer", .. } => {
                self.refuse_range(&node, span(min, max))
            }
            _ => self.refuse_type(&node),
        }
    }

    pub(super) fn epochs(&self, mut node: Node, max: u64) -> Verdict {
        if let Value::Real(x) = node.value {
            match whole(x) {
                Some(n) => node.value = Value::Int(n),
                None => {
                    return self.refuse_range(&node, format!("a whole number {}", span(1, max)));
                }
            }
        }
        self.count(node, 1, max)
    }

    pub(super) fn real(&self, mut node: Node, bounds: Bounds) -> Verdict {
        let x = match node.value {
            Value::Real(x) => x,
            // Above 2⁵³ the nearest float is meant, as in every other program.
            Value::Int(n) => n as f64,
            Value::Overflow { .. } => return self.refuse_range(&node, bounds.say()),
            _ => return self.refuse_type(&node),
        };
        if !bounds.hold(x) {
            return self.refuse_range(&node, bounds.say());
        }
        // −0 is 0: two configs that mean the same are the same.
        node.value = Value::Real(if x == 0.0 { 0.0 } else { x });
        Ok(Some(node))
    }

    pub(super) fn held_out(&self, mut node: Node) -> Verdict {
        let range = "0, a share between 0 and 1, or a whole count of rows";
        match node.value {
            Value::Int(n) if n >= 0 => Ok(Some(node)),
            Value::Real(x) if x > 0.0 && x < 1.0 => Ok(Some(node)),
            Value::Real(x) => match whole(x).filter(|n| *n >= 0) {
                Some(n) => {
                    node.value = Value::Int(n);
                    Ok(Some(node))
                }
                None => self.refuse_range(&node, range),
            },
            Value::Int(_) | Value::Overflow { .. } => self.refuse_range(&node, range),
            _ => self.refuse_type(&node),
        }
    }

    /// A text; what `--set` holds is one whatever it looks like.
    fn text(&self, node: &mut Node) -> Result<String, (Place, Error)> {
        if let (Value::Int(_) | Value::Real(_) | Value::Date(_) | Value::Flag(_), Some(typed)) =
            (&node.value, &node.typed)
        {
            node.value = Value::Text(typed.clone());
        }
        match &node.value {
            Value::Text(text) => Ok(text.clone()),
            value => Err((
                self.place.clone(),
                Error::Type {
                    key: self.written.to_owned(),
                    expected: self.kind.say(),
                    found: value.described(),
                },
            )),
        }
    }

    pub(super) fn line(&self, mut node: Node) -> Verdict {
        let text = self.text(&mut node)?;
        let fault = if text.trim().is_empty() {
            Some("is empty".to_owned())
        } else if text.len() > TEXT_BYTES {
            Some(format!("is longer than {TEXT_BYTES} bytes"))
        } else if text.chars().any(char::is_control) {
            Some("holds a control character or NUL".to_owned())
        } else {
            match self.kind {
                Kind::Path | Kind::OutputDir | Kind::Model => {
                    paths::fault(&text, self.kind == Kind::OutputDir)
                }
                Kind::Revision => paths::revision_fault(&text),
                _ => None,
            }
        };
        match fault {
            Some(rule) => self.refuse_rule(rule, self.key.tip),
            None => Ok(Some(node)),
        }
    }

    pub(super) fn choice(&self, mut node: Node, values: &[&str], synonyms: &[(&str, &str)]) -> Verdict {
        let text = self.text(&mut node)?;
        let meant = synonyms.iter().find(|(name, _)| *name == text).map_or(text.as_str(), |(_, value)| value);
        if values.contains(&meant) {
            node.value = Value::Text(meant.to_owned());
            return Ok(Some(node));
        }
        self.refuse_range(&node, one_of(values))
    }

    pub(super) fn device(&self, mut node: Node) -> Verdict {
        let text = self.text(&mut node)?;
        if text.parse::<Device>().is_ok() {
            node.value = Value::Text(text);
            return Ok(Some(node));
        }
        self.refuse_range(&node, self.kind.say())
    }

    fn strings(&self, node: &Node) -> Result<Vec<String>, (Place, Error)> {
        let Value::List(all) = &node.value else {
            return Err((
                self.place.clone(),
                Error::Type {
                    key: self.written.to_owned(),
                    expected: self.kind.say(),
                    found: node.value.described(),
                },
            ));
        };
        all.iter()
            .enumerate()
            .map(|(i, item)| match &item.value {
                Value::Text(text) if !text.trim().is_empty() => Ok(text.clone()),
                value => Err((
                    item.place.clone(),
                    Error::Type {
                        key: format!("{}[{i}]", self.written),
                        expected: "string that is not empty".to_owned(),
                        found: value.described(),
                    },
                )),
            })
            .collect()
    }

    /// Names; one name alone stands for a list of one.
    pub(super) fn names(&self, mut node: Node) -> Verdict {
        if let Value::Text(text) = &node.value {
            if text.is_empty() || text == "none" {
                return Ok(None);
            }
            let one = Node { value: node.value.clone(), place: node.place.clone(), typed: None };
            node.value = Value::List(vec![one]);
        }
        for name in self.strings(&node)? {
            if name.len() > 255 || name.chars().any(char::is_control) {
                return self.refuse_rule("holds a name that is no name", self.key.tip);
            }
        }
        Ok(Some(node))
    }

    pub(super) fn prompts(&self, node: Node) -> Verdict {
        self.strings(&node)?;
        Ok(Some(node))
    }

    pub(super) fn targets(&self, node: Node) -> Verdict {
        let Value::Text(text) = &node.value else {
            if !matches!(node.value, Value::List(_)) {
                return self.refuse_type(&node);
            }
            if self.strings(&node)?.is_empty() {
                return self.refuse_rule("names no module", self.key.tip);
            }
            return self.names(node);
        };
        if text == "all-linear" {
            return Ok(Some(node));
        }
        let plain = |c: char| c.is_alphanumeric() || " ._-,".contains(c);
        if text.is_empty() || (text.contains(',') && text.chars().all(plain)) {
            return self.refuse_rule("is a regular expression that no module matches", self.key.tip);
        }
        match regex::RegexBuilder::new(&format!("^(?:{text})$")).size_limit(REGEX_BYTES).build() {
            Ok(_) => Ok(Some(node)),
            Err(error) => {
                let text = error.to_string();
                let last = text.lines().last().unwrap_or("").trim();
                let cause = last.strip_prefix("error: ").unwrap_or(last);
                self.refuse_rule(format!("is no regular expression: {cause}"), self.key.tip)
            }
        }
    }

    /// Patterns with a value each; PEFT's rule: a regular expression for the end of a module's name, behind a dot.
    pub(super) fn pattern(&self, mut node: Node, ranks: bool) -> Verdict {
        let Value::Table(entries) = &mut node.value else {
            return self.refuse_type(&node);
        };
        for entry in entries {
            let one = Judge {
                kind: self.kind,
                key: self.key,
                written: &format!("{}.{}", self.written, shown(&entry.name)),
                place: entry.node.place.clone(),
            };
            let expression = format!(r"^(?:(?:.*\.)?(?:{}))$", entry.name);
            if regex::RegexBuilder::new(&expression).size_limit(REGEX_BYTES).build().is_err() {
                return one.refuse_rule("is no regular expression", one.key.tip);
            }
            let value = entry.node.clone();
            let value = if ranks { one.count(value, 1, MANY)? } else { one.real(value, Bounds::Positive)? };
            entry.node = value.unwrap_or_else(|| entry.node.clone());
        }
        Ok(Some(node))
    }

    /// `true` is PEFT's own start.
    pub(super) fn start(&self, node: Node) -> Verdict {
        let is_known = match &node.value {
            Value::Flag(as_peft) => *as_peft,
            Value::Text(text) => text == "pissa" || pissa_rounds(text).is_some(),
            _ => return self.refuse_type(&node),
        };
        if is_known { Ok(Some(node)) } else { self.refuse_range(&node, self.kind.say()) }
    }

    pub(super) fn template(&self, mut node: Node) -> Verdict {
        let text = self.text(&mut node)?;
        let tip = self.key.tip;
        if text == "tokenizer_default" {
            return Ok(None);
        }
        if text == "chatml" {
            return Ok(Some(node));
        }
        let is_path = !text.contains(['{', '\n'])
            && Path::new(&text).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("jinja"));
        if is_path {
            let read = read::text(Path::new(&text), TEMPLATE_BYTES);
            let read = read.map_err(|(_, fact)| {
                let rule = format!("names {}, which {fact}", shown(&text));
                let key = self.written.to_owned();
                (self.place.clone(), Error::Rule { key, rule, tip })
            })?;
            node.value = Value::Text(read);
        }
        let Value::Text(template) = &node.value else {
            return self.refuse_type(&node);
        };
        if !template.contains('{') {
            return self.refuse_rule("is no Jinja template", tip);
        }
        if u64::try_from(template.len()).map_or(true, |n| n > TEMPLATE_BYTES) {
            return self.refuse_rule(format!("is longer than {TEMPLATE_BYTES} bytes"), tip);
        }
        Ok(Some(node))
    }

    pub(super) fn sources(&self, node: Node, empty: bool) -> Verdict {
        let Value::List(rows) = &node.value else {
            return self.refuse_type(&node);
        };
        if rows.is_empty() && !empty {
            return self.refuse_rule("names no file", self.key.tip);
        }
        if let Some((i, row)) = rows.iter().enumerate().find(|(_, row)| !matches!(row.value, Value::Table(_)))
        {
            return Err((
                row.place.clone(),
                Error::Type {
                    key: format!("{}[{i}]", self.written),
                    expected: "table array".to_owned(),
                    found: row.value.described(),
                },
            ));
        }
        Ok(Some(node))
    }
}

/// N of `pissa_niter_N`.
pub(super) fn pissa_rounds(text: &str) -> Option<usize> {
    text.strip_prefix("pissa_niter_")?.parse().ok().filter(|n| (1..=1000).contains(n))
}

/// A whole float as an integer.
fn whole(x: f64) -> Option<i64> {
    (x.is_finite() && x.fract() == 0.0).then(|| format!("{x:.0}").parse().ok()).flatten()
}
