//! A YAML file as far as trainers' configs use the language: one document of mappings, lists and plain values. Aliases
//! are refused, so that a small file cannot unfold into a large one.

use yaml_rust2::Event;
use yaml_rust2::parser::Parser;
use yaml_rust2::scanner::TScalarStyle;

/// Deeper than anyone nests a config.
const DEPTH: usize = 16;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Yaml {
    Null,
    Flag(bool),
    Int(i64),
    Real(f64),
    Text(String),
    List(Vec<Yaml>),
    Map(Vec<Entry>),
}

/// `key: value` with its line, from 1.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) line: usize,
    pub(super) key: String,
    pub(super) value: Yaml,
}

impl Yaml {
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// As TOML writes it; a mapping as an inline table.
    pub(super) fn toml(&self) -> String {
        match self {
            Self::Null => "\"\"".into(),
            Self::Flag(flag) => flag.to_string(),
            Self::Int(n) => n.to_string(),
            Self::Real(x) => format!("{x:?}"),
            Self::Text(text) => quoted(text),
            Self::List(all) => {
                let all: Vec<String> = all.iter().map(Self::toml).collect();
                format!("[{}]", all.join(", "))
            }
            Self::Map(all) => {
                let all: Vec<String> =
                    all.iter().map(|e| format!("{} = {}", quoted(&e.key), e.value.toml())).collect();
                format!("{{ {} }}", all.join(", "))
            }
        }
    }
}

/// A string on one line.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.replace('\n', "\u{1}")).to_string().replace("\\u0001", "\\n")
}

/// The mapping that a file is.
///
/// # Errors
/// Line and fact where it is no YAML, or more of YAML than a config needs.
pub(super) fn parse(text: &str) -> Result<Vec<Entry>, (usize, String)> {
    let mut reader = Reader { parser: Parser::new_from_str(text) };
    loop {
        match reader.next()? {
            (Event::StreamStart | Event::DocumentStart, _) => {}
            (Event::MappingStart(..), _) => return reader.map(0),
            (Event::StreamEnd | Event::DocumentEnd, line) => return Err((line, "the file is empty".into())),
            (_, line) => return Err((line, "a config is a mapping of keys to values".into())),
        }
    }
}

struct Reader<'a> {
    parser: Parser<std::str::Chars<'a>>,
}

impl Reader<'_> {
    fn next(&mut self) -> Result<(Event, usize), (usize, String)> {
        match self.parser.next_token() {
            Ok((event, mark)) => Ok((event, mark.line())),
            Err(error) => Err((error.marker().line(), format!("not YAML: {}", error.info()))),
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, (usize, String)> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            match self.next()? {
                (Event::MappingEnd, _) => return Ok(entries),
                (Event::Scalar(key, ..), line) => {
                    if entries.iter().any(|entry| entry.key == key) {
                        return Err((line, format!("key `{key}` stands twice")));
                    }
                    let value = self.value(depth)?;
                    entries.push(Entry { line, key, value });
                }
                (_, line) => return Err((line, "a key must be a plain word".into())),
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<Yaml, (usize, String)> {
        let (event, line) = self.next()?;
        self.value_of(event, line, depth)
    }

    fn value_of(&mut self, event: Event, line: usize, depth: usize) -> Result<Yaml, (usize, String)> {
        if depth > DEPTH {
            return Err((line, format!("nested deeper than {DEPTH} levels")));
        }
        match event {
            Event::Scalar(text, TScalarStyle::Plain, ..) => Ok(plain(text)),
            Event::Scalar(text, ..) => Ok(Yaml::Text(text)),
            Event::MappingStart(..) => self.map(depth + 1).map(Yaml::Map),
            Event::SequenceStart(..) => {
                let mut all = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => return Ok(Yaml::List(all)),
                        (event, line) => all.push(self.value_of(event, line, depth + 1)?),
                    }
                }
            }
            Event::Alias(_) => Err((line, "aliases (`*name`) are not read: write the value out".into())),
            _ => Err((line, "a value is missing".into())),
        }
    }
}

/// A value without quotes, as the programs that read these files take it: YAML 1.1's words, and `2e-4` as a number.
fn plain(text: String) -> Yaml {
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => return Yaml::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "on" | "On" => return Yaml::Flag(true),
        "false" | "False" | "FALSE" | "no" | "No" | "off" | "Off" => return Yaml::Flag(false),
        _ => {}
    }
    if let Ok(n) = text.replace('_', "").parse() {
        return Yaml::Int(n);
    }
    let is_number = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    match text.parse::<f64>() {
        Ok(x) if is_number && x.is_finite() => Yaml::Real(x),
        _ => Yaml::Text(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<(String, Yaml)> {
        parse(text).unwrap().into_iter().map(|entry| (entry.key, entry.value)).collect()
    }

    #[test]
    fn plain_values_are_typed_as_trainers_type_them() {
        let text = "a: 2e-4\nb: 1_000\nc: yes\nd:\ne: \"12\"\nf: ~\ng: .5\nh: cosine\ni: -3\n";
        let wanted = [
            Yaml::Real(2e-4),
            Yaml::Int(1000),
            Yaml::Flag(true),
            Yaml::Null,
            Yaml::Text("12".into()),
            Yaml::Null,
            Yaml::Real(0.5),
            Yaml::Text("cosine".into()),
            Yaml::Int(-3),
        ];
        assert_eq!(values(text).into_iter().map(|(_, value)| value).collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn lists_mappings_and_their_toml() {
        let text = "list:\n  - a\n  - 1\nmap: {x: 1, y: [2, three]}\n";
        let all = values(text);
        assert_eq!(all[0].1.toml(), "[\"a\", 1]");
        assert_eq!(all[1].1.toml(), "{ \"x\" = 1, \"y\" = [2, \"three\"] }");
        assert_eq!(quoted("a\n\"b\"").parse::<toml::Value>().unwrap().as_str(), Some("a\n\"b\""));
    }

    #[test]
    fn what_a_config_does_not_need_is_refused_with_its_line() {
        for (text, line, fact) in [
            ("a: 1\nb: &x [1]\nc: *x\n", 3, "aliases"),
            ("a: 1\na: 2\n", 2, "stands twice"),
            ("- 1\n", 1, "a mapping"),
            ("", 1, "empty"),
            ("a: [1\n", 2, "not YAML"),
        ] {
            let (found, message) = parse(text).unwrap_err();
            assert!(message.contains(fact), "{text:?}: {message}");
            assert!(found.abs_diff(line) <= 1, "{text:?}: line {found}");
        }
        let deep = format!("a: {}1{}", "[".repeat(200), "]".repeat(200));
        assert!(parse(&deep).unwrap_err().1.contains("deeper"));
    }
}
