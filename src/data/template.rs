//! The model's own Jinja chat template, run as transformers runs it, with bounds on work and output.

use super::Message;
use super::error::{Error, RowFault};
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;

/// Longest template accepted, bytes.
pub(super) const MAX_TEMPLATE_BYTES: u64 = 1 << 20;
/// Bytes of output beyond twice the messages'.
const MAX_OUTPUT_BYTES: usize = 8 << 20;
/// Instructions of a rendering: a constant and a share for each message.
const FUEL: (u64, u64) = (1_000_000, 10_000);
/// The name that errors show.
const NAME: &str = "chat_template";

/// `strftime_now` answers with this day, not with today: a run resumed tomorrow must see the same text. It is the
/// day that Llama 3's own template falls back to.
const TODAY: jiff::civil::DateTime = jiff::civil::date(2024, 7, 26).at(0, 0, 0, 0);

/// `ChatML`, for base models that have no template of their own.
pub(super) const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
    message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ \
    '<|im_start|>assistant\n' }}{% endif %}";

/// A compiled chat template.
#[derive(Debug)]
pub(super) struct Template {
    environment: Environment<'static>,
    source: String,
    /// `bos_token`, `eos_token`, ...: what `tokenizer_config.json` names.
    tokens: BTreeMap<String, String>,
}

impl Template {
    /// Compiles a template; `tokens` are the special tokens that it may name.
    ///
    /// # Errors
    /// Syntax, with the line.
    pub(super) fn new(source: &str, tokens: BTreeMap<String, String>) -> Result<Self, Error> {
        let refuse = |fact: String| Error::Tokenizer {
            place: NAME.into(),
            fact,
            hint: "set `chat_template` in the config to a template that works",
        };
        if source.len() as u64 > MAX_TEMPLATE_BYTES {
            return Err(refuse(format!("longer than {MAX_TEMPLATE_BYTES} bytes")));
        }
        let mut environment = Environment::new();
        let syntax = minijinja::syntax::SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| refuse(e.to_string()))?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned(NAME, without_generation_tags(source)?)
            .map_err(|e| refuse(e.to_string()))?;
        Ok(Self { environment, source: source.to_owned(), tokens })
    }

    /// The template's text.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// The conversation as the model sees it.
    ///
    /// # Errors
    /// The template raises, fails, works for too long or writes too much.
    pub(super) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, RowFault> {
        let failed = |e: minijinja::Error| RowFault::Template(explain(&e));
        let bytes: usize = messages.iter().map(|m| m.content.len() + m.role.len()).sum();
        let mut output =
            Capped { bytes: Vec::new(), room: bytes.saturating_mul(2).saturating_add(MAX_OUTPUT_BYTES) };
        let values: Vec<Value> = messages
            .iter()
            .map(|m| context! { role => m.role.as_str(), content => m.content.as_str() })
            .collect();
        let names = context! {
            messages => values,
            add_generation_prompt => add_generation_prompt,
            // Templates ask `tools is not none`.
            tools => (),
            documents => (),
            ..Value::from_pairs(self.tokens.iter().map(|(k, v)| (k.as_str(), v.as_str())))
        };
        // A clone shares everything but the fuel.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL.0 + FUEL.1 * messages.len() as u64));
        environment
            .get_template(NAME)
            .and_then(|t| t.render_captured_to(names, &mut output).map(drop))
            .map_err(failed)?;
        String::from_utf8(output.bytes).map_err(|e| RowFault::Template(e.to_string()))
    }

    /// Whether the text of a row would depend on the day without [`TODAY`].
    pub(super) fn asks_for_the_date(&self) -> bool {
        self.source.contains("strftime_now")
    }
}

/// `{% generation %}` marks what transformers counts; masks are found without it here.
fn without_generation_tags(source: &str) -> Result<String, Error> {
    let wrong = |e: regex::Error| Error::Tokenizer {
        place: NAME.into(),
        fact: e.to_string(),
        hint: "please report this",
    };
    let open = regex::Regex::new(r"\{%([-+]?)\s*generation\s*([-+]?)%\}").map_err(wrong)?;
    let close = regex::Regex::new(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}").map_err(wrong)?;
    let opened = open.replace_all(source, "{%$1 if true $2%}");
    Ok(close.replace_all(&opened, "{%$1 endif $2%}").into_owned())
}

fn explain(error: &minijinja::Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::WriteFailure, _) => "the template writes too much".to_owned(),
        (ErrorKind::InvalidOperation, Some(detail)) => match error.line() {
            Some(line) => format!("{detail} (line {line} of the template)"),
            None => detail.to_owned(),
        },
        _ => error.to_string(),
    }
}

fn raise_exception(message: &str) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("the template refuses: {message}")))
}

fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, TODAY)
        .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string()))
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`, as transformers defines the filter.
#[allow(clippy::needless_pass_by_value, reason = "the engine hands options over by value")]
fn tojson(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let failed = |e: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut bytes = Vec::new();
    if let Some(indent) = indent {
        let indent = " ".repeat(indent.min(16));
        let format = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, format)).map_err(failed)?;
    } else {
        value
            .serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, PythonJson))
            .map_err(failed)?;
    }
    String::from_utf8(bytes).map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// Python's separators: `", "` and `": "`.
struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

/// Output that ends in an error where it passes its room.
struct Capped {
    bytes: Vec<u8>,
    room: usize,
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len().saturating_add(bytes.len()) > self.room {
            return Err(io::Error::other("the template writes too much"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
        turns.iter().map(|(role, content)| Message::new(role, content)).collect()
    }

    fn render(source: &str, turns: &[(&str, &str)]) -> Result<String, String> {
        let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        let template = Template::new(source, tokens).map_err(|e| e.to_string())?;
        template.render(&messages(turns), false).map_err(|e| e.to_string())
    }

    #[test]
    fn blocks_leave_no_lines_behind_as_in_transformers() {
        let source = "{{ bos_token }}\n{% for m in messages %}\n  {% if true %}\n{{ m.role }}:{{ m['content'] }}\n  {% endif %}\n{% endfor %}\n";
        assert_eq!(
            render(source, &[("user", "a"), ("assistant", "b")]).unwrap(),
            "<s>\nuser:a\nassistant:b\n"
        );
    }

    #[test]
    fn python_methods_and_transformers_functions_work() {
        for (source, text) in [
            ("{{ messages[0].content.strip().upper() }}", "A <B>"),
            ("{{ messages[0].content.split('<')[-1] }}", "b> "),
            ("{{ messages[0].content.startswith(' a') }}", "True"),
            ("{% for k, v in messages[0].items() %}{{ k }};{% endfor %}", "role;content;"),
            ("{{ messages[0]['content'] | tojson }}", "\" a <b> \""),
            ("{{ {'é': [1, 2], 'b': none} | tojson }}", "{\"é\": [1, 2], \"b\": null}"),
            ("{{ {'a': 1} | tojson(indent=2) }}", "{\n  \"a\": 1\n}"),
            ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
            ("{% generation %}x{% endgeneration %}", "x"),
            ("{{ tools is none }} {{ date_string is defined }}", "True False"),
            ("{% for m in messages %}{% break %}{% endfor %}", ""),
            ("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}", "2"),
        ] {
            let found = render(source, &[("user", " a <b> ")]);
            assert_eq!(found, Ok(text.to_owned()), "{source}");
        }
    }

    #[test]
    fn a_template_that_raises_loops_or_floods_is_an_error_with_its_line() {
        for (source, fact) in [
            ("\n{{ raise_exception('roles must alternate') }}", "roles must alternate (line 2"),
            ("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", "fuel"),
            ("{% for a in range(100000) %}{{ 'x' * 10000 }}{% endfor %}", "too much"),
            ("{{ 'x' * 10000000000 }}", "too large"),
            ("{{ strftime_now('%Q%!') }}", "%"),
            ("{% for", "chat_template"),
            ("{% include 'etc/passwd' %}", "etc/passwd"),
            ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ] {
            let error = render(source, &[("user", "a")]).unwrap_err();
            assert!(error.contains(fact), "{source}: {error}");
        }
    }
}
