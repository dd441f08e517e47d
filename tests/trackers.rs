//! Where people already look: a run is there as its own records say, and a tracker that is down changes nothing of it.

#[path = "support/run.rs"]
mod run;

use run::{Config, Place, json, lines, names};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn tracked(trackers: &str) -> Config {
    Config::lora()
        .with("max_steps", "130")
        .with("eval_steps", "50")
        .with("val_set_size", "3")
        .with("project", "\"support\"")
        .with("report_to", trackers)
        .table("[cost]\nusd_per_hour = 3.5")
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_tracker_that_is_down_is_said_and_changes_nothing() {
    let place = Place::new();
    let server = format!("\"http://127.0.0.1:{}\"", free_port());
    let (plain, alone) = tracked("[]").write(&place, "alone");
    place.run(&["--lora", &plain]).expect(0);
    let config = tracked("[\"mlflow\", \"csv\", \"tensorboard\"]").with("mlflow_tracking_uri", &server);
    let (path, out) = config.write(&place, "tracked");
    let later = format!("fttrain report {} --to mlflow", out.display());
    place.run(&["--lora", &path]).expect(0).says(&["warning: mlflow: the server does not answer", &later]);
    run::assert_same(&alone, &out, "followed by trackers");
    assert_eq!(json(&out.join("report.json"))["status"], "done");
    // The others have it all the same.
    let table = fs::read_to_string(out.join("metrics.csv")).unwrap();
    let losses: Vec<&str> = table.lines().skip(1).filter_map(|line| line.split(',').nth(2)).collect();
    let recorded: Vec<String> =
        lines(&out.join("metrics.jsonl")).iter().map(|r| r["loss"].to_string()).collect();
    assert_eq!(losses, recorded);
    assert_eq!(names(&out.join("tensorboard")).len(), 1);
    let sent = place.run(&["report", out.to_str().unwrap(), "--to", "mlflow"]).expect(5);
    sent.says(&["does not answer", "hint"]);
    place
        .run(&["report", out.to_str().unwrap(), "--to", "wandb"])
        .expect(2)
        .says(&["mlflow, tensorboard, csv"]);
}

#[test]
fn mlflow_without_a_server_is_refused_before_anything_is_written() {
    let place = Place::new();
    let (path, out) = tracked("[\"mlflow\"]").write(&place, "run");
    place.run(&["--lora", &path]).expect(2).says(&["mlflow_tracking_uri"]);
    assert!(!out.exists());
}

fn python() -> PathBuf {
    std::env::var_os("FTTRAIN_PYTHON")
        .expect("FTTRAIN_PYTHON names a Python with mlflow and tensorboard")
        .into()
}

/// A real server, gone when it is dropped.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(folder: &Path, port: u16) -> Self {
        let log = fs::File::create(folder.join("mlflow.log")).unwrap();
        let child = Command::new(python())
            .args([
                "-m",
                "mlflow",
                "server",
                "--host",
                "127.0.0.1",
                "--workers",
                "1",
                "--port",
                &port.to_string(),
            ])
            .args(["--backend-store-uri", &format!("sqlite:///{}", folder.join("mlflow.db").display())])
            .args(["--artifacts-destination", folder.join("artefacts").to_str().unwrap()])
            .env("MLFLOW_DISABLE_TELEMETRY", "true")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group()
            .spawn()
            .unwrap();
        let server = Self { child, address: format!("127.0.0.1:{port}") };
        let begun = Instant::now();
        while std::net::TcpStream::connect(&server.address).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(180), "the server does not start");
            std::thread::sleep(Duration::from_millis(100));
        }
        server
    }
}

/// A group of its own: the server has workers.
trait Grouped {
    fn process_group(&mut self) -> &mut Self;
}

impl Grouped for Command {
    fn process_group(&mut self) -> &mut Self {
        std::os::unix::process::CommandExt::process_group(self, 0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// What MLflow's own client says of the run with this tag.
const ASK_MLFLOW: &str = r#"
import json, sys, tempfile, pathlib, mlflow
from mlflow.tracking import MlflowClient
uri, run_id = sys.argv[1:3]
mlflow.set_tracking_uri(uri)
client = MlflowClient(uri)
experiment = client.get_experiment_by_name("support")
runs = client.search_runs([experiment.experiment_id], f"tags.`fttrain.run_id` = '{run_id}'")
assert len(runs) == 1, runs
run = runs[0]
history = {key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics}
with tempfile.TemporaryDirectory() as folder:
    report = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="report.json", dst_path=folder)
    report = json.loads(pathlib.Path(report).read_text())
    files = sorted(f.path for f in client.list_artifacts(run.info.run_id))
print(json.dumps(dict(status=run.info.status, params=run.data.params, tags=run.data.tags, history=history, files=files,
                      report=report)))
"#;

fn ask(script: &str, arguments: &[&str]) -> Value {
    let output = Command::new(python())
        .args(["-c", script])
        .args(arguments)
        .env("MLFLOW_DISABLE_TELEMETRY", "true")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

/// Σ over steps as a server holds them: one value a step, in their order.
fn history(found: &Value, key: &str) -> Vec<(u64, f64)> {
    let mut all: Vec<(u64, f64)> = serde_json::from_value(found["history"][key].clone()).unwrap();
    all.sort_by_key(|(step, _)| *step);
    all
}

fn recorded(out: &Path, file: &str) -> Vec<(u64, f64)> {
    let value = |r: &Value| (r["step"].as_u64().unwrap(), r["loss"].as_f64().unwrap());
    lines(&out.join(file)).iter().map(value).collect()
}

#[test]
#[ignore = "needs FTTRAIN_PYTHON with mlflow"]
fn mlflow_has_every_step_the_params_the_cost_and_the_report() {
    let place = Place::new();
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let address = format!("http://127.0.0.1:{port}");
    let config = || tracked("[\"mlflow\"]").with("mlflow_tracking_uri", &format!("{address:?}"));
    let (path, early) = config().write(&place, "early");
    place.run(&["--lora", &path]).expect(0).says(&["warning: mlflow: the server does not answer"]);
    let _server = Server::start(folder.path(), port);
    let (path, out) = config().write(&place, "run");
    let ended = place.run_within(Duration::from_secs(240), &["--lora", &path]).expect(0);
    assert!(!ended.stderr.contains("warning: mlflow"), "{}", ended.stderr);
    let id = fs::read_to_string(out.join("run_id")).unwrap().trim().to_owned();
    let found = ask(ASK_MLFLOW, &[&address, &id]);
    assert_eq!(found["status"], "FINISHED");
    assert_eq!(history(&found, "loss"), recorded(&out, "metrics.jsonl"));
    assert_eq!(history(&found, "eval_loss"), recorded(&out, "eval.jsonl"));
    assert_eq!(found["params"]["lora_r"], "4");
    assert_eq!(found["params"]["cost.usd_per_hour"], "3.5");
    let report = json(&out.join("report.json"));
    assert_eq!(found["report"], report);
    assert_eq!(found["tags"]["fttrain.data_hash"], report["provenance"]["data_hash"]);
    let cost: f64 = found["tags"]["fttrain.cost_usd"].as_str().unwrap().parse().unwrap();
    assert_eq!(Some(cost), report["measured"]["cost_usd"].as_f64());
    assert!(!history(&found, "system/process_memory_megabytes").is_empty());
    assert!(found["files"].as_array().unwrap().contains(&Value::from("report.html")));
    // It goes on: nothing is there twice, and the new steps are.
    place
        .run_within(Duration::from_secs(240), &["resume", out.to_str().unwrap(), "--set", "max_steps=140"])
        .expect(0);
    place
        .run_within(Duration::from_secs(240), &["report", out.to_str().unwrap(), "--to", "mlflow"])
        .expect(0);
    let found = ask(ASK_MLFLOW, &[&address, &id]);
    assert_eq!(history(&found, "loss"), recorded(&out, "metrics.jsonl"));
    assert_eq!(history(&found, "loss").len(), 140);
    // A run that was over before there was a server is sent whole.
    place
        .run_within(Duration::from_secs(240), &["report", early.to_str().unwrap(), "--to", "mlflow"])
        .expect(0);
    let id = fs::read_to_string(early.join("run_id")).unwrap().trim().to_owned();
    let found = ask(ASK_MLFLOW, &[&address, &id]);
    assert_eq!(history(&found, "loss"), recorded(&early, "metrics.jsonl"));
    assert_eq!(history(&found, "eval_loss"), recorded(&early, "eval.jsonl"));
    assert_eq!((&found["status"], &found["report"]), (&"FINISHED".into(), &json(&early.join("report.json"))));
}

const ASK_TENSORBOARD: &str = r#"
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
found.Reload()
print(json.dumps({"history": {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}}))
"#;

#[test]
#[ignore = "needs FTTRAIN_PYTHON with tensorboard"]
fn tensorboards_own_reader_finds_every_step() {
    let place = Place::new();
    let (path, out) = tracked("[\"tensorboard\"]").write(&place, "run");
    place.run(&["--lora", &path]).expect(0);
    // A resumed run says everything again, in one file.
    place.run(&["resume", out.to_str().unwrap(), "--set", "max_steps=140"]).expect(0);
    let found = ask(ASK_TENSORBOARD, &[out.join("tensorboard").to_str().unwrap()]);
    let single = |all: Vec<(u64, f64)>| -> Vec<(u64, f64)> {
        #[allow(clippy::cast_possible_truncation, reason = "an event file holds floats of four bytes")]
        all.into_iter().map(|(step, loss)| (step, f64::from(loss as f32))).collect()
    };
    assert_eq!(history(&found, "loss"), single(recorded(&out, "metrics.jsonl")));
    assert_eq!(history(&found, "eval_loss"), single(recorded(&out, "eval.jsonl")));
    assert!(!history(&found, "tokens_per_s").is_empty());
}
