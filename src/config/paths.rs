//! Paths and names that a config may hold, judged by their text alone: what no disk, or not every disk, can keep is
//! refused before anything is written.

/// Longest name in a folder, in bytes, on every common disk.
const NAME_BYTES: usize = 255;

/// Names that Windows keeps for devices, whatever their ending.
const DEVICES: [&str; 4] = ["CON", "PRN", "AUX", "NUL"];

/// What is wrong with a path; `written` = a folder will be made there, so its name must travel to any disk.
pub(super) fn fault(path: &str, written: bool) -> Option<String> {
    if path.contains("://") {
        return Some("is an address, not a path or a hub name".to_owned());
    }
    let mut names = path.split(['/', std::path::MAIN_SEPARATOR]);
    if names.any(|name| name.len() > NAME_BYTES) {
        return Some(format!("holds a name that is longer than {NAME_BYTES} bytes"));
    }
    if !written {
        return None;
    }
    let trimmed = path.trim_end_matches(['/', std::path::MAIN_SEPARATOR]);
    let last = trimmed.rsplit(['/', std::path::MAIN_SEPARATOR]).next().unwrap_or(trimmed);
    if matches!(last, "" | "." | "..") {
        return None;
    }
    if last.ends_with(['.', ' ']) {
        return Some("ends in a dot or a space".to_owned());
    }
    let stem = last.split('.').next().unwrap_or(last).to_ascii_uppercase();
    let numbered = |prefix: &str| {
        stem.strip_prefix(prefix).is_some_and(|n| n.len() == 1 && n.as_bytes().iter().all(u8::is_ascii_digit))
    };
    (DEVICES.contains(&stem.as_str()) || numbered("COM") || numbered("LPT"))
        .then(|| format!("ends in {last}, the name of a device on Windows"))
}

/// What is wrong with a branch, tag or commit: it becomes a part of a path in the cache and of a request.
pub(super) fn revision_fault(name: &str) -> Option<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if name.len() > NAME_BYTES {
        return Some(format!("is longer than {NAME_BYTES} bytes"));
    }
    let broken = !name.chars().all(fine)
        || name.contains("..")
        || name.split('/').any(str::is_empty)
        || name.starts_with('.')
        || name.ends_with('.');
    broken.then(|| "is no revision: letters, digits, `.`, `_`, `-` and single `/`, without `..`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_a_disk_cannot_keep_are_refused() {
        for bad in ["runs/CON", "nul.txt", "runs/com1", "out.", "out ", "http://x/y"] {
            assert!(fault(bad, true).is_some(), "{bad}");
        }
        assert!(fault(&format!("runs/{}", "x".repeat(300)), true).is_some());
        for good in ["out", "../out", "/tmp/out/", ".", "runs/{run}", "console", "a.b/c"] {
            assert_eq!(fault(good, true), None, "{good}");
        }
    }

    #[test]
    fn revisions_stay_inside_their_folder() {
        for bad in ["../..", "a//b", "/main", "main/", "a b", "a\\b", "x?y", ".hidden"] {
            assert!(revision_fault(bad).is_some(), "{bad}");
        }
        for good in ["main", "v1.0", "refs/pr/1", "607a30d783dfa663caf39e06633721c8d4cfcd7e"] {
            assert_eq!(revision_fault(good), None, "{good}");
        }
    }
}
