//! `fttrain report RUN`

use super::place;
use crate::error::Result;
use crate::report;
use crate::train::folder;
use crate::train::screen::Screen;

pub(super) fn run(run: &str, json: bool) -> Result<u8> {
    let path = place::folder_of(run)?.join(folder::REPORT);
    let found = report::json::read(&path)?;
    let text = if json { report::json::to_text(&found)? } else { report::terminal(&found, Screen::stdout()) };
    super::print(&text);
    Ok(0)
}
