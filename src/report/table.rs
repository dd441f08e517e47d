//! A table for the terminal: columns as wide as their texts, the least needed dropped on a narrow terminal, rows turned
//! into short lists on a very narrow one.

use crate::train::screen::Screen;
use console::{Alignment, measure_text_width, pad_str, truncate_str};

/// Between two columns.
const GAP: usize = 2;

/// One column.
pub struct Column {
    title: String,
    right: bool,
    /// 0 = never dropped; the highest goes first.
    rank: u8,
}

/// Columns and rows of finished texts.
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
    /// The last row is a total.
    total: bool,
}

impl Table {
    /// Without columns or rows.
    pub fn new() -> Self {
        Self { columns: Vec::new(), rows: Vec::new(), total: false }
    }

    /// A column of words.
    #[must_use]
    pub fn left(self, title: impl Into<String>) -> Self {
        self.column(title, false, 0)
    }

    /// A column of numbers.
    #[must_use]
    pub fn right(self, title: impl Into<String>) -> Self {
        self.column(title, true, 0)
    }

    /// A column of numbers that a narrow terminal does without.
    #[must_use]
    pub fn extra(self, title: impl Into<String>, rank: u8) -> Self {
        self.column(title, true, rank)
    }

    fn column(mut self, title: impl Into<String>, right: bool, rank: u8) -> Self {
        self.columns.push(Column { title: title.into(), right, rank });
        self
    }

    /// Adds a row; missing cells stay empty, surplus ones are left out.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut cells: Vec<String> = cells.into_iter().collect();
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
    }

    /// Adds the row under the line.
    pub fn total(&mut self, cells: impl IntoIterator<Item = String>) {
        self.row(cells);
        self.total = true;
    }

    /// The table in lines, none wider than the screen, each indented by two.
    pub fn render(&self, screen: Screen) -> String {
        let room = screen.columns.saturating_sub(GAP);
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        while self.width(&shown) > room {
            let worst = shown.iter().filter_map(|&at| self.columns.get(at).map(|c| (c.rank, at))).max();
            match worst {
                Some((rank, at)) if rank > 0 => shown.retain(|&kept| kept != at),
                _ => return self.stacked(room),
            }
        }
        self.aligned(&shown, screen)
    }

    fn cell_width(&self, at: usize) -> usize {
        let title = self.columns.get(at).map_or(0, |c| measure_text_width(&c.title));
        self.rows
            .iter()
            .filter_map(|row| row.get(at))
            .map(|cell| measure_text_width(cell))
            .fold(title, usize::max)
    }

    fn width(&self, shown: &[usize]) -> usize {
        let cells: usize = shown.iter().map(|&at| self.cell_width(at)).sum();
        cells + GAP * shown.len().saturating_sub(1)
    }

    fn aligned(&self, shown: &[usize], screen: Screen) -> String {
        let line = |cell: &dyn Fn(usize) -> String| {
            let cells: Vec<String> = shown
                .iter()
                .map(|&at| {
                    let right = self.columns.get(at).is_some_and(|c| c.right);
                    let align = if right { Alignment::Right } else { Alignment::Left };
                    pad_str(&cell(at), self.cell_width(at), align, None).into_owned()
                })
                .collect();
            format!("  {}", cells.join("  ")).trim_end().to_owned()
        };
        let rule = format!("  {}\n", "─".repeat(self.width(shown)));
        let titles = line(&|at| self.columns.get(at).map_or_else(String::new, |c| c.title.clone()));
        let mut out = String::new();
        if !titles.is_empty() {
            out = screen.heading(&titles) + "\n" + &rule;
        }
        for (number, row) in self.rows.iter().enumerate() {
            if self.total && number + 1 == self.rows.len() {
                out.push_str(&rule);
            }
            out.push_str(&line(&|at| row.get(at).cloned().unwrap_or_default()));
            out.push('\n');
        }
        out
    }

    /// Each row as a list of `title cell` under its first cell.
    fn stacked(&self, room: usize) -> String {
        let mut out = String::new();
        let mut put = |indent: &str, text: &str| out += &wrap(text, indent, room);
        for row in &self.rows {
            for (at, (cell, column)) in row.iter().zip(&self.columns).enumerate() {
                if at == 0 {
                    put(" ", cell);
                } else if !cell.is_empty() {
                    put("  ", &format!("{} {cell}", column.title));
                }
            }
        }
        out
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

/// A heading with what stands under it.
pub fn section(screen: Screen, title: &str, body: &str) -> String {
    let title = wrap(title, "", screen.columns);
    format!("{}\n{body}", screen.heading(title.trim_end()))
}

/// A title with its text beside it, wrapped under itself; above it where the terminal is narrow.
pub fn hanging(title: &str, title_width: usize, text: &str, columns: usize) -> String {
    if columns < title_width + 28 {
        let above = wrap(title, "  ", columns);
        return above + &wrap(text, "    ", columns);
    }
    let indent = " ".repeat(title_width + GAP);
    let wrapped = wrap(text, &indent, columns);
    let beside = wrapped.strip_prefix(&indent).unwrap_or(&wrapped);
    format!("  {title:<title_width$}{beside}")
}

/// The text in lines of at most `columns`, broken at spaces, each indented.
pub fn wrap(text: &str, indent: &str, columns: usize) -> String {
    let room = columns.saturating_sub(indent.len()).max(1);
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split_whitespace() {
        let mut word = word.to_owned();
        loop {
            let used = lines.last().map_or(0, |l| measure_text_width(l));
            let gap = usize::from(used > 0);
            let wide = measure_text_width(&word);
            if used + gap + wide <= room {
                if let Some(last) = lines.last_mut() {
                    last.push_str(if gap == 1 { " " } else { "" });
                    last.push_str(&word);
                }
                break;
            }
            if used > 0 {
                lines.push(String::new());
                continue;
            }
            // A word wider than the line is cut; at least one character goes, whatever its width.
            let mut head = truncate_str(&word, room, "").into_owned();
            if head.is_empty() {
                head = word.chars().take(1).collect();
            }
            word = word.split_off(head.len());
            lines.pop();
            lines.push(head);
            if word.is_empty() {
                break;
            }
            lines.push(String::new());
        }
    }
    lines.into_iter().fold(String::new(), |all, line| all + indent + &line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table =
            Table::new().left("quantity").right("predicted").extra("interval", 1).right("measured");
        table.row(["time", "12 min 03 s", "11 min – 13 min", "12 min 40 s"].map(String::from));
        table.total(["cost", "$0.10", "", "$0.11"].map(String::from));
        table
    }

    #[test]
    fn columns_are_aligned_and_the_total_stands_under_a_line() {
        assert_eq!(
            table().render(Screen::plain(80)),
            "  quantity    predicted         interval     measured\n\
             \x20 ───────────────────────────────────────────────────\n\
             \x20 time      12 min 03 s  11 min – 13 min  12 min 40 s\n\
             \x20 ───────────────────────────────────────────────────\n\
             \x20 cost            $0.10                         $0.11\n"
        );
    }

    #[test]
    fn a_narrow_terminal_drops_the_extra_column_first() {
        let text = table().render(Screen::plain(45));
        assert!(!text.contains("interval") && text.contains("measured"), "{text}");
    }

    #[test]
    fn no_line_is_wider_than_any_terminal() {
        for columns in 8..90 {
            for line in table().render(Screen::plain(columns)).lines() {
                assert!(measure_text_width(line) <= columns, "{columns}: {line:?}");
            }
        }
        assert!(table().render(Screen::plain(24)).contains("  measured $0.11\n"));
    }

    #[test]
    fn wrapping_keeps_words_and_cuts_only_what_cannot_fit() {
        assert_eq!(wrap("one two three", "  ", 9), "  one two\n  three\n");
        assert_eq!(wrap("abcdefgh", "", 3), "abc\ndef\ngh\n");
        assert_eq!(wrap("語語", "", 1), "語\n語\n");
        assert_eq!(wrap("", "  ", 9), "  \n");
    }
}
