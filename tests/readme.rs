//! The README says what is so: its key reference is the config's own, and what it points at exists.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const BEGIN: &str = "<!-- config reference: generated, do not edit -->\n";
const END: &str = "<!-- end of the config reference -->";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).unwrap()
}

/// With `FTTRAIN_BLESS` set the README is rewritten instead.
#[test]
fn the_key_reference_is_the_one_that_the_config_gives() {
    let readme = readme();
    let start = readme.find(BEGIN).expect("the reference has a begin mark") + BEGIN.len();
    let end = readme.find(END).expect("the reference has an end mark");
    let wanted = format!("\n{}\n", fttrain::config::reference());
    if std::env::var_os("FTTRAIN_BLESS").is_some() {
        let blessed = format!("{}{wanted}{}", &readme[..start], &readme[end..]);
        std::fs::write(root().join("README.md"), blessed).unwrap();
    } else {
        assert!(readme[start..end] == wanted, "run: FTTRAIN_BLESS=1 cargo test --release --test readme");
    }
}

#[test]
fn every_file_that_the_readme_names_exists() {
    let readme = readme();
    let paths: Vec<&str> = readme
        .split(|c: char| c.is_whitespace() || "`()\"'".contains(c))
        .map(|word| word.trim_end_matches(['.', ',', ':', ';']))
        .filter(|word| {
            ["configs/", "src/", "tests/", "benches/", "kernels/", ".ci/"]
                .iter()
                .any(|folder| word.starts_with(folder))
        })
        .collect();
    assert!(paths.len() > 5, "only {paths:?} are named");
    let missing: Vec<&&str> = paths.iter().filter(|p| !root().join(p).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_command_that_the_readme_names_exists() {
    let readme = readme();
    let verbs: BTreeSet<&str> = readme
        .match_indices("fttrain ")
        .filter(|(at, _)| readme[..*at].ends_with(['`', '\n']))
        .filter_map(|(at, found)| readme[at + found.len()..].split([' ', '`', '\n']).next())
        .filter(|verb| verb.starts_with(|c: char| c.is_ascii_lowercase()))
        .collect();
    assert!(verbs.len() > 4, "only {verbs:?} are named");
    for verb in verbs {
        let help = Command::new(env!("CARGO_BIN_EXE_fttrain")).args([verb, "--help"]).output().unwrap();
        assert!(help.status.success(), "{verb}");
    }
}

#[test]
fn the_map_names_every_room() {
    let readme = readme();
    for entry in std::fs::read_dir(root().join("src")).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            let room = entry.file_name().into_string().unwrap();
            assert!(readme.contains(&format!("`{room}/`")), "src/{room} is not in the map");
        }
    }
}
