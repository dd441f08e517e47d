//! What the program itself takes beside its ops: its start, the tokenizer, the record of a step.

use super::probe::stand_in;
use super::stopwatch::Patience;
use crate::data::tokenizer::{Tokenizer, TokenizerFiles};
use crate::data::{Batch, Sample};
use crate::error::Result;
use crate::estimate::Machine;
use crate::fs::{self, Appender};
use crate::ledger::Ledger;
use crate::meter::process::resident;
use rayon::prelude::*;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The quickstart's tokenizer, and a text to tokenise: how fast it goes depends on the text more than on the vocabulary.
const TOKENIZER: &str = include_str!("../../configs/quickstart/model/tokenizer.json");
const TEXT: &str = include_str!("../../configs/quickstart/world.txt");
const VOCABULARY: usize = 2048;
/// Length of a line of metrics.jsonl.
const RECORD_CHARS: usize = 300;
/// Tokens of the batch that a step is laid out for.
const BATCH_TOKENS: usize = 1024;
/// Times that a start is watched: each is a process.
const STARTS: Patience = Patience { budget: Duration::ZERO, least: 3 };

/// Start-up, tokenizer and the record of a step, with files under `home`.
///
/// # Errors
/// The disk under `home` cannot be written.
pub fn measure(machine: &mut Machine, home: &Path, patience: Patience) -> Result<()> {
    let folder = home.join("calibrate.tmp");
    fs::create_folders(&folder)?;
    let measured = start(&folder).and_then(|startup_s| {
        machine.startup_s = startup_s;
        machine.tokenise_tokens_per_s = tokenise(&folder, patience)?;
        machine.step_overhead_s = step(&folder, patience)?;
        Ok(())
    });
    fs::remove_folder(&folder)?;
    measured
}

/// Seconds from the start of the process to its first look at the ledger.
fn start(folder: &Path) -> Result<f64> {
    let program = std::env::current_exe().ok();
    let timed = STARTS.time(&mut || {
        if let Some(program) = &program {
            let mut command = Command::new(program);
            command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            // A program that cannot be started again takes no time that could be told.
            let _ = command.status();
        }
        Ledger::open(folder).map(drop)
    })?;
    Ok(timed.typical_s)
}

/// Tokens per second on all threads.
fn tokenise(folder: &Path, patience: Patience) -> Result<f64> {
    let file = folder.join("tokenizer.json");
    fs::write_durable(&file, TOKENIZER.as_bytes())?;
    let files = TokenizerFiles { tokenizer_json: file, ..TokenizerFiles::default() };
    let mut arch = stand_in(64, 64);
    arch.vocab_size = VOCABULARY;
    let tokenizer = Tokenizer::from_files(&files, &arch, None)?;
    let lines: Vec<&str> = TEXT.lines().collect();
    let encode = || lines.par_iter().map(|line| tokenizer.encode(line).map_or(0, |ids| ids.len())).sum();
    let tokens: usize = encode();
    let timed = patience.time(&mut || {
        std::hint::black_box::<usize>(encode());
        Ok(())
    })?;
    Ok(tokens.max(1) as f64 / timed.typical_s)
}

/// Seconds that a step takes beside its ops: its batch, a look at the memory, a line of records.
fn step(folder: &Path, patience: Patience) -> Result<f64> {
    let mut records = Appender::open(&folder.join("metrics.jsonl"))?;
    let line = "x".repeat(RECORD_CHARS);
    let sample = Sample { ids: vec![1; BATCH_TOKENS], labels: vec![1; BATCH_TOKENS] };
    let timed = patience.time(&mut || {
        std::hint::black_box(Batch::new([&sample], 0));
        std::hint::black_box(resident());
        records.line(&line)
    })?;
    Ok(timed.typical_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_a_step_and_a_tokenizer_take_some_time_and_leave_no_file() {
        let home = tempfile::tempdir().unwrap();
        let mut machine = Machine::assumed("test", 1);
        let before = [machine.startup_s, machine.step_overhead_s, machine.tokenise_tokens_per_s];
        measure(&mut machine, home.path(), Patience { budget: Duration::ZERO, least: 1 }).unwrap();
        let after = [machine.startup_s, machine.step_overhead_s, machine.tokenise_tokens_per_s];
        assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() > 0.0), "{after:?}");
        assert!(machine.is_sound() && after.iter().all(|v| *v > 0.0), "{after:?}");
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    }
}
