//! The house's import order: a room knows only the rooms to its left.

use std::path::{Path, PathBuf};

const ORDER: [&str; 17] = [
    "error",
    "units",
    "fs",
    "config",
    "arch",
    "data",
    "estimate",
    "ops",
    "ranks",
    "model",
    "meter",
    "ledger",
    "calibrate",
    "train",
    "report",
    "study",
    "cli",
];

/// Rooms that stand side by side: neither may import the other only by accident of the list.
fn rank(room: &str) -> usize {
    ORDER.iter().position(|r| *r == room).unwrap_or_else(|| panic!("`{room}` is not in the import order"))
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn rooms_import_only_from_rooms_to_their_left() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    let mut checked = 0;
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&src).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let room = first.trim_end_matches(".rs");
        if room == "main" || room == "lib" {
            continue;
        }
        for (number, line) in std::fs::read_to_string(&file).unwrap().lines().enumerate() {
            for (at, _) in line.match_indices("crate::") {
                let name: String =
                    line[at + 7..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                if name.is_empty() || line.trim_start().starts_with("//") {
                    continue;
                }
                checked += 1;
                if rank(&name) > rank(room) {
                    wrong.push(format!("{}:{}: {room} imports {name}", relative.display(), number + 1));
                }
            }
        }
    }
    assert!(checked > 20, "only {checked} imports were found: is the pattern still right?");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
