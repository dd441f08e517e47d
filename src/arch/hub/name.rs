//! The rules for names that become part of an address or of a path in the cache, checked before either is made.

use super::Error;

/// A model's name on the hub, `org/name`.
///
/// # Errors
/// The rule (exit code 2).
pub fn check_repo(name: &str) -> Result<(), Error> {
    let rule = "must be `org/name`, each of letters, digits, `-`, `_`, `.`, at most 96 bytes, with no `..` or `--` and \
                no `-` or `.` at either end";
    let part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !part.contains("..")
            && !part.contains("--")
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
    };
    let valid = name.len() <= 96 && name.split_once('/').is_some_and(|(org, name)| part(org) && part(name));
    verdict(valid, "base_model", name, rule)
}

/// A branch, tag or commit.
///
/// # Errors
/// The rule (exit code 2).
pub fn check_revision(revision: &str) -> Result<(), Error> {
    let rule = "must be a branch, tag or commit of letters, digits, `-`, `_`, `.`, in parts split by single `/`, at \
                most 255 bytes, with no part that begins with `.` or `-` or contains `..`";
    let part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !part.contains("..")
            && !part.starts_with(['-', '.'])
    };
    let valid = revision.len() <= 255 && revision.split('/').all(part);
    verdict(valid, "revision", revision, rule)
}

/// A file at the top of a model's folder.
///
/// # Errors
/// The rule (exit code 2).
pub fn check_file(name: &str) -> Result<(), Error> {
    let rule = "must be a plain file name of letters, digits, `-`, `_`, `.`, at most 255 bytes, that does not begin \
                with `.`";
    let valid = !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    verdict(valid, "file name", name, rule)
}

fn verdict(valid: bool, what: &'static str, name: &str, rule: &'static str) -> Result<(), Error> {
    if valid {
        return Ok(());
    }
    Err(Error::Name { what, name: name.chars().take(120).collect(), rule })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_cache_or_change_the_address_are_refused() {
        for name in [
            "../../x",
            "a/b/c",
            "a",
            "",
            "/a/b",
            "a/",
            "/b",
            "a\\b",
            "a/..",
            "./b",
            "a/b?x",
            "a/b#x",
            "a/b c",
            "a/b%2e",
            "\\\\host\\share",
            "C:/x",
            "a--b/c",
            "a/\0",
            "a/ü",
            "-a/b",
            "a/b.",
        ] {
            assert!(check_repo(name).is_err(), "{name}");
        }
        assert!(check_repo(&format!("a/{}", "b".repeat(95))).is_err());
        for name in ["HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-0.5B", "a/b_c"] {
            assert!(check_repo(name).is_ok(), "{name}");
        }
        for revision in
            ["../..", "", "/main", "main/", "a//b", "a/../b", "a\\b", ".git", "a b", "a?b", "-x", "a%b"]
        {
            assert!(check_revision(revision).is_err(), "{revision}");
        }
        for revision in ["main", "v1.0", "refs/pr/1", "0123456789abcdef0123456789abcdef01234567"] {
            assert!(check_revision(revision).is_ok(), "{revision}");
        }
        for file in ["..\\x", "../x", "/etc/x", "\\\\host\\x", "a/b", "", ".x", "a\0b"] {
            assert!(check_file(file).is_err(), "{file}");
        }
        assert!(check_file(&"a".repeat(300)).is_err());
        assert!(check_file("model-00001-of-00002.safetensors").is_ok());
    }
}
