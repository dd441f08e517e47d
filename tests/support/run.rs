//! Runs the program as a user does: each place has its own `FTTRAIN_HOME` and its own folder for runs, gone when it is
//! dropped. What the machine can do is measured once for all of them.

#![allow(dead_code, unreachable_pub, reason = "each test file takes what it needs")]

use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than any run of these tests takes, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often something is looked at that another process will change.
const GLANCE: Duration = Duration::from_millis(2);
/// The machine's measured rates, below `FTTRAIN_HOME`.
const PROFILE: &str = "profile.json";

/// A home and a folder for runs.
pub struct Place {
    folder: TempDir,
}

/// How a process ended.
pub struct Ended {
    /// Its exit code, or minus the signal that ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    /// A place on a machine that is known already.
    pub fn new() -> Self {
        static MEASURED: OnceLock<Vec<u8>> = OnceLock::new();
        let place = Self::unknown();
        let profile = MEASURED.get_or_init(|| {
            let first = Self::unknown();
            first.run(&["estimate", &golden("llama/lora/run.toml")]).expect(0);
            fs::read(first.home().join(PROFILE)).unwrap()
        });
        fs::create_dir(place.home()).unwrap();
        fs::write(place.home().join(PROFILE), profile).unwrap();
        place
    }

    /// A place on a machine that has never been measured.
    pub fn unknown() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// A path for files and runs of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of the test, written.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The program, in the repository's root, not yet started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fttrain"));
        command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).env("FTTRAIN_HOME", self.home());
        for name in ["FTTRAIN_KERNEL", "FTTRAIN_FAULT", "HF_TOKEN", "COLUMNS"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        Running::start(self.command(arguments)).end()
    }

    /// As [`Self::run`], for runs that take longer than those of the tiny models.
    pub fn run_within(&self, patience: Duration, arguments: &[&str]) -> Ended {
        Running::start(self.command(arguments)).end_within(patience)
    }

    /// As [`Self::run`], with a variable of the environment.
    pub fn run_with(&self, arguments: &[&str], name: &str, value: &str) -> Ended {
        let mut command = self.command(arguments);
        command.env(name, value);
        Running::start(command).end()
    }

    /// Starts the program and leaves it to itself.
    pub fn start(&self, arguments: &[&str]) -> Running {
        Running::start(self.command(arguments))
    }

    /// What `fttrain runs --json` lists.
    pub fn runs(&self) -> Vec<Value> {
        self.run(&["runs", "--json"]).expect(0).json().as_array().unwrap().clone()
    }
}

impl Ended {
    /// Itself, where the exit code is `code`.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }

    /// Itself, where stderr says each of these.
    pub fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "nothing of `{part}` in\n{}", self.stderr);
        }
        self
    }

    /// Standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}:\n{}", self.stdout))
    }
}

/// A started process; killed when it is dropped.
pub struct Running {
    child: Child,
    readers: Option<[thread::JoinHandle<String>; 2]>,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self { child, readers: Some([reader(out), reader(err)]) }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// SIGKILL, and the end of it.
    pub fn kill(self) -> Ended {
        self.signal(nix::sys::signal::Signal::SIGKILL);
        self.end()
    }

    /// Waits until `holds`; false where the process ends first.
    pub fn wait_until(&mut self, mut holds: impl FnMut() -> bool) -> bool {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < PATIENCE, "waited in vain");
            if self.child.try_wait().unwrap().is_some() {
                return holds();
            }
            thread::sleep(GLANCE);
        }
        true
    }

    /// Waits for the process's own end.
    pub fn end(self) -> Ended {
        self.end_within(PATIENCE)
    }

    fn end_within(mut self, patience: Duration) -> Ended {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < patience, "the program does not end");
            thread::sleep(GLANCE);
        };
        let [stdout, stderr] = self.readers.take().unwrap().map(|reader| reader.join().unwrap());
        let code = status.code().or_else(|| status.signal().map(|s| -s)).unwrap();
        Ended { code, stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn reader(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A path below `tests/golden`.
pub fn golden(name: &str) -> String {
    format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A config of top-level lines and, below them, tables.
pub struct Config {
    keys: BTreeMap<String, String>,
    rows: String,
    format: &'static str,
    tables: String,
}

impl Config {
    /// Eight steps of LoRA on the small llama, 18 rows in two epochs, four rows a step.
    pub fn lora() -> Self {
        let mut config = Self {
            keys: BTreeMap::new(),
            rows: golden("llama/rows.jsonl"),
            format: "tokenized",
            tables: String::new(),
        };
        for (key, value) in [
            ("base_model", format!("{:?}", golden("llama")).as_str()),
            ("bf16", "false"),
            ("lora_r", "4"),
            ("lora_dropout", "0.1"),
            ("sequence_len", "64"),
            ("sample_packing", "false"),
            ("micro_batch_size", "2"),
            ("gradient_accumulation_steps", "2"),
            ("max_steps", "8"),
            ("learning_rate", "1e-2"),
            ("warmup_steps", "2"),
        ] {
            config.keys.insert(key.into(), value.into());
        }
        config
    }

    /// One key, as TOML.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.keys.insert(key.into(), value.into());
        self
    }

    /// Without a key.
    pub fn without(mut self, key: &str) -> Self {
        self.keys.remove(key);
        self
    }

    /// Other data.
    pub fn rows(mut self, path: &str, format: &'static str) -> Self {
        self.rows = path.into();
        self.format = format;
        self
    }

    /// A table behind the data.
    pub fn table(mut self, text: &str) -> Self {
        self.tables += text;
        self.tables += "\n";
        self
    }

    /// Written to `name.toml` with `name` as the output folder; the config's path and the folder.
    pub fn write(&self, place: &Place, name: &str) -> (String, PathBuf) {
        let out = place.path(name);
        let mut text = String::new();
        for (key, value) in &self.keys {
            writeln!(text, "{key} = {value}").unwrap();
        }
        if !self.keys.contains_key("output_dir") {
            writeln!(text, "output_dir = {}", quoted(&out)).unwrap();
        }
        let Self { rows, format, tables, .. } = self;
        writeln!(text, "\n[[datasets]]\npath = {rows:?}\ntype = {format:?}\n\n{tables}").unwrap();
        (place.file(&format!("{name}.toml"), &text), out)
    }
}

/// A path as TOML.
pub fn quoted(path: &Path) -> String {
    format!("{:?}", path.to_str().unwrap())
}

pub fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Lines of records without what the clock and the machine's load decide.
pub fn without_times(path: &Path) -> Vec<Value> {
    let mut all = lines(path);
    for record in all.iter_mut().filter_map(Value::as_object_mut) {
        for key in ["step_s", "wall_s", "rss_bytes", "device_bytes"] {
            record.remove(key);
        }
    }
    all
}

/// The keys of an object, in their order.
pub fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Every file below a folder with its bytes, by its relative path.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Names in a folder, sorted; a missing folder has none.
pub fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub fn copy(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// The result and the state of a run: its weights, and both moments of its last checkpoint.
pub fn result(out: &Path) -> (Vec<u8>, Vec<u8>) {
    let weights = ["adapter_model.safetensors", "model.safetensors"];
    let name = weights.into_iter().find(|name| out.join(name).exists()).unwrap();
    let newest = names(&out.join("checkpoints")).pop().unwrap();
    let moments = out.join("checkpoints").join(newest).join("optimizer.safetensors");
    (fs::read(out.join(name)).unwrap(), fs::read(moments).unwrap())
}

/// Two runs are the same but for the clock.
pub fn assert_same(one: &Path, other: &Path, what: &str) {
    assert!(result(one) == result(other), "{what}: other weights or moments");
    for name in ["metrics.jsonl", "eval.jsonl", "retention.jsonl"] {
        assert_eq!(one.join(name).exists(), other.join(name).exists(), "{what}: {name}");
        if !one.join(name).exists() {
            continue;
        }
        assert_eq!(without_times(&one.join(name)), without_times(&other.join(name)), "{what}: {name}");
    }
}

/// The folder of the checkpoint after `step` steps.
pub fn checkpoint(out: &Path, step: u64) -> PathBuf {
    out.join(format!("checkpoints/step-{step:08}"))
}
