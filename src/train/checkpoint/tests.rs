//! Every way in which a commit can fail and a folder can be broken.

use super::*;
use crate::fs::fault::{Mode, Plan, rehearse};
use std::fs as disk;
use std::process::Command;
use tempfile::TempDir;

fn manifest(step: u64) -> Manifest {
    Manifest {
        schema: SCHEMA,
        step,
        epoch: 0.1,
        wall_s: 1.5,
        cost_usd: Some(0.001),
        energy_j: None,
        best: Some((step, 2.345_678_901_234_567)),
        bad_evals: 0,
        planned_steps: step + 1,
        config_hash: "c".into(),
        data_hash: "d".into(),
        base_hash: "b".into(),
        build: "0.1.0 avx2".into(),
        device: "cpu".into(),
        dtype: "f32".into(),
        processes: 1,
        files: vec![],
    }
}

fn payload(step: u64, salt: u8) -> Vec<u8> {
    (0..9_500_u64).map(|i| (i * 31 + step).to_le_bytes()[0] ^ salt).collect()
}

fn commit(checkpoints: &mut Checkpoints, step: u64) -> Result<PathBuf> {
    checkpoints.commit(
        manifest(step),
        &mut [
            ("adapter_model.safetensors", &mut |out: &mut dyn Write| out.write_all(&payload(step, 0))),
            ("rank-0/optimizer.safetensors", &mut |out: &mut dyn Write| out.write_all(&payload(step, 1))),
        ],
    )
}

fn with_steps(steps: &[u64]) -> (TempDir, Checkpoints) {
    let out = tempfile::tempdir().unwrap();
    let mut checkpoints = Checkpoints::open(out.path()).unwrap();
    for step in steps {
        commit(&mut checkpoints, *step).unwrap();
    }
    (out, checkpoints)
}

fn names(out: &Path) -> Vec<String> {
    let mut names: Vec<String> = disk::read_dir(out.join("checkpoints"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn taken_step(checkpoints: &Checkpoints) -> Option<u64> {
    checkpoints.latest().unwrap().taken.map(|(_, m)| m.step)
}

#[test]
fn the_newest_is_found_with_all_that_was_committed() {
    let (_out, checkpoints) = with_steps(&[100, 200]);
    let found = checkpoints.latest_or_refuse().unwrap();
    let (path, taken) = found.taken.unwrap();
    assert!(found.skipped.is_empty());
    assert!(path.ends_with("checkpoints/step-00000200"));
    assert_eq!(Manifest { files: vec![], ..taken.clone() }, manifest(200));
    let name = "rank-0/optimizer.safetensors";
    let mut bytes = Vec::new();
    Checkpoints::read(&path, &taken, name, |file, size| {
        file.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        assert_eq!(bytes.len() as u64, size);
        Ok(())
    })
    .unwrap();
    assert_eq!(bytes, payload(200, 1));
    assert!(Checkpoints::read(&path, &taken, "../x", |_, _| Ok(())).is_err());
    let refused = Checkpoints::read(&path, &taken, name, |_, _| Err("not so".to_owned())).unwrap_err();
    assert!(refused.to_string().contains("not so"), "what was not read to its end is hashed to its end");
    disk::write(path.join(name), payload(200, 2)).unwrap();
    let changed = Checkpoints::read(&path, &taken, name, |_, _| Err("not so".to_owned())).unwrap_err();
    assert!(changed.to_string().contains("was changed"), "{changed}");
}

#[test]
fn an_empty_folder_has_no_latest_and_that_is_no_error() {
    let (_out, checkpoints) = with_steps(&[]);
    assert!(checkpoints.latest_or_refuse().unwrap().taken.is_none());
}

#[test]
fn a_failed_commit_at_any_operation_costs_no_earlier_checkpoint() {
    for mode in ["once", "eio", "enospc", "edquot", "eintr", "short"] {
        for n in 1.. {
            let (out, mut checkpoints) = with_steps(&[100]);
            let plan: Plan = format!("{n}:{mode}").parse().unwrap();
            let (outcome, fired) = rehearse(plan, || {
                commit(&mut checkpoints, 200)?;
                checkpoints.prune(Some(1), None)
            });
            if ["eintr", "short"].contains(&mode) {
                outcome.as_ref().unwrap();
            }
            if let Err(error) = &outcome {
                assert_eq!(error.kind, Kind::Resource, "{mode} at {n}");
            }
            let steps = taken_step(&checkpoints);
            assert!(steps == Some(100) || steps == Some(200), "{mode} at {n}: {steps:?}");
            if outcome.is_ok() {
                assert_eq!(names(out.path()), ["step-00000200"], "{mode} at {n}");
            }
            // What stayed behind goes at the next start, and the run goes on.
            let mut again = Checkpoints::open(out.path()).unwrap();
            assert!(names(out.path()).iter().all(|name| name.starts_with("step-")), "{mode} at {n}");
            commit(&mut again, 300).unwrap();
            assert_eq!(taken_step(&again), Some(300));
            if !fired {
                break;
            }
        }
    }
}

#[test]
fn nothing_is_pruned_after_a_commit_that_did_not_reach_the_disk() {
    for n in 1.. {
        let (out, mut checkpoints) = with_steps(&[100]);
        let (failed, fired) = rehearse(Plan::new(n, Mode::Once), || commit(&mut checkpoints, 200).is_err());
        checkpoints.prune(Some(1), None).unwrap();
        assert_eq!(failed, names(out.path()).contains(&"step-00000100".to_owned()), "at {n}");
        if !fired {
            break;
        }
    }
}

/// The part of the next test that is killed.
#[test]
fn killed_process() {
    let (Ok(at), Ok(out)) = (std::env::var("FTTRAIN_KILL_AT"), std::env::var("FTTRAIN_KILL_OUT")) else {
        return;
    };
    rehearse(Plan::new(at.parse().unwrap(), Mode::Kill), || {
        let _lock = fs::RunLock::acquire(Path::new(&out)).unwrap();
        let mut checkpoints = Checkpoints::open(Path::new(&out)).unwrap();
        for step in [1, 2, 3] {
            commit(&mut checkpoints, step).unwrap();
            println!("committed {step}.");
            checkpoints.prune(Some(1), None).unwrap();
        }
    });
}

#[test]
fn killed_at_any_operation_the_last_commit_is_there() {
    for at in 1.. {
        let out = tempfile::tempdir().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "train::checkpoint::tests::killed_process", "--nocapture"])
            .env("FTTRAIN_KILL_AT", at.to_string())
            .env("FTTRAIN_KILL_OUT", out.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout).into_owned();
        let last = [3, 2, 1].into_iter().find(|s| said.contains(&format!("committed {s}.")));
        // The lock of a killed process is free without anyone's help.
        let _lock = fs::RunLock::acquire(out.path()).unwrap();
        let checkpoints = Checkpoints::open(out.path()).unwrap();
        let found = checkpoints.latest_or_refuse().unwrap();
        assert!(found.skipped.is_empty(), "at {at}: {:?}", found.skipped);
        let step = found.taken.map(|(_, m)| m.step);
        // Killed between the rename and the report of it, the next one is there already.
        assert!(step == last || step == Some(last.unwrap_or(0) + 1), "at {at}: {step:?} after {said}");
        assert!(names(out.path()).iter().all(|name| name.starts_with("step-")));
        if child.status.success() {
            assert_eq!(step, Some(3), "{said}");
            assert!(at > 30, "only {at} operations were seen");
            break;
        }
    }
}

#[test]
fn a_cut_at_any_page_and_a_flipped_bit_in_any_kilobyte_are_found() {
    let (_out, checkpoints) = with_steps(&[100, 200]);
    let (newest, taken) = checkpoints.latest().unwrap().taken.unwrap();
    let mut files: Vec<PathBuf> = taken.files.iter().map(|f| newest.join(&f.name)).collect();
    files.push(newest.join("manifest.json"));
    let mut tried = 0;
    for file in files {
        let whole = disk::read(&file).unwrap();
        let cuts = (0..whole.len()).step_by(4096).map(|at| whole[..at].to_vec());
        let flips = (0..whole.len()).step_by(1024).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at / 1024 % 8);
            bytes
        });
        for broken in cuts.chain(flips) {
            disk::write(&file, &broken).unwrap();
            let found = checkpoints.latest().unwrap();
            assert_eq!(found.taken.unwrap().1.step, 100, "{}", file.display());
            assert_eq!(found.skipped.len(), 1);
            tried += 1;
        }
        disk::write(&file, &whole).unwrap();
        assert_eq!(taken_step(&checkpoints), Some(200));
    }
    assert!(tried > 25, "only {tried} damages were tried");
}

#[test]
fn every_single_bit_of_the_manifest_counts() {
    let text = manifest(7).render().unwrap().into_bytes();
    assert_eq!(Manifest::parse(&text).unwrap(), manifest(7));
    for at in 0..text.len() {
        for bit in 0..8 {
            let mut broken = text.clone();
            broken[at] ^= 1 << bit;
            assert!(Manifest::parse(&broken).is_err(), "bit {bit} of byte {at}");
        }
    }
}

/// A manifest whose own hash is right, as somebody who means harm would write it.
fn forge(folder: &Path, change: impl FnOnce(&mut Manifest)) {
    let mut forged = manifest::verify(folder).unwrap();
    change(&mut forged);
    disk::write(folder.join("manifest.json"), forged.render().unwrap()).unwrap();
}

fn refused(change: impl FnOnce(&Path)) -> String {
    let (_out, checkpoints) = with_steps(&[100, 200]);
    let newest = checkpoints.latest().unwrap().taken.unwrap().0;
    change(&newest);
    let mut found = checkpoints.latest().unwrap();
    assert_eq!(found.taken.unwrap().1.step, 100);
    let (path, why) = found.skipped.remove(0);
    assert_eq!(path, newest);
    assert!(newest.symlink_metadata().is_ok(), "a broken one is kept");
    why
}

#[test]
fn broken_folders_are_skipped_with_their_reason_and_kept() {
    let why = refused(|f| disk::remove_file(f.join("manifest.json")).unwrap());
    assert!(why.contains("manifest.json") && why.contains("No such file"), "{why}");
    let why = refused(|f| forge(f, |m| m.schema = 99));
    assert!(why.contains("schema 99"), "{why}");
    let why = refused(|f| forge(f, |m| m.step = 199));
    assert!(why.contains("step 199"), "{why}");
    let why = refused(|f| disk::remove_file(f.join("adapter_model.safetensors")).unwrap());
    assert!(why.contains("adapter_model"), "{why}");
    let why = refused(|f| forge(f, |m| m.files.push(m.files[0].clone())));
    assert!(why.contains("twice"), "{why}");
    let why = refused(|f| disk::write(f.join("manifest.json"), "[".repeat(5000)).unwrap());
    assert!(why.contains("manifest"), "{why}");
}

#[test]
fn names_and_links_that_leave_the_folder_are_refused() {
    for name in ["../step-00000100/adapter_model.safetensors", "/etc/hostname", "a\\b", "CON"] {
        let why = refused(|f| forge(f, |m| m.files[0].name = name.to_owned()));
        assert!(why.contains("cannot be a path"), "{why}");
    }
    let why = refused(|f| {
        let outside = f.parent().unwrap().join("copy");
        disk::rename(f.join("adapter_model.safetensors"), &outside).unwrap();
        std::os::unix::fs::symlink(&outside, f.join("adapter_model.safetensors")).unwrap();
    });
    assert!(why.contains("symbolic link"), "{why}");
    let why = refused(|f| {
        let outside = f.parent().unwrap().join("copy");
        disk::rename(f.join("rank-0"), &outside).unwrap();
        std::os::unix::fs::symlink(&outside, f.join("rank-0")).unwrap();
    });
    assert!(why.contains("symbolic link"), "{why}");
    let why = refused(|f| {
        let outside = f.parent().unwrap().join("copy");
        disk::rename(f, &outside).unwrap();
        std::os::unix::fs::symlink(&outside, f).unwrap();
    });
    assert!(why.contains("symbolic link"), "{why}");
}

#[test]
fn where_none_verifies_the_error_lists_them_all() {
    let (out, checkpoints) = with_steps(&[1, 2]);
    for name in names(out.path()) {
        disk::write(out.path().join("checkpoints").join(name).join("manifest.json"), "{").unwrap();
    }
    let error = checkpoints.latest_or_refuse().unwrap_err();
    assert_eq!(error.kind, Kind::Model);
    let text = error.to_string();
    assert!(text.contains("step-00000001") && text.contains("step-00000002"), "{text}");
}

#[test]
fn a_step_that_is_there_already_gets_a_second_folder_which_is_the_newer() {
    let (out, mut checkpoints) = with_steps(&[5, 5]);
    assert_eq!(names(out.path()), ["step-00000005", "step-00000005-2"]);
    let (path, _) = checkpoints.latest().unwrap().taken.unwrap();
    assert!(path.ends_with("step-00000005-2"));
    checkpoints.prune(Some(1), None).unwrap();
    assert_eq!(names(out.path()), ["step-00000005-2"]);
}

#[test]
fn pruning_keeps_the_newest_the_best_and_the_broken() {
    let (out, mut checkpoints) = with_steps(&[1, 2, 3, 4, 5]);
    disk::write(out.path().join("checkpoints/step-00000002/manifest.json"), "{").unwrap();
    let mut checkpoints_of_a_later_process = Checkpoints::open(out.path()).unwrap();
    checkpoints_of_a_later_process.prune(Some(2), Some(1)).unwrap();
    let kept = ["step-00000001", "step-00000002", "step-00000004", "step-00000005"];
    assert_eq!(names(out.path()), kept);
    checkpoints.prune(None, None).unwrap();
    assert_eq!(names(out.path()), kept);
}

#[test]
fn a_limit_of_zero_keeps_one_and_a_broken_newest_does_not_count_as_it() {
    let (out, _) = with_steps(&[1, 2, 3]);
    disk::write(out.path().join("checkpoints/step-00000003/adapter_model.safetensors"), "x").unwrap();
    let mut checkpoints = Checkpoints::open(out.path()).unwrap();
    checkpoints.prune(Some(0), None).unwrap();
    assert_eq!(names(out.path()), ["step-00000002", "step-00000003"]);
}

#[test]
fn what_could_not_be_read_back_is_not_committed() {
    let (out, mut checkpoints) = with_steps(&[1]);
    let mut bad = manifest(2);
    bad.best = Some((2, f64::NAN));
    assert_eq!(checkpoints.commit(bad, &mut []).unwrap_err().kind, Kind::Bug);
    let reserved: &mut fs::Body<'_> = &mut |_| Ok(());
    assert!(checkpoints.commit(manifest(2), &mut [("manifest.json", reserved)]).is_err());
    assert_eq!(names(out.path()), ["step-00000001"]);
}
