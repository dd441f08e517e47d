//! Names from outside become paths here, and only here.

use super::error::Error;
use crate::error::Result;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Longest name that common file systems hold, bytes.
const MAX_NAME_BYTES: usize = 255;

/// Names that Windows reserves for devices, whatever follows their first dot.
const DEVICES: [&str; 22] = [
    "con", "prn", "aux", "nul", "com1", "com2", "com3", "com4", "com5", "com6", "com7", "com8", "com9",
    "lpt1", "lpt2", "lpt3", "lpt4", "lpt5", "lpt6", "lpt7", "lpt8", "lpt9",
];

/// `base` with `relative` (parts divided by `/`) below it.
///
/// # Errors
/// Kind `Usage` where the name is absolute, holds `.`, `..`, `\`, `:`, a control character or an empty part, is a
/// device on Windows, ends in a dot or a space, or has a part of more than 255 bytes. Looks at the text alone:
/// whoever reads the path refuses links.
pub fn safe_join(base: &Path, relative: &str) -> Result<PathBuf> {
    match broken_rule(relative) {
        None => Ok(base.join(relative)),
        Some(rule) => {
            let shown: String = relative.chars().take(60).collect();
            Err(Error::Name { name: shown.escape_debug().to_string(), rule }.into())
        }
    }
}

fn broken_rule(relative: &str) -> Option<&'static str> {
    if relative.is_empty() {
        return Some("it is empty");
    }
    if relative.starts_with('/') {
        return Some("it is absolute");
    }
    if relative.contains('\\') {
        return Some("it contains `\\`");
    }
    if relative.contains(':') {
        return Some("it contains `:`");
    }
    if relative.chars().any(char::is_control) {
        return Some("it contains a control character");
    }
    relative.split('/').find_map(|part| {
        let device = part.split('.').next().unwrap_or(part).trim_end().to_ascii_lowercase();
        match part {
            "" => Some("it has an empty part"),
            "." | ".." => Some("it contains `.` or `..`"),
            _ if part.len() > MAX_NAME_BYTES => Some("a part has more than 255 bytes"),
            _ if part.ends_with(['.', ' ']) => Some("a part ends in a dot or a space"),
            _ if DEVICES.contains(&device.as_str()) => Some("a part is a device name on Windows"),
            _ => None,
        }
    })
}

/// The folder of the ledger, the machine's profile and the caches: `FTTRAIN_HOME`, else `fttrain` in the
/// platform's data folder. It need not exist yet.
pub fn home() -> Result<PathBuf> {
    Ok(home_from(|name| std::env::var_os(name), std::env::home_dir())?)
}

fn home_from(variable: impl Fn(&str) -> Option<OsString>, user: Option<PathBuf>) -> Result<PathBuf, Error> {
    let set = |name| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(home) = set("FTTRAIN_HOME") {
        return Ok(home);
    }
    // The XDG base directory specification: a relative value is to be ignored.
    if let Some(data) = set("XDG_DATA_HOME").filter(|p| p.is_absolute()) {
        return Ok(data.join("fttrain"));
    }
    let user = user.filter(|p| p.is_absolute()).ok_or(Error::NoHome)?;
    let data = if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/share" };
    Ok(user.join(data).join("fttrain"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_are_joined() {
        let base = Path::new("out");
        for name in ["a", "rank-0/optimizer.safetensors", ".lock", "a..b", "ünï", "console", "com10"] {
            assert_eq!(safe_join(base, name).unwrap(), base.join(name), "{name}");
        }
    }

    #[test]
    fn names_that_leave_the_folder_or_that_a_system_cannot_hold_are_refused() {
        let long = "x".repeat(300);
        for name in [
            "",
            "/etc/x",
            "../../etc/x",
            "a/../b",
            "a/./b",
            "a//b",
            "a/",
            "..\\x",
            "\\\\host\\share",
            "C:x",
            "a\0b",
            "a\nb",
            "CON",
            "con.txt",
            "dir/NUL",
            "Aux .x",
            "lpt9",
            "name.",
            "name ",
            &long,
        ] {
            let error = safe_join(Path::new("out"), name).unwrap_err();
            assert_eq!(error.kind, crate::error::Kind::Usage, "{name}");
        }
    }

    #[test]
    fn a_refused_name_is_shown_short_and_escaped() {
        let error = safe_join(Path::new("out"), "a\0b").unwrap_err().to_string();
        assert!(error.contains("`a\\0b`"), "{error}");
        let error = safe_join(Path::new("out"), &"x".repeat(300)).unwrap_err();
        assert!(error.problems[0].message.len() < 200);
    }

    #[test]
    fn home_is_the_variable_then_the_platforms_data_folder() {
        let only = |wanted: &'static str, value: &'static str| {
            move |name: &str| (name == wanted).then(|| OsString::from(value))
        };
        let user = || Some(PathBuf::from("/home/u"));
        assert_eq!(home_from(only("FTTRAIN_HOME", "x"), user()).unwrap(), Path::new("x"));
        assert_eq!(home_from(only("XDG_DATA_HOME", "/d"), user()).unwrap(), Path::new("/d/fttrain"));
        let platform = home_from(only("XDG_DATA_HOME", "relative"), user()).unwrap();
        assert!(platform.starts_with("/home/u") && platform.ends_with("fttrain"));
        assert!(matches!(home_from(only("FTTRAIN_HOME", ""), None), Err(Error::NoHome)));
    }
}
