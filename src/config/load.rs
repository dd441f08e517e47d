//! Loads a config: read, parse, override, settle, check, resolve.

use super::check::Settled;
use super::error::Problems;
use super::place::Place;
use super::resolved::{self, Resolved};
use super::{MethodFlag, raw, read};
use crate::error::Result;
use std::path::Path;

/// Most bytes of a config; people write a few thousand.
const CONFIG_BYTES: u64 = 1 << 20;

/// Loads the config at `path` as a run under `flag` means it, with `--set` overrides (key, value) put over the file.
///
/// # Errors
/// Kind `Usage`: everything that is wrong, in the order of the places.
pub fn load(path: &Path, flag: Option<MethodFlag>, overrides: &[(String, String)]) -> Result<Resolved> {
    let name = path.display().to_string();
    match read::text(path, CONFIG_BYTES) {
        Ok(text) => parse(&name, &text, flag, overrides),
        Err((place, error)) => {
            let mut problems = Problems::new(&name);
            problems.push(&place, error);
            Err(problems.into_error())
        }
    }
}

/// [`load`] for a text that is already in memory; `name` stands in front of places.
///
/// # Errors
/// As [`load`].
pub fn parse(
    name: &str,
    text: &str,
    flag: Option<MethodFlag>,
    overrides: &[(String, String)],
) -> Result<Resolved> {
    let mut problems = Problems::new(name);
    let mut root = raw::parse(text, &mut problems);
    // Where the text itself is broken its keys are not judged: what seems to be missing may only be unreadable.
    if !problems.is_empty() {
        return Err(problems.into_error());
    }
    for (nth, (key, value)) in overrides.iter().enumerate() {
        if let Err(error) = raw::set(&mut root, key, value, nth) {
            problems.push(&Place::set(nth, key, value), error);
        }
    }
    let mut settled = Settled::new(root, &mut problems);
    let config = settled.check(flag, &mut problems);
    if !problems.is_empty() {
        return Err(problems.into_error());
    }
    let (toml, settings) = resolved::write(&settled);
    Ok(Resolved { config, toml, settings, warnings: problems.into_warnings() })
}
