//! MLflow over its REST interface 2.0: params once, metrics in batches with their steps, the meter's samples as system
//! metrics, fingerprints and cost as tags, the report as artefacts. Where it stands is kept in `mlflow.json` in the
//! run's folder, so that a resume and a later `--to mlflow` go on and send nothing twice.

use super::rest::Rest;
use super::{Error, Run, Tracker};
use crate::config::Output;
use crate::error::Result;
use crate::fs;
use crate::ledger::Sample;
use crate::report::record::{Report, Status};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt::Write;

/// Limits of the server: in a batch at most so many metrics, params and tags, a thousand of all, and a megabyte.
const MOST_METRICS: usize = 800;
const MOST_PARAMS: usize = 90;
/// Characters of a param's value that every version of the server takes.
const MOST_VALUE: usize = 500;
const STATE: &str = "mlflow.json";
/// Files that are sent where the server takes them.
const ARTEFACTS: [&str; 4] = ["report.html", "report.json", "config.resolved.toml", "estimate.json"];

/// The server that a run is sent to.
#[derive(Debug, Clone)]
pub(super) struct Server {
    uri: String,
    experiment: String,
}

impl Server {
    /// As the config names it, else the environment.
    pub(super) fn named(output: &Output) -> Result<Self> {
        let variable = || std::env::var("MLFLOW_TRACKING_URI").ok();
        let is_http = |uri: &String| uri.starts_with("http://") || uri.starts_with("https://");
        let uri =
            output.mlflow_tracking_uri.clone().or_else(variable).filter(is_http).ok_or(Error::NoServer)?;
        let project = Some(&output.project).filter(|project| !project.is_empty());
        let experiment = output.mlflow_experiment_name.as_ref().or(project);
        Ok(Self {
            uri: uri.trim_end_matches('/').to_owned(),
            experiment: experiment.cloned().unwrap_or_else(|| "fttrain".to_owned()),
        })
    }
}

/// A run on the server, and what of it is there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Sent {
    /// The server: another one has nothing yet.
    uri: String,
    run_id: String,
    artifact_uri: String,
    has_params: bool,
    step: u64,
    /// Evaluations.
    evals: usize,
    /// Seconds of the run whose samples are there.
    seconds: f64,
    /// The sample that differences begin with.
    last: Option<(f64, f64)>,
}

/// Sends a run.
pub(super) struct Mlflow {
    server: Server,
    rest: Rest,
    sent: Option<Sent>,
}

struct Metric {
    key: String,
    value: f64,
    at_ms: i64,
    step: u64,
}

impl Tracker for Mlflow {
    fn name(&self) -> &'static str {
        "mlflow"
    }

    fn take(&mut self, run: &mut Run, is_over: bool) -> Result<()> {
        let mut sent = match self.sent.take() {
            Some(sent) => sent,
            None => self.begin(run)?,
        };
        // Whatever was sent before an error stays sent.
        let outcome = self.send(run, &mut sent, is_over);
        keep(run, &sent)?;
        self.sent = Some(sent);
        outcome
    }
}

impl Mlflow {
    pub(super) fn new(server: Server) -> Self {
        Self { rest: Rest::new(&server.uri), server, sent: None }
    }

    /// The run on the server: the one of an earlier process, or a new one.
    fn begin(&self, run: &Run) -> Result<Sent> {
        let kept = fs::read_at_most(&run.folder.join(STATE), 1 << 20).ok();
        let kept: Option<Sent> = kept.and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(sent) = kept.filter(|sent| sent.uri == self.server.uri) {
            return Ok(sent);
        }
        let experiment = self.experiment()?;
        // A process that was killed may have made it and not have kept its name.
        let tag = format!("tags.`fttrain.run_id` = '{}'", run.run_id);
        let found = self.rest.post(
            "/api/2.0/mlflow/runs/search",
            &json!({ "experiment_ids": [experiment], "filter": tag, "max_results": 1 }),
        )?;
        let info = match found["runs"][0]["info"].clone() {
            Value::Null => self.create(run, &experiment)?,
            info => info,
        };
        let field = |name: &str| info[name].as_str().unwrap_or_default().to_owned();
        let sent = Sent {
            uri: self.server.uri.clone(),
            run_id: field("run_id"),
            artifact_uri: field("artifact_uri"),
            ..Sent::default()
        };
        keep(run, &sent)?;
        Ok(sent)
    }

    fn create(&self, run: &Run, experiment: &str) -> Result<Value> {
        let mut tags =
            vec![tag("fttrain.run_id", &run.run_id), tag("fttrain.version", env!("CARGO_PKG_VERSION"))];
        if let Some(row) = &run.row {
            tags.extend([
                tag("fttrain.method", &row.method),
                tag("fttrain.base", &row.base),
                tag("fttrain.purpose", &row.purpose),
                tag("fttrain.project", &row.project),
                tag("fttrain.config_hash", &row.config_hash),
                tag("fttrain.data_hash", &row.data_hash),
                tag("fttrain.base_hash", &row.base_hash),
            ]);
        }
        let body = json!({
            "experiment_id": experiment,
            "run_name": run.run_id,
            "start_time": run.started_ms,
            "tags": tags,
        });
        Ok(self.rest.post("/api/2.0/mlflow/runs/create", &body)?["run"]["info"].clone())
    }

    fn experiment(&self) -> Result<String> {
        let name = percent(&self.server.experiment);
        let path = format!("/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}");
        let id = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        match self.rest.get(&path) {
            Ok(found) => Ok(id(&found["experiment"]["experiment_id"])),
            Err(Error::Refused { status: 404, .. }) => {
                let body = json!({ "name": self.server.experiment });
                Ok(id(&self.rest.post("/api/2.0/mlflow/experiments/create", &body)?["experiment_id"]))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn send(&self, run: &Run, sent: &mut Sent, is_over: bool) -> Result<()> {
        if !sent.has_params {
            self.params(run, sent)?;
            sent.has_params = true;
        }
        self.steps(run, sent)?;
        self.evals(run, sent)?;
        self.samples(run, sent)?;
        if is_over { self.end(run, sent) } else { Ok(()) }
    }

    fn params(&self, run: &Run, sent: &Sent) -> Result<()> {
        let param = |(key, value): (&String, &String)| {
            let value: String = value.trim_matches('"').chars().take(MOST_VALUE).collect();
            json!({ "key": key, "value": value })
        };
        let all: Vec<Value> = run.settings.iter().map(param).collect();
        for params in all.chunks(MOST_PARAMS) {
            self.batch(&json!({ "run_id": sent.run_id, "params": params }))?;
        }
        Ok(())
    }

    fn steps(&self, run: &Run, sent: &mut Sent) -> Result<()> {
        let times = run.times_ms();
        let new: Vec<_> =
            run.steps().iter().zip(&times).filter(|(record, _)| record.step > sent.step).collect();
        for part in new.chunks(MOST_METRICS / 8) {
            let metrics = part.iter().flat_map(|(r, at_ms)| {
                [
                    ("loss", r.loss),
                    ("grad_norm", r.grad_norm),
                    ("learning_rate", r.learning_rate),
                    ("epoch", r.epoch),
                    ("step_s", r.step_s),
                    ("tokens", r.tokens as f64),
                    ("loss_tokens", r.loss_tokens as f64),
                    ("tokens_per_s", r.tokens as f64 / r.step_s),
                ]
                .map(|(key, value)| Metric {
                    key: key.into(),
                    value,
                    at_ms: **at_ms,
                    step: r.step,
                })
            });
            self.metrics(sent, metrics)?;
            sent.step = part.last().map_or(sent.step, |(record, _)| record.step);
        }
        Ok(())
    }

    fn evals(&self, run: &Run, sent: &mut Sent) -> Result<()> {
        let times = run.times_ms();
        let metric = |r: &crate::train::metrics::EvalRecord| Metric {
            key: "eval_loss".into(),
            value: r.loss,
            at_ms: run.time_of(r.step, &times),
            step: r.step,
        };
        let new: Vec<Metric> = run.evals().iter().skip(sent.evals).map(metric).collect();
        self.metrics(sent, new)?;
        sent.evals = sent.evals.max(run.evals().len());
        Ok(())
    }

    fn samples(&self, run: &Run, sent: &mut Sent) -> Result<()> {
        let samples = run.samples(sent.seconds);
        for part in samples.chunks(MOST_METRICS / 4) {
            let mut last = sent.last;
            let metrics: Vec<Metric> = part.iter().flat_map(|sample| system(sample, &mut last)).collect();
            self.metrics(sent, metrics)?;
            sent.last = last;
            sent.seconds = part.last().map_or(sent.seconds, |sample| sample.wall_s);
        }
        Ok(())
    }

    /// The end of it: the whole comparison as metrics, costs as tags, the report as files, and how it ended.
    fn end(&self, run: &Run, sent: &Sent) -> Result<()> {
        let Some(report) = &run.report else { return Ok(()) };
        let now = jiff::Timestamp::now().as_millisecond();
        let steps = report.training.steps;
        self.metrics(sent, compared(report, now, steps))?;
        let known = |name, value: Option<f64>| value.map(|value| tag(name, &value.to_string()));
        let tags: Vec<Value> = [
            Some(tag("fttrain.status", report.status.word())),
            known("fttrain.cost_usd", report.measured.cost_usd),
            known("fttrain.predicted_cost_usd", report.predicted.cost_usd),
            known("fttrain.cost_error_pct", report.error_pct.cost_usd),
            known("fttrain.usd_per_hour", report.price.usd_per_hour),
            report.price.source.as_deref().map(|source| tag("fttrain.price_source", source)),
        ]
        .into_iter()
        .flatten()
        .collect();
        self.batch(&json!({ "run_id": sent.run_id, "tags": tags }))?;
        let status = match report.status {
            Status::Done => "FINISHED",
            Status::Stopped | Status::Killed => "KILLED",
            Status::Running => "RUNNING",
            Status::Failed | Status::Diverged => "FAILED",
        };
        let body = json!({ "run_id": sent.run_id, "status": status, "end_time": now });
        self.rest.post("/api/2.0/mlflow/runs/update", &body)?;
        self.artefacts(run, sent)
    }

    fn artefacts(&self, run: &Run, sent: &Sent) -> Result<()> {
        let Some(root) = sent.artifact_uri.strip_prefix("mlflow-artifacts:/") else {
            return Err(Error::Artefacts.into());
        };
        for name in ARTEFACTS {
            let Ok(bytes) = fs::read_at_most(&run.folder.join(name), 64 << 20) else { continue };
            let path = format!("/api/2.0/mlflow-artifacts/artifacts/{}/{name}", root.trim_matches('/'));
            self.rest.put(&path, &bytes)?;
        }
        Ok(())
    }

    fn metrics(&self, sent: &Sent, metrics: impl IntoIterator<Item = Metric>) -> Result<()> {
        let json = |m: Metric| json!({ "key": m.key, "value": number(m.value), "timestamp": m.at_ms, "step": m.step });
        let all: Vec<Value> = metrics.into_iter().map(json).collect();
        for part in all.chunks(MOST_METRICS) {
            self.batch(&json!({ "run_id": sent.run_id, "metrics": part }))?;
        }
        Ok(())
    }

    fn batch(&self, body: &Value) -> Result<()> {
        self.rest.post("/api/2.0/mlflow/runs/log-batch", body)?;
        Ok(())
    }
}

fn keep(run: &Run, sent: &Sent) -> Result<()> {
    let text = serde_json::to_vec_pretty(sent).unwrap_or_default();
    fs::write_durable(&run.folder.join(STATE), &text)
}

fn tag(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": value })
}

/// JSON has no word for these; the server's own is a string.
fn number(value: f64) -> Value {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    value.into()
}

/// What the meter saw, as the server's own clients name it; 100 % is one core of the process.
fn system(sample: &Sample, last: &mut Option<(f64, f64)>) -> Vec<Metric> {
    let busy = sample.cpu_s.and_then(|cpu_s| {
        let (then_s, then_cpu_s) = last.replace((sample.wall_s, cpu_s))?;
        let share = (cpu_s - then_cpu_s) / (sample.wall_s - then_s);
        // A resumed run begins to count anew.
        (share.is_finite() && share >= 0.0).then_some(100.0 * share)
    });
    let step = format!("{:.0}", sample.wall_s.max(0.0)).parse().unwrap_or(0);
    [
        ("system/process_cpu_utilization_percentage", busy),
        ("system/process_memory_megabytes", sample.rss_bytes.map(|bytes| bytes as f64 / 1e6)),
        ("system/energy_joules", sample.energy_j),
        ("system/cost_usd", sample.cost_usd),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some(Metric { key: key.into(), value: value?, at_ms: sample.at_ms, step }))
    .collect()
}

/// Predicted, measured and the error of each quantity.
fn compared(report: &Report, at_ms: i64, step: u64) -> Vec<Metric> {
    let quantities = crate::report::words::quantities(report);
    let metric = |kind: &str, key: &str, value: Option<f64>| {
        Some(Metric { key: format!("{kind}/{key}"), value: value?, at_ms, step })
    };
    let all = quantities.iter().flat_map(|q| {
        [
            metric("predicted", q.key, q.predicted),
            metric("measured", q.key, q.measured),
            metric("error_pct", q.key, q.error_pct),
        ]
    });
    all.flatten().collect()
}

/// A name inside an address.
fn percent(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_json_cannot_say_is_said_as_the_server_reads_it() {
        assert_eq!(number(f64::NAN), "NaN");
        assert_eq!(number(f64::NEG_INFINITY), "-Infinity");
        assert_eq!(number(0.1), 0.1);
        assert_eq!(percent("a b/ü"), "a%20b%2F%C3%BC");
    }

    #[test]
    fn the_processor_is_a_difference_and_a_resume_is_no_negative_one() {
        let sample = |wall_s, cpu_s| Sample { wall_s, cpu_s: Some(cpu_s), ..Sample::default() };
        let mut last = None;
        let mut busy = |wall_s, cpu_s| {
            let all = system(&sample(wall_s, cpu_s), &mut last);
            all.iter().find(|m| m.key.contains("cpu")).map(|m| m.value)
        };
        assert_eq!(busy(1.0, 10.0), None);
        assert_eq!(busy(3.0, 13.0), Some(150.0));
        assert_eq!(busy(4.0, 0.5), None);
        assert_eq!(busy(5.0, 1.0), Some(50.0));
    }
}
