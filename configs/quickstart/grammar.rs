//! A small text grammar: tables and rules read from a file, expanded from a seed. What a text has drawn once, it
//! keeps, so that its people, places and things stay the same to the end. Knows nothing of what the texts are about.

use std::collections::HashMap;

/// Deterministic numbers: splitmix64.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `sides`, 0 where there are none.
    pub(crate) fn below(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let sides = u64::try_from(sides).unwrap_or(u64::MAX).max(1);
        usize::try_from(z % sides).unwrap_or(0)
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// So often is a draw repeated that the text already holds: the friend shall be somebody else.
const REDRAWS: usize = 20;

type Entry = Vec<String>;

struct Table {
    /// The table whose entries it draws: itself, or the one after `=`.
    source: String,
    fields: Vec<String>,
    entries: Vec<Entry>,
}

/// All tables and rules of one file.
pub(crate) struct Grammar(HashMap<String, Table>);

impl Grammar {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut tables: HashMap<String, Table> = HashMap::new();
        let mut open = String::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(head) = line.strip_prefix('@') {
                let mut words = head.split_whitespace().map(str::to_owned);
                open = words.next().unwrap_or_default();
                let mut fields: Vec<String> = words.collect();
                let mut source = open.clone();
                if fields.first().is_some_and(|w| w == "=") {
                    source = fields.pop().unwrap_or_default();
                    fields.clear();
                }
                let entries = Vec::new();
                tables.insert(open.clone(), Table { source, fields, entries });
            } else if let Some(table) = tables.get_mut(&open) {
                let entry: Entry = line.split(" / ").map(str::to_owned).collect();
                if entry.len() != table.fields.len().max(1) {
                    return Err(format!(
                        "line {}: {} fields in a table of {:?}",
                        number + 1,
                        entry.len(),
                        table.fields
                    ));
                }
                table.entries.push(entry);
            }
        }
        Ok(Self(tables))
    }

    /// One entry of a table, its fields as they are written.
    pub(crate) fn entry(&self, name: &str, dice: &mut Dice) -> Result<&[String], String> {
        let entry: &Entry = dice.pick(&self.table(name)?.entries);
        Ok(entry)
    }

    /// The table that holds the entries behind a name.
    fn table(&self, name: &str) -> Result<&Table, String> {
        let unknown = || format!("`{name}` is neither a table nor a rule");
        let table = self.0.get(name).ok_or_else(unknown)?;
        self.0.get(&table.source).ok_or_else(unknown)
    }
}

/// One text in the making: what it has drawn so far.
pub(crate) struct Text<'g> {
    grammar: &'g Grammar,
    drawn: HashMap<String, Entry>,
}

impl<'g> Text<'g> {
    pub(crate) fn new(grammar: &'g Grammar) -> Self {
        Self { grammar, drawn: HashMap::new() }
    }

    /// Fixes what a one-field name stands for.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.drawn.insert(name.to_owned(), vec![value.to_owned()]);
    }

    /// Expands a piece of grammar and puts capitals and articles right.
    pub(crate) fn write(&mut self, pattern: &str, dice: &mut Dice) -> Result<String, String> {
        let raw = self.expand(pattern, dice)?;
        Ok(articles(&capitals(&raw)))
    }

    /// Expands a piece of grammar as it is: a name, a field.
    pub(crate) fn expand(&mut self, pattern: &str, dice: &mut Dice) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = pattern;
        while let Some(at) = rest.find(['{', '<', '[']) {
            out.push_str(&rest[..at]);
            let close = closing(&rest[at..])
                .ok_or_else(|| format!("nothing closes what opens at `{}`", &rest[at..]))?;
            let inside = &rest[at + 1..at + close];
            let chosen = match rest.as_bytes()[at] {
                b'{' => self.bound(inside, dice)?,
                b'<' => self.grammar.entry(inside, dice)?[0].clone(),
                _ => (*dice.pick(&choices(inside))).to_owned(),
            };
            out.push_str(&self.expand(&chosen, dice)?);
            rest = &rest[at + close + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }

    /// A field of what a name stands for in this text, drawn now if it was not before.
    fn bound(&mut self, reference: &str, dice: &mut Dice) -> Result<String, String> {
        let (name, field) = match reference.split_once('.') {
            Some((name, field)) => (name, Some(field)),
            None => (reference, None),
        };
        if !self.drawn.contains_key(name) {
            let entries = &self.grammar.table(name)?.entries;
            let mut entry = dice.pick(entries);
            for _ in 0..REDRAWS {
                if !self.drawn.values().any(|taken| taken == entry) {
                    break;
                }
                entry = dice.pick(entries);
            }
            self.drawn.insert(name.to_owned(), entry.clone());
        }
        let column = match field {
            None => 0,
            Some(field) => self
                .grammar
                .table(name)?
                .fields
                .iter()
                .position(|f| f == field)
                .ok_or_else(|| format!("`{name}` has no field `{field}`"))?,
        };
        Ok(self.drawn[name][column].clone())
    }
}

/// Where the bracket that opens `text` is closed again.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' | '<' | '[' => depth += 1,
            '}' | '>' | ']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// The alternatives of `a|b [c|d]|e`, split at the outermost level only.
fn choices(inside: &str) -> Vec<&str> {
    let (mut found, mut depth, mut start) = (Vec::new(), 0_usize, 0);
    for (at, c) in inside.char_indices() {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            '|' if depth == 0 => {
                found.push(&inside[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&inside[start..]);
    found
}

/// A capital letter at the start of each sentence; `"Who?" asked` goes on, `"I do." Then` begins anew.
fn capitals(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut due, mut stop) = (true, None);
    for c in text.chars() {
        match c {
            '.' | '!' | '?' => stop = Some(c),
            '"' if stop == Some('.') => {}
            '"' => stop = None,
            _ if c.is_whitespace() => due |= stop.take().is_some(),
            _ => stop = None,
        }
        if due && c.is_alphabetic() {
            out.extend(c.to_uppercase());
            due = false;
        } else {
            out.push(c);
        }
    }
    out
}

/// "a owl" becomes "an owl".
fn articles(text: &str) -> String {
    let mut out = text.to_owned();
    for vowel in ["a", "e", "i", "o", "u"] {
        for (wrong, right) in [(" a ", " an "), (" A ", " An "), ("\"A ", "\"An ")] {
            out = out.replace(&format!("{wrong}{vowel}"), &format!("{right}{vowel}"));
        }
        if out.starts_with(&format!("A {vowel}")) {
            out.insert(1, 'n');
        }
    }
    out
}
