//! A page of plain tables: what a study found.

use super::STYLE;
use super::markup::{esc, policy};
use std::fmt::Write;

/// One table: heading, column titles, rows, and a note beneath it.
pub type Sheet<'a> = (&'a str, Vec<String>, Vec<Vec<String>>, &'a str);

/// Tables under one title.
pub fn study(title: &str, lead: &str, tables: &[Sheet<'_>]) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
         </head>\n<body>\n<main>\n<header><h1>{title}</h1><p>{lead}</p></header>\n",
        policy(STYLE),
        title = esc(title),
        lead = esc(lead)
    );
    for (heading, columns, rows, note) in tables {
        let _ = write!(page, "<section>\n<h2>{}</h2>\n<table>\n<thead><tr>", esc(heading));
        for column in columns {
            let _ = write!(page, "<th scope=\"col\">{}</th>", esc(column));
        }
        page += "</tr></thead>\n<tbody>\n";
        for row in rows {
            page += "<tr>";
            for cell in row {
                let _ = write!(page, "<td>{}</td>", esc(cell));
            }
            page += "</tr>\n";
        }
        let _ = writeln!(page, "</tbody>\n</table>\n<p class=\"note\">{}</p>\n</section>", esc(note));
    }
    page + "</main>\n</body>\n</html>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_stays_text() {
        let page =
            study("a <b>", "lead", &[("head", vec!["x".into()], vec![vec!["<script>".into()]], "note")]);
        assert!(page.contains("a &lt;b&gt;") && page.contains("<td>&lt;script&gt;</td>"), "{page}");
    }
}
