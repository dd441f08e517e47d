//! A grid of real small runs, each predicted before it starts: what the estimate is worth on this machine.

use super::Error;
use super::bench::Bench;
use super::child::Child;
use super::forecast::{corrected, progress_bar, roofline, whole};
use super::grid::{self, Cell, Extent};
use super::reference::Reference;
use super::score::{Pair, Score};
use crate::calibrate::{Profiles, Provenance};
use crate::config::Device;
use crate::error::{Kind, Result};
use crate::estimate::Prediction;
use crate::estimate::history::median;
use crate::estimate::machine::Evidence;
use crate::estimate::running::Rate;
use crate::fs;
use crate::train::metrics::{self, StepRecord};
use fttrain_kernels::sys::cuda::card;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// One run of the grid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its settings.
    pub cell: Cell,
    /// SHA-256 of the prediction, taken before the run started.
    pub prediction_sha256: String,
    /// Predicted, bounds and measured, by the quantity's key.
    pub quantities: BTreeMap<String, Pair>,
    /// Time of the reference loop around the run over its first: above 1 the machine was slower.
    pub drift: f64,
    /// Training time forecast after the first half of the steps, by fttrain's correction.
    pub after_probe: Option<Pair>,
    /// The whole run's at the same moment.
    pub whole_after_probe: Option<Pair>,
    /// The same by the mean of all steps so far, as a progress bar does it.
    pub progress_bar: Option<Pair>,
    /// Step time by FLOPs over the fastest product alone.
    pub roofline: Option<Pair>,
    /// `unattributed` over the peak, %.
    pub unattributed_pct: Option<f64>,
    /// The same run once more at the end of the study, by the quantity's key.
    pub repeated: BTreeMap<String, f64>,
}

/// What a validation found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Validation {
    /// When it began.
    pub started_at: String,
    /// The machine, and the build whose profile was used.
    pub machine: String,
    /// SHA-256 of the profile: every constant that a prediction rests on, frozen before the first run.
    pub profile_sha256: String,
    /// Every run.
    pub rows: Vec<Row>,
    /// By quantity: `step_s`, `wall_s`, `peak_memory_bytes`; `step_s_undrifted` with the machine's own drift taken out.
    pub scores: BTreeMap<String, Score>,
    /// Scatter of the reference loop over the study, (slowest − fastest) / fastest, %.
    pub machine_variation_pct: f64,
    /// What a run differs from itself by, by quantity: the middle of |repeat − first| / first, %.
    pub repeat_variation_pct: BTreeMap<String, f64>,
    /// 1 − error / error of a naive forecast: by FLOPs over the peak before the run, by a progress bar within it.
    pub skill: BTreeMap<String, f64>,
    /// Cells that memory or disk of this machine do not suffice for: they were left out.
    pub left_out: Vec<Cell>,
    /// Cells that there was no time for yet.
    pub not_run: usize,
}

const QUANTITIES: [&str; 3] = ["step_s", "wall_s", "peak_memory_bytes"];

/// What all rows of a study have in common, kept beside them: cut off, it goes on where it was.
struct Study<'a> {
    folder: &'a Path,
    bench: Bench,
    /// As it stood before the first row.
    profile: Vec<u8>,
    begun: Begun,
}

#[derive(Serialize, Deserialize)]
struct Begun {
    started_at: String,
    build: String,
    /// Of the quick grid, which has other cells and steps; the standard one is the full one's beginning.
    is_quick: bool,
    /// What its runs compute on.
    device: String,
    reference: Reference,
}

/// What a study's runs compute on: a CPU by its model and its path, a GPU by its number and its card, of which a machine
/// may have several.
fn label(gpu: Option<usize>) -> String {
    let Some(nth) = gpu else {
        let Provenance { name, kernel, .. } = Provenance::here(1);
        return format!("{} ({name}, {kernel})", Device::Cpu);
    };
    let name = card(nth).map_or_else(String::new, |card| format!(" ({})", card.name));
    format!("{}{name}", Device::Cuda(nth))
}

/// A run of the grid, and the machine that its prediction is of.
type Found = (Row, String);

/// Share of the time that is there for rows; the rest is for their repeats.
const FOR_ROWS: f64 = 0.85;

/// Runs the grid on a GPU or the CPU under `folder`, with the machine's profile copied from `home`, for so many minutes, or
/// to its end; a study that was begun there goes on. `said` hears each row.
///
/// # Errors
/// A run of the grid fails; the folder cannot be written, or holds a study of another build, another grid or another device.
pub fn validate(
    extent: Extent,
    gpu: Option<usize>,
    minutes: Option<f64>,
    folder: &Path,
    home: &Path,
    said: &mut dyn FnMut(usize, usize, &Row),
) -> Result<Validation> {
    let cells = grid::sample(extent, gpu.is_some());
    let study = Study::open(folder, home, extent, gpu, &cells)?;
    let since = Instant::now();
    let is_time = |share: f64| minutes.is_none_or(|m| since.elapsed().as_secs_f64() < 60.0 * m * share);
    let (mut rows, mut left_out, mut not_run, mut machine) = (Vec::new(), Vec::new(), 0, String::new());
    for (at, cell) in cells.iter().enumerate() {
        let known = study.known(at, ROW)?;
        let is_new = known.is_none();
        let found = match known {
            Some(found) => found,
            None if is_time(FOR_ROWS) => study.row(at, cell)?,
            None => {
                not_run += 1;
                continue;
            }
        };
        match found {
            Some((row, name)) => {
                machine = name;
                if is_new {
                    said(at + 1, cells.len(), &row);
                }
                rows.push((at, row));
            }
            None => left_out.push(*cell),
        }
    }
    // Behind the rows: as much time as there is lies between the two.
    for (at, row) in rows.iter_mut().filter(|(at, _)| at.is_multiple_of(grid::REPEAT_EVERY)) {
        row.repeated = match study.known(*at, AGAIN)? {
            Some(repeated) => repeated,
            None if is_time(1.0) => study.again(*at, &row.cell)?,
            None => continue,
        };
    }
    let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    let drifts = || rows.iter().map(|r| r.drift);
    let (slow, fast) = (drifts().fold(f64::MIN, f64::max), drifts().fold(f64::MAX, f64::min));
    let scores = scores(&rows);
    Ok(Validation {
        started_at: study.begun.started_at,
        machine,
        profile_sha256: fs::sha256_bytes(&study.profile),
        skill: skill(&scores),
        scores,
        machine_variation_pct: if rows.is_empty() { 0.0 } else { 100.0 * (slow / fast - 1.0) },
        repeat_variation_pct: repeat_variation(&rows),
        rows,
        left_out,
        not_run,
    })
}

/// What a row leaves when it is done, `null` where the machine does not suffice; and its repeat.
const ROW: &str = "row.json";
const AGAIN: &str = "again.json";

impl<'a> Study<'a> {
    fn open(
        folder: &'a Path,
        home: &Path,
        extent: Extent,
        gpu: Option<usize>,
        cells: &[Cell],
    ) -> Result<Self> {
        let (build, is_quick) = (Provenance::here(1).build, extent == Extent::Quick);
        let (device, wanted) = (label(gpu), gpu.map_or(Device::Cpu, Device::Cuda));
        let file = folder.join("study.json");
        if file.is_file() {
            let broken = |e: serde_json::Error| Error::Write { path: file.clone(), fact: e.to_string() };
            let begun: Begun = serde_json::from_slice(&fs::read_at_most(&file, 1 << 16)?).map_err(broken)?;
            let other = |begun: String| Err(Error::OtherStudy { folder: folder.to_owned(), begun }.into());
            if begun.build != build {
                return other(format!("by build {}", begun.build));
            }
            if begun.device != device {
                return other(format!("on {}, and this is {device}", begun.device));
            }
            if begun.is_quick != is_quick {
                return other(format!("{} --size quick", if is_quick { "without" } else { "with" }));
            }
            let profile = fs::read_at_most(&folder.join(Profiles::FILE), 4 << 20)?;
            return Ok(Self { folder, bench: Bench::new(folder, extent, cells, wanted)?, profile, begun });
        }
        // Before anything is written: a GPU may not open.
        let reference = Reference::start(gpu)?;
        fs::create_folders(folder)?;
        let bench = Bench::new(folder, extent, cells, wanted)?;
        let profile = frozen(folder, home, cells)?;
        let started_at = jiff::Timestamp::now().to_string();
        let begun = Begun { started_at, build, is_quick, device, reference };
        write(&file, &begun)?;
        Ok(Self { folder, bench, profile, begun })
    }

    /// What an earlier start found of a row.
    fn known<T: DeserializeOwned>(&self, at: usize, file: &str) -> Result<Option<T>> {
        let path = self.folder.join(name(at)).join(file);
        if !path.is_file() {
            return Ok(None);
        }
        Ok(serde_json::from_slice(&fs::read_at_most(&path, 1 << 20)?).ok())
    }

    fn row(&self, at: usize, cell: &Cell) -> Result<Option<Found>> {
        let name = name(at);
        let child = self.child(&name, &self.profile)?;
        let found = run(&self.bench, &name, cell, &child, self.begun.reference)?;
        write(&self.folder.join(name).join(ROW), &found)?;
        Ok(found)
    }

    /// The same run once more, its shapes as known as they were to the first: what was measured.
    fn again(&self, at: usize, cell: &Cell) -> Result<BTreeMap<String, f64>> {
        let again = format!("{}-again", name(at));
        let profile = fs::read_at_most(&self.home(&name(at)).join(Profiles::FILE), 4 << 20)?;
        let child = self.child(&again, &profile)?;
        let (config, out) = self.bench.lay(&again, cell)?;
        let report = train(cell, &config, &out, &child)?;
        let measured = |key: &&str| Some(((*key).to_owned(), report.as_ref()?["measured"][*key].as_f64()?));
        let measured = QUANTITIES.iter().filter_map(measured).collect();
        write(&self.folder.join(name(at)).join(AGAIN), &measured)?;
        Ok(measured)
    }

    fn home(&self, name: &str) -> PathBuf {
        self.folder.join(format!("home-{name}"))
    }

    /// The program with a home of its own that holds a profile alone: no row learns from another. What a row left that
    /// was cut off is removed.
    fn child(&self, name: &str, profile: &[u8]) -> Result<Child> {
        let (own, row) = (self.home(name), self.folder.join(name));
        for left in [&own, &row].into_iter().filter(|left| left.is_dir()) {
            fs::remove_folder(left)?;
        }
        fs::create_folders(&own)?;
        fs::write_durable(&own.join(Profiles::FILE), profile)?;
        Child::new(&own)
    }
}

fn name(at: usize) -> String {
    format!("row-{at:03}")
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec(value);
    let text = text.map_err(|e| Error::Write { path: path.to_owned(), fact: e.to_string() })?;
    fs::write_durable(path, &text)?;
    Ok(())
}

/// Runs a cell, and keeps of what it leaves only the records: its weights are noise, and there are many. `None` where
/// memory or disk did not suffice: one cell is no reason to lose an hour.
fn train(cell: &Cell, config: &Path, out: &Path, child: &Child) -> Result<Option<Value>> {
    let path = config.to_string_lossy().into_owned();
    let report = child.json(&[cell.method.to_string(), path, "--json".into()]);
    let checkpoints = out.join("checkpoints");
    if checkpoints.is_dir() {
        fs::remove_folder(&checkpoints)?;
    }
    for name in ["model.safetensors", "adapter_model.safetensors"] {
        let weights = out.join(name);
        if weights.is_file() {
            fs::remove_file(&weights)?;
        }
    }
    match report {
        Err(error) if error.kind == Kind::Resource => Ok(None),
        other => other.map(Some),
    }
}

/// The middle difference of a run from itself, by quantity.
fn repeat_variation(rows: &[Row]) -> BTreeMap<String, f64> {
    let of = |key: &str| {
        let pairs = rows.iter().filter_map(|row| Some((row.quantities.get(key)?, row.repeated.get(key)?)));
        let mut all: Vec<f64> =
            pairs.map(|(first, again)| 100.0 * (again - first.measured).abs() / first.measured).collect();
        (!all.is_empty()).then(|| (key.to_owned(), median(&mut all)))
    };
    QUANTITIES.iter().filter_map(|key| of(key)).collect()
}

/// How much better than the naive forecasts.
fn skill(scores: &BTreeMap<String, Score>) -> BTreeMap<String, f64> {
    let over = |ours: &str, naive: &str| {
        let of = |key: &str| scores.get(key).filter(|s| s.rows > 0).map(|s| s.mean_absolute_pct);
        Some((naive.to_owned(), 1.0 - of(ours)? / of(naive)?)).filter(|(_, skill)| skill.is_finite())
    };
    [over("step_s", "step_s_by_roofline"), over("train_s_after_probe", "train_s_by_progress_bar")]
        .into_iter()
        .flatten()
        .collect()
}

/// The profile as it stands, kept beside the study; an empty one where the machine was never calibrated. Where it was,
/// one thread of it is, too, before cells run on that.
fn frozen(folder: &Path, home: &Path, cells: &[Cell]) -> Result<Vec<u8>> {
    let bytes = fs::read_at_most(&home.join(Profiles::FILE), 4 << 20)
        .unwrap_or_else(|_| Profiles::default().to_json().into_bytes());
    let file = folder.join(Profiles::FILE);
    fs::write_durable(&file, &bytes)?;
    let (profiles, _) = Profiles::load(&file);
    let is_calibrated = |threads| {
        let found = profiles.find(&Provenance::here(threads));
        found.is_some_and(|machine| machine.evidence == Evidence::Calibrated)
    };
    let is_alone = cells.iter().any(|cell| cell.alone);
    if !is_alone || is_calibrated(1) || !is_calibrated(crate::meter::machine::limits().cores) {
        return Ok(bytes);
    }
    let arguments = ["calibrate", "--device", "cpu", "--threads", "1", "--json"];
    Child::new(folder)?.json(&arguments.map(String::from))?;
    fs::read_at_most(&file, 4 << 20)
}

/// Predicts a cell, then runs it; `None` where it does not fit.
fn run(bench: &Bench, name: &str, cell: &Cell, child: &Child, reference: Reference) -> Result<Option<Found>> {
    let (config, out) = bench.lay(name, cell)?;
    let path = config.to_string_lossy().into_owned();
    let before = reference.drift()?;
    let predicted = child.json(&["estimate".into(), path, "--json".into()])?;
    let text = predicted.to_string();
    // Written and hashed before the run starts.
    let prediction_sha256 = fs::sha256_bytes(text.as_bytes());
    fs::write_durable(&config.with_file_name("prediction.json"), text.as_bytes())?;
    fs::write_durable(&config.with_file_name("prediction.sha256"), prediction_sha256.as_bytes())?;
    let prediction: Option<Prediction> = serde_json::from_value(predicted.clone()).ok();
    let needed =
        prediction.as_ref().and_then(|p| Some((p.predicted.peak_memory_bytes?, p.limits.memory_bytes)));
    if needed.is_some_and(|(peak, there)| peak > there) {
        return Ok(None);
    }
    let Some(report) = train(cell, &config, &out, child)? else { return Ok(None) };
    let drift = f64::midpoint(before, reference.drift()?);
    let steps: Vec<StepRecord> = metrics::read(&out.join("metrics.jsonl"))?;
    let quantities = QUANTITIES
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), pair(&predicted, &report, key)?)))
        .collect();
    let rate = prediction.as_ref().and_then(Rate::predicted);
    let row = Row {
        cell: *cell,
        prediction_sha256,
        quantities,
        drift,
        after_probe: corrected(&steps, rate, 0.0, steps.iter().map(|s| s.step_s).sum()),
        whole_after_probe: prediction.as_ref().and_then(|prediction| whole(&steps, prediction, &report)),
        progress_bar: progress_bar(&steps),
        roofline: roofline(prediction.as_ref(), &report, child),
        unattributed_pct: unattributed(&report),
        repeated: BTreeMap::new(),
    };
    Ok(Some((row, prediction.map_or_else(String::new, |p| p.machine))))
}

fn pair(predicted: &Value, report: &Value, key: &str) -> Option<Pair> {
    let measured = report["measured"][key].as_f64().filter(|m| *m > 0.0)?;
    Some(Pair {
        predicted: predicted["predicted"][key].as_f64()?,
        low: predicted["interval"][key]["low"].as_f64()?,
        high: predicted["interval"][key]["high"].as_f64()?,
        measured,
    })
}

fn unattributed(report: &Value) -> Option<f64> {
    let parts = report["memory_parts"].as_array()?;
    let bytes = parts.iter().find(|p| p["name"] == "unattributed")?["measured_bytes"].as_f64()?;
    Some(100.0 * bytes / report["measured"]["peak_memory_bytes"].as_f64()?)
}

fn scores(rows: &[Row]) -> BTreeMap<String, Score> {
    let of =
        |pairs: &dyn Fn(&Row) -> Option<Pair>| Score::of(&rows.iter().filter_map(pairs).collect::<Vec<_>>());
    let mut scores: BTreeMap<String, Score> = QUANTITIES
        .iter()
        .map(|key| ((*key).to_owned(), of(&|row| row.quantities.get(*key).copied())))
        .collect();
    let undrifted = |row: &Row| {
        let pair = row.quantities.get("step_s")?;
        Some(Pair { measured: pair.measured / row.drift, ..*pair })
    };
    scores.insert("step_s_undrifted".into(), of(&undrifted));
    scores.insert("train_s_after_probe".into(), of(&|row| row.after_probe));
    scores.insert("wall_s_after_probe".into(), of(&|row| row.whole_after_probe));
    scores.insert("train_s_by_progress_bar".into(), of(&|row| row.progress_bar));
    scores.insert("step_s_by_roofline".into(), of(&|row| row.roofline));
    scores
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(first: f64, again: Option<f64>) -> Row {
        let pair = Pair { predicted: first, low: first, high: first, measured: first };
        Row {
            cell: grid::sample(Extent::Quick, false)[0],
            prediction_sha256: String::new(),
            quantities: BTreeMap::from([("step_s".to_owned(), pair)]),
            drift: 1.0,
            after_probe: None,
            whole_after_probe: None,
            progress_bar: None,
            roofline: None,
            unattributed_pct: None,
            repeated: again.map(|s| ("step_s".to_owned(), s)).into_iter().collect(),
        }
    }

    #[test]
    fn a_run_is_held_against_itself() {
        let rows = [row(1.0, Some(1.1)), row(2.0, Some(1.6)), row(4.0, Some(4.0)), row(9.0, None)];
        let varied = repeat_variation(&rows);
        assert!((varied["step_s"] - 10.0).abs() < 1e-9, "{varied:?}");
        assert!(!varied.contains_key("wall_s"));
    }

    fn begun(folder: &Path, build: &str, device: &str) -> Begun {
        let reference = serde_json::from_str(r#"{"first_s":1.0}"#).unwrap();
        let (started_at, build, device) = ("then".into(), build.into(), device.into());
        let begun = Begun { started_at, build, is_quick: true, device, reference };
        write(&folder.join("study.json"), &begun).unwrap();
        std::fs::write(folder.join(Profiles::FILE), "the profile of then").unwrap();
        begun
    }

    #[test]
    fn a_study_goes_on_with_what_it_began_with_and_without_what_was_cut_off() {
        let (folder, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folder = folder.path();
        begun(folder, &Provenance::here(1).build, &label(None));
        let study = Study::open(folder, home.path(), Extent::Quick, None, &[]).unwrap();
        assert_eq!(
            (study.begun.started_at.as_str(), &study.profile[..]),
            ("then", &b"the profile of then"[..])
        );
        std::fs::create_dir_all(folder.join("row-003/out")).unwrap();
        assert!(study.known::<Option<Found>>(3, ROW).unwrap().is_none(), "it was cut off");
        study.child(&name(3), &study.profile).unwrap();
        assert!(!folder.join("row-003").exists() && folder.join("home-row-003").is_dir());
        let done: Option<Found> = Some((row(1.0, Some(2.0)), "a machine".into()));
        std::fs::create_dir_all(folder.join("row-004")).unwrap();
        write(&folder.join("row-004").join(ROW), &done).unwrap();
        assert_eq!(study.known::<Option<Found>>(4, ROW).unwrap(), Some(done));
    }

    #[test]
    fn a_study_of_another_build_grid_or_device_is_left_alone() {
        let refused = |build: &str, device: &str, extent: Extent| {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path();
            begun(folder, build, device);
            let cells = grid::sample(extent, false);
            let error = Study::open(folder, folder, extent, None, &cells).map(drop).unwrap_err();
            assert_eq!(error.kind, Kind::Usage);
            assert_eq!(std::fs::read_dir(folder).unwrap().count(), 2, "the study and its profile");
            error.to_string()
        };
        let ours = Provenance::here(1).build;
        assert!(refused("0.0.0 another", &label(None), Extent::Quick).contains("by build 0.0.0 another"));
        assert!(refused(&ours, &label(None), Extent::Full).contains("with --size quick"));
        for other in ["cuda:0 (NVIDIA Test)", "cpu (another, portable)"] {
            let error = refused(&ours, other, Extent::Quick);
            assert!(error.contains(&format!("on {other}, and this is {}", label(None))), "{error}");
        }
    }

    #[test]
    fn skill_is_the_share_of_a_naive_error_that_is_gone() {
        let score = |pct| Score { rows: 3, mean_absolute_pct: pct, ..Score::default() };
        let scores = BTreeMap::from([
            ("step_s".to_owned(), score(5.0)),
            ("step_s_by_roofline".to_owned(), score(50.0)),
            ("train_s_after_probe".to_owned(), score(3.0)),
            ("train_s_by_progress_bar".to_owned(), score(2.0)),
        ]);
        let found = skill(&scores);
        assert!((found["step_s_by_roofline"] - 0.9).abs() < 1e-9);
        assert!((found["train_s_by_progress_bar"] + 0.5).abs() < 1e-9, "worse than naive is below 0");
    }
}
