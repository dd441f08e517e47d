//! The tables that ship with the program, and those that users bring: comma-separated, the columns named in the first
//! line, in any order.

use super::error::Error;

/// One row, with its place in the file for what is wrong with it.
pub(crate) struct Row<'a> {
    table: &'static str,
    header: &'a [String],
    fields: Vec<String>,
    line: usize,
}

/// Reads every row of `text` with `read`; blank lines are passed over.
///
/// # Errors
/// Usage, with table and line: a row that is cut, or whatever `read` refuses.
pub(crate) fn read<T>(
    table: &'static str,
    text: &str,
    read: impl Fn(&Row<'_>) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let mut lines = text.lines().enumerate();
    let header = lines.next().map_or_else(Vec::new, |(_, line)| fields(line));
    let mut rows = Vec::new();
    for (index, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let row = Row { table, header: &header, fields: fields(line), line: index + 1 };
        if row.fields.len() != header.len() {
            return Err(row.fault(format!("{} fields, the header has {}", row.fields.len(), header.len())));
        }
        rows.push(read(&row)?);
    }
    Ok(rows)
}

impl Row<'_> {
    /// A column that must be there.
    pub(crate) fn text(&self, column: &str) -> Result<&str, Error> {
        let at = self.header.iter().position(|h| h == column);
        at.and_then(|i| self.fields.get(i))
            .map(String::as_str)
            .ok_or_else(|| self.fault(format!("no column `{column}`")))
    }

    /// A column that may be missing or empty.
    pub(crate) fn optional(&self, column: &str) -> &str {
        self.text(column).unwrap_or_default()
    }

    /// A number from 0, where there is one.
    pub(crate) fn number(&self, column: &str) -> Result<Option<f64>, Error> {
        match self.optional(column) {
            "" => Ok(None),
            written => match written.parse::<f64>() {
                Ok(n) if n.is_finite() && n >= 0.0 => Ok(Some(n)),
                _ => Err(self.fault(format!("`{column}` is `{written}`, not a number from 0"))),
            },
        }
    }

    /// A number from 0 that must be there.
    pub(crate) fn needed(&self, column: &str) -> Result<f64, Error> {
        self.number(column)?.ok_or_else(|| self.fault(format!("`{column}` is empty")))
    }

    /// A whole number, where there is one.
    pub(crate) fn whole(&self, column: &str) -> Result<Option<u64>, Error> {
        match self.optional(column) {
            "" => Ok(None),
            written => written
                .parse()
                .map(Some)
                .map_err(|_| self.fault(format!("`{column}` is `{written}`, not a whole number"))),
        }
    }

    /// An error of this row.
    pub(crate) fn fault(&self, fact: String) -> Error {
        Error::Table { table: self.table, line: self.line, fact }
    }
}

/// Splits a line; quoted fields may hold commas and doubled quotes.
pub(crate) fn fields(line: &str) -> Vec<String> {
    let (mut all, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => all.push(std::mem::take(&mut field)),
            _ => field.push(c),
        }
    }
    all.push(field);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_commas_and_quotes() {
        assert_eq!(fields(r#"a,"b, ""c""",d"#), ["a", "b, \"c\"", "d"]);
    }

    #[test]
    fn a_cut_row_is_refused_with_its_line() {
        let error =
            read("price table", "a,b\n1,2\n\n3\n", |row| row.text("a").map(str::to_owned)).unwrap_err();
        assert!(error.to_string().starts_with("price table:4: 1 fields"), "{error}");
    }
}
