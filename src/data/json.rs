//! One line of JSON as the fields that a format asks for; everything else is checked and thrown away, so that a
//! row costs memory for what is used of it alone.

use super::error::RowFault;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::fmt;

/// Messages a conversation may have: each costs a fixed amount of memory, however short.
const MAX_MESSAGES: usize = 65_536;
/// Keys of a message that change what a template writes.
const UNREAD: [&str; 3] = ["tool_calls", "function_call", "reasoning_content"];

/// A field's value, in the shapes that formats use.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Text(String),
    Integers(Vec<i64>),
    Messages(Vec<Turn>),
    /// An array of nothing.
    Empty,
    /// An array whose item `at` is none of these, or of another kind than those before.
    Mixed {
        at: usize,
        found: &'static str,
    },
    /// Some other JSON type.
    Other(&'static str),
}

impl Cell {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "string",
            Self::Integers(_) => "array of integers",
            Self::Messages(_) => "array of objects",
            Self::Empty => "empty array",
            Self::Mixed { .. } => "array of mixed types",
            Self::Other(kind) => kind,
        }
    }
}

/// One message of a conversation, under either naming.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Turn {
    pub(super) role: Option<Leaf>,
    pub(super) content: Option<Leaf>,
    pub(super) from: Option<Leaf>,
    pub(super) value: Option<Leaf>,
    /// Whether it is to be learned, as `OpenAI`'s rows mark it.
    pub(super) weight: Weight,
    /// A key that changes what the template writes and is not read here.
    pub(super) unread: Option<&'static str>,
}

/// A message's `weight`.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) enum Weight {
    /// 1, or nothing.
    #[default]
    One,
    Zero,
    /// Neither: the number, or its JSON type.
    Wrong(String),
}

/// A value that must be text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Leaf {
    Text(String),
    Other(&'static str),
}

/// The wanted fields of a line, in the order of `names`; of a repeated key the last.
///
/// # Errors
/// The line is not exactly one JSON object.
pub(super) fn fields(line: &str, names: &[&str]) -> Result<Vec<Option<Cell>>, RowFault> {
    if let Some(found) = not_an_object(line) {
        return Err(RowFault::NotAnObject { found });
    }
    let mut json = serde_json::Deserializer::from_str(line);
    let cells = Fields(names).deserialize(&mut json).map_err(|e| fault(&e))?;
    json.end().map_err(|e| match e.to_string() {
        m if m.starts_with("trailing characters") => {
            RowFault::Json { message: "more than one value on the line".into(), column: e.column() }
        }
        _ => fault(&e),
    })?;
    Ok(cells)
}

/// The first keys of an object, for messages.
pub(super) fn keys(line: &str) -> String {
    let mut json = serde_json::Deserializer::from_str(line);
    Keys.deserialize(&mut json).unwrap_or_default()
}

/// The type that a line opens with, where it is a JSON value other than an object.
fn not_an_object(line: &str) -> Option<&'static str> {
    match line.trim_start().chars().next()? {
        '[' => Some("array"),
        '"' => Some("string"),
        't' | 'f' if serde_json::from_str::<bool>(line).is_ok() => Some("boolean"),
        'n' if line.trim() == "null" => Some("null"),
        '-' | '0'..='9' => Some("number"),
        _ => None,
    }
}

fn fault(error: &serde_json::Error) -> RowFault {
    let text = error.to_string();
    let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(m, _)| m);
    RowFault::Json { message: format!("invalid JSON: {message}"), column: error.column() }
}

struct Fields<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = Vec<Option<Cell>>;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Vec<Option<Cell>>;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut cells: Vec<Option<Cell>> = vec![None; self.0.len()];
        while let Some(key) = map.next_key::<String>()? {
            let place = self.0.iter().position(|name| *name == key);
            match place.and_then(|i| cells.get_mut(i)) {
                Some(cell) => *cell = Some(map.next_value()?),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(cells)
    }
}

struct Keys;

impl<'de> DeserializeSeed<'de> for Keys {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<String, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Keys {
    type Value = String;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
        let mut shown = Vec::new();
        let mut more = 0u64;
        while let Some(key) = map.next_key::<String>()? {
            map.next_value::<IgnoredAny>()?;
            if shown.len() < 8 {
                shown.push(format!("`{}`", key.chars().take(40).collect::<String>()));
            } else {
                more += 1;
            }
        }
        Ok(match (shown.is_empty(), more) {
            (true, _) => "no fields".into(),
            (_, 0) => shown.join(", "),
            _ => format!("{} and {more} more", shown.join(", ")),
        })
    }
}

/// Implements `Deserialize` for a type by one visitor over any JSON value.
macro_rules! any_value {
    ($type:ty, other: $other:expr, text: $text:expr $(, $extra:item)*) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
                struct Any;
                impl<'de> Visitor<'de> for Any {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                        f.write_str("a JSON value")
                    }
                    fn visit_bool<E>(self, _: bool) -> Result<$type, E> {
                        Ok($other("boolean"))
                    }
                    fn visit_f64<E>(self, _: f64) -> Result<$type, E> {
                        Ok($other("number"))
                    }
                    fn visit_unit<E>(self) -> Result<$type, E> {
                        Ok($other("null"))
                    }
                    fn visit_str<E>(self, text: &str) -> Result<$type, E> {
                        Ok($text(text.to_owned()))
                    }
                    fn visit_string<E>(self, text: String) -> Result<$type, E> {
                        Ok($text(text))
                    }
                    $($extra)*
                }
                json.deserialize_any(Any)
            }
        }
    };
}

any_value!(Leaf, other: Leaf::Other, text: Leaf::Text,
    fn visit_i64<E>(self, _: i64) -> Result<Leaf, E> { Ok(Leaf::Other("number")) },
    fn visit_u64<E>(self, _: u64) -> Result<Leaf, E> { Ok(Leaf::Other("number")) },
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Leaf, A::Error> {
        if seq.next_element::<IgnoredAny>()?.is_none() {
            return Ok(Leaf::Other("empty array"));
        }
        drain(seq)?;
        Ok(Leaf::Other("array"))
    },
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Leaf, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Leaf::Other("object"))
    }
);

/// An item of an array.
enum Item {
    Integer(i64),
    Message(Box<Turn>),
    Other(&'static str),
}

any_value!(Item, other: Item::Other, text: |_| Item::Other("string"),
    fn visit_i64<E>(self, n: i64) -> Result<Item, E> { Ok(Item::Integer(n)) },
    fn visit_u64<E>(self, n: u64) -> Result<Item, E> {
        Ok(i64::try_from(n).map_or(Item::Other("number"), Item::Integer))
    },
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Item, A::Error> {
        drain(seq)?;
        Ok(Item::Other("array"))
    },
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Item, A::Error> {
        turn(map).map(|t| Item::Message(Box::new(t)))
    }
);

any_value!(Cell, other: Cell::Other, text: Cell::Text,
    fn visit_i64<E>(self, _: i64) -> Result<Cell, E> { Ok(Cell::Other("number")) },
    fn visit_u64<E>(self, _: u64) -> Result<Cell, E> { Ok(Cell::Other("number")) },
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Cell, A::Error> { list(seq) },
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Cell, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Cell::Other("object"))
    }
);

fn drain<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<(), A::Error> {
    while seq.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

fn list<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<Cell, A::Error> {
    let (mut integers, mut messages) = (Vec::new(), Vec::new());
    let mut at = 0;
    while let Some(item) = seq.next_element::<Item>()? {
        match item {
            Item::Message(_) if messages.len() == MAX_MESSAGES => {
                return Err(A::Error::custom(format_args!("more than {MAX_MESSAGES} messages")));
            }
            Item::Integer(n) if messages.is_empty() => integers.push(n),
            Item::Message(turn) if integers.is_empty() => messages.push(*turn),
            other => {
                drain(seq)?;
                let found = match other {
                    Item::Integer(_) => "number",
                    Item::Message(_) => "object",
                    Item::Other(kind) => kind,
                };
                return Ok(Cell::Mixed { at, found });
            }
        }
        at += 1;
    }
    Ok(match (integers.is_empty(), messages.is_empty()) {
        (true, true) => Cell::Empty,
        (false, _) => Cell::Integers(integers),
        (_, false) => Cell::Messages(messages),
    })
}

fn turn<'de, A: MapAccess<'de>>(mut map: A) -> Result<Turn, A::Error> {
    let mut turn = Turn::default();
    while let Some(key) = map.next_key::<String>()? {
        let place = match key.as_str() {
            "role" => &mut turn.role,
            "content" => &mut turn.content,
            "from" => &mut turn.from,
            "value" => &mut turn.value,
            "weight" => {
                turn.weight = weight(&map.next_value::<Value>()?);
                continue;
            }
            name => {
                let Some(named) = UNREAD.into_iter().find(|unread| *unread == name) else {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                };
                let says_nothing = match map.next_value::<Leaf>()? {
                    Leaf::Text(text) => text.is_empty(),
                    Leaf::Other(kind) => matches!(kind, "null" | "empty array"),
                };
                if !says_nothing {
                    turn.unread = Some(named);
                }
                continue;
            }
        };
        *place = Some(map.next_value()?);
    }
    Ok(turn)
}

/// Tables write whole numbers with a point as soon as one is missing.
fn weight(found: &Value) -> Weight {
    let kind = match found {
        Value::Null => return Weight::One,
        Value::Number(n) => match n.as_f64().map(f64::to_bits) {
            Some(bits) if bits == 1f64.to_bits() => return Weight::One,
            Some(0) => return Weight::Zero,
            _ => return Weight::Wrong(n.to_string()),
        },
        Value::Bool(_) => "boolean",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    Weight::Wrong(kind.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Result<Option<Cell>, RowFault> {
        fields(line, &["x"]).map(|mut cells| cells.remove(0))
    }

    #[test]
    fn values_come_in_the_shapes_that_formats_use() {
        let cell = |json: &str| one(&format!(r#"{{"y": [1, {{}}], "x": {json}}}"#)).unwrap().unwrap();
        assert_eq!(cell(r#""a\nb""#), Cell::Text("a\nb".into()));
        assert_eq!(cell("[1, -100]"), Cell::Integers(vec![1, -100]));
        assert_eq!(cell("[]"), Cell::Empty);
        assert_eq!(cell("null"), Cell::Other("null"));
        assert_eq!(cell("1.5"), Cell::Other("number"));
        assert_eq!(cell("{}"), Cell::Other("object"));
        assert_eq!(cell("[1, {}]"), Cell::Mixed { at: 1, found: "object" });
        assert_eq!(cell(r#"["a"]"#), Cell::Mixed { at: 0, found: "string" });
        let Cell::Messages(turns) = cell(r#"[{"role": "user", "content": 5, "name": [[]]}]"#) else {
            panic!("messages")
        };
        assert_eq!(turns[0].role, Some(Leaf::Text("user".into())));
        assert_eq!(turns[0].content, Some(Leaf::Other("number")));
        assert_eq!(one("{}").unwrap(), None);
    }

    #[test]
    fn a_weight_is_one_or_zero() {
        let weight = |json: &str| match one(&format!(r#"{{"x": [{{"weight": {json}}}]}}"#)) {
            Ok(Some(Cell::Messages(turns))) => turns[0].weight.clone(),
            other => panic!("{other:?}"),
        };
        for json in ["1", "1.0", "null"] {
            assert_eq!(weight(json), Weight::One, "{json}");
        }
        for json in ["0", "0.0"] {
            assert_eq!(weight(json), Weight::Zero, "{json}");
        }
        for (json, found) in [
            ("2", "2"),
            ("-1", "-1"),
            ("0.5", "0.5"),
            ("true", "boolean"),
            (r#""0""#, "string"),
            ("[0]", "array"),
            (r#"{"role": 0}"#, "object"),
        ] {
            assert_eq!(weight(json), Weight::Wrong(found.into()), "{json}");
        }
    }

    #[test]
    fn broken_lines_have_a_column() {
        for (line, message, column) in [
            (r#"{"x": 1,}"#, "trailing comma", 9),
            (r#"{"x": 1} {"x": 2}"#, "more than one value", 10),
            (r#"{"x": "#, "EOF", 6),
            (r#"{"x": 01}"#, "invalid number", 8),
            (r#"{"x": "a"#, "EOF", 8),
            ("{", "EOF", 1),
            ("nope", "expected", 2),
        ] {
            match one(line) {
                Err(RowFault::Json { message: found, column: at }) => {
                    assert!(found.contains(message), "{line}: {found}");
                    assert_eq!(at, column, "{line}: {found}");
                }
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn other_values_than_objects_are_named() {
        for (line, found) in
            [("[1]", "array"), ("\"a\"", "string"), ("3", "number"), ("null", "null"), ("true", "boolean")]
        {
            assert_eq!(one(line), Err(RowFault::NotAnObject { found }), "{line}");
        }
    }

    #[test]
    fn depth_and_number_of_messages_are_bounded() {
        let deep = format!(r#"{{"x": {}{}}}"#, "[".repeat(2000), "]".repeat(2000));
        match one(&deep) {
            Ok(Some(Cell::Mixed { at: 0, found: "array" })) | Err(RowFault::Json { .. }) => {}
            other => panic!("{other:?}"),
        }
        let many = format!(r#"{{"x": [{}{{}}]}}"#, "{},".repeat(MAX_MESSAGES));
        assert!(matches!(one(&many), Err(RowFault::Json { .. })));
    }

    #[test]
    fn keys_are_shown_shortened() {
        assert_eq!(keys(r#"{"a": 1, "b": {}}"#), "`a`, `b`");
        assert_eq!(keys("{}"), "no fields");
        let many: Vec<String> = (0..20).map(|i| format!(r#""k{i}": 0"#)).collect();
        assert!(keys(&format!("{{{}}}", many.join(","))).ends_with("and 12 more"));
    }
}
