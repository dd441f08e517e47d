//! What the terminal behind stdout or stderr can show: its width, whether it reads UTF-8, whether bold is wanted. Text
//! from outside is made harmless here before it is shown.

use console::Term;
use std::io::IsTerminal;

/// The properties of one output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Screen {
    /// Columns; 80 where there is no terminal.
    pub columns: usize,
    /// UTF-8 is read; otherwise everything is shown in ASCII.
    pub unicode: bool,
    /// Headings may be bold.
    pub bold: bool,
    /// A person watches: lines may be redrawn.
    pub live: bool,
}

impl Screen {
    /// Where results go.
    pub fn stdout() -> Self {
        Self::of(&Term::stdout(), std::io::stdout().is_terminal())
    }

    /// Where progress goes.
    pub fn stderr() -> Self {
        Self::of(&Term::stderr(), std::io::stderr().is_terminal())
    }

    /// A file or a pipe of this width, UTF-8.
    pub fn plain(columns: usize) -> Self {
        Self { columns, unicode: true, bold: false, live: false }
    }

    fn of(term: &Term, is_terminal: bool) -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = variable("TERM").is_some_and(|t| t == "dumb");
        let asked = variable("COLUMNS").and_then(|c| c.parse().ok());
        let seen = || term.size_checked().map(|(_, columns)| usize::from(columns));
        Self {
            columns: asked
                .or_else(|| if is_terminal { seen() } else { None })
                .filter(|c| *c > 0)
                .unwrap_or(80),
            unicode: reads_utf8(variable),
            bold: is_terminal && !dumb && !set("NO_COLOR"),
            live: is_terminal && !dumb,
        }
    }

    /// A heading.
    pub fn heading(self, text: &str) -> String {
        if self.bold { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// The finished text in what the terminal reads: one character for one, so that columns stay where they are.
    pub fn fit(self, text: String) -> String {
        if self.unicode {
            return text;
        }
        text.chars().map(ascii).collect()
    }
}

/// The first of the three variables that is set and not empty decides, as in POSIX.
fn reads_utf8(variable: impl Fn(&str) -> Option<String>) -> bool {
    if cfg!(any(windows, target_os = "macos")) {
        return true;
    }
    ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(variable).find(|v| !v.is_empty()).is_some_and(|v| {
        let v = v.to_ascii_lowercase();
        v.contains("utf-8") || v.contains("utf8")
    })
}

fn ascii(c: char) -> char {
    match c {
        '\0'..='\x7f' => c,
        '–' | '—' | '−' | '─' => '-',
        '━' => '=',
        '…' => '~',
        '×' => 'x',
        'µ' => 'u',
        '·' => '|',
        '→' => '>',
        '“' | '”' => '"',
        '‘' | '’' => '\'',
        '█' => '#',
        '\u{a0}' => ' ',
        _ => '?',
    }
}

/// Text from data, a model or a file as it may be shown: no escape sequences, no changes of direction; line breaks
/// and tabs become spaces.
pub fn visible(text: &str) -> String {
    text.chars()
        .filter(|c| !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
        .map(|c| match c {
            '\n' | '\t' | '\r' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_locale_variable_that_says_something_decides() {
        let with = |all: &[(&str, &str)]| {
            reads_utf8(|name| all.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        if cfg!(target_os = "linux") {
            assert!(with(&[("LANG", "de_DE.UTF-8")]));
            assert!(with(&[("LC_ALL", ""), ("LC_CTYPE", "C.utf8")]));
            assert!(!with(&[("LC_ALL", "C"), ("LANG", "en_US.UTF-8")]));
            assert!(!with(&[]));
        }
    }

    #[test]
    fn without_utf8_every_character_is_ascii_and_columns_stay() {
        let screen = Screen { unicode: false, ..Screen::plain(80) };
        let text = "12 µs – 3 × … → ─ 語".to_owned();
        let shown = screen.fit(text.clone());
        assert!(shown.is_ascii(), "{shown}");
        assert_eq!(shown.chars().count(), text.chars().count());
        assert_eq!(Screen::plain(80).fit(text.clone()), text);
    }

    #[test]
    fn text_from_outside_cannot_drive_the_terminal() {
        let hostile = "a\x1b[2Jb\u{9b}31mc\u{202e}d\ne\0";
        let shown = visible(hostile);
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
        assert!(!shown.contains('\u{202e}'));
        assert!(shown.contains("d e"));
    }

    #[test]
    fn bold_is_an_escape_only_where_it_is_wanted() {
        let mut screen = Screen::plain(80);
        assert_eq!(screen.heading("Cost"), "Cost");
        screen.bold = true;
        assert_eq!(screen.heading("Cost"), "\x1b[1mCost\x1b[0m");
    }
}
