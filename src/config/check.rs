//! From what is written to what is meant: every table settled, every rule between keys applied, and a [`Config`] out
//! of it. Where something is wrong the config is made all the same, so that nothing hides behind the first fault, and
//! is then thrown away.

use super::error::Problems;
use super::keys::Table;
use super::method::{self, MethodFlag, place_of};
use super::place::Place;
use super::raw::{Entry, Value};
use super::section::{Origin, Section};
use super::{
    Base, Budget, Config, Data, Device, Error, ExcessLength, LrScheduler, Meter, OnBadRow, Optimizer, Output,
    Schedule, Tracker, Train, TrainOnEos, ValSet, Warmup, cost, sources,
};
use std::path::PathBuf;

/// All tables of a config, settled.
pub(super) struct Settled {
    pub(super) top: Section,
    pub(super) datasets: Vec<Section>,
    pub(super) test_datasets: Vec<Section>,
    pub(super) retention_datasets: Vec<Section>,
    pub(super) cost: Section,
    pub(super) budget: Section,
    pub(super) meter: Section,
}

impl Settled {
    /// Settles each table by itself.
    pub(super) fn new(root: Vec<Entry>, problems: &mut Problems) -> Self {
        let mut top = Vec::new();
        let mut sections = Table::SECTIONS.map(|(_, table)| (table, Vec::new()));
        for entry in root {
            match Table::section(&entry.name) {
                Some(table) => {
                    let members = members(entry, problems);
                    if let Some((_, all)) = sections.iter_mut().find(|(t, _)| *t == table) {
                        *all = members;
                    }
                }
                None if entry.name == "lifecycle" => problems.push(
                    &entry.place,
                    Error::NotAvailable { what: "the table [lifecycle]".to_owned(), instead: "remove it" },
                ),
                None => top.push(entry),
            }
        }
        let top = Section::settle(Table::Top, top, &Place::File, problems);
        let [cost, budget, meter] =
            sections.map(|(table, entries)| Section::settle(table, entries, &Place::File, problems));
        let mut rows = |name: &str| -> Vec<Section> {
            top.rows(name)
                .into_iter()
                .map(|(place, entries)| Section::settle(Table::Dataset, entries, &place, problems))
                .collect()
        };
        Self {
            datasets: rows("datasets"),
            test_datasets: rows("test_datasets"),
            retention_datasets: rows("retention_datasets"),
            top,
            cost,
            budget,
            meter,
        }
    }

    /// Applies the rules between keys.
    pub(super) fn check(&mut self, flag: Option<MethodFlag>, problems: &mut Problems) -> Config {
        let method = method::settle(&mut self.top, flag, problems);
        self.name_roles();
        self.check_evaluation(problems);
        self.check_retention(problems);
        Config {
            base: base(&self.top),
            method: method::meant(&self.top, method, problems),
            data: self.data(problems),
            train: train(&mut self.top, problems),
            schedule: schedule(&self.top),
            output: output(&self.top, problems),
            cost: cost::meant(&mut self.cost, problems),
            budget: budget(&self.budget),
            meter: Meter { interval_ms: self.meter.count("interval_ms").unwrap_or_default() },
        }
    }

    fn data(&mut self, problems: &mut Problems) -> Data {
        let mut rows =
            |rows: &mut Vec<Section>| rows.iter_mut().map(|row| sources::meant(row, problems)).collect();
        let (datasets, test_datasets) = (rows(&mut self.datasets), rows(&mut self.test_datasets));
        let retention_datasets = rows(&mut self.retention_datasets);
        let top = &self.top;
        Data {
            datasets,
            test_datasets,
            retention_datasets,
            retention_share: top.real("retention_share").unwrap_or_default(),
            val_set: val_set(top),
            sequence_len: top.size("sequence_len").unwrap_or_default(),
            excess_length: match top.text("excess_length_strategy") {
                Some("truncate") => ExcessLength::Truncate,
                Some("raise") => ExcessLength::Raise,
                _ => ExcessLength::Drop,
            },
            sample_packing: top.flag("sample_packing").unwrap_or_default(),
            train_on_inputs: top.flag("train_on_inputs").unwrap_or_default(),
            roles_to_train: top.texts("roles_to_train").unwrap_or_default(),
            train_on_eos: match top.text("train_on_eos") {
                Some("all") => TrainOnEos::All,
                Some("last") => TrainOnEos::Last,
                Some("none") => TrainOnEos::None,
                _ => TrainOnEos::Turn,
            },
            chat_template: top.text("chat_template").map(str::to_owned),
            shuffle: top.flag("shuffle").unwrap_or_default(),
            on_bad_row: match top.text("on_bad_row") {
                Some("skip") => OnBadRow::Skip,
                _ => OnBadRow::Fail,
            },
            max_line_bytes: top.count("max_line_bytes").unwrap_or_default(),
        }
    }

    /// `ShareGPT`'s rows are read with the usual names of roles: what is counted of them has these names, too.
    fn name_roles(&mut self) {
        let mut rows = self.datasets.iter().chain(&self.test_datasets).chain(&self.retention_datasets);
        if rows.all(|row| row.text("type") == Some("sharegpt")) {
            self.top.rename("roles_to_train", &[("human", "user"), ("gpt", "assistant")]);
        }
    }

    /// What is judged needs rows to judge it on, from one source.
    fn check_evaluation(&self, problems: &mut Problems) {
        let top = &self.top;
        let held_out = top.any("val_set_size").filter(|s| s.is_written() && val_set(top) != ValSet::None);
        let tests = top.any("test_datasets");
        let has_tests = tests.is_some_and(|t| !matches!(&t.node.value, Value::List(all) if all.is_empty()));
        if let (Some(held_out), Some(tests), true) = (held_out, tests, has_tests) {
            let error = Error::Contradiction {
                first: format!("`{}`", held_out.written),
                second: format!("`{}`", tests.written),
                why: "evaluation rows come from one of them",
                way_out: "remove one of them",
            };
            problems.push(&held_out.node.place, error);
        }
        if held_out.is_some() || has_tests {
            return self.warn_of_rare_evaluation(problems);
        }
        let stops = top.any("early_stopping_patience");
        let loads =
            top.any("load_best_model_at_end").filter(|_| top.flag("load_best_model_at_end") == Some(true));
        for setting in stops.into_iter().chain(loads) {
            problems.push(
                &setting.node.place,
                Error::Needs {
                    key: setting.written.clone(),
                    needs: "rows to evaluate on: `val_set_size` or [[test_datasets]]",
                },
            );
        }
        if let Some(setting) = top.written("eval_steps") {
            let text = "`eval_steps` has no effect: there is neither `val_set_size` nor [[test_datasets]]";
            problems.warn(&setting.node.place, text.to_owned());
        }
    }

    /// Replay and EWC need rows to keep; pulls towards the start need weights that started somewhere.
    fn check_retention(&self, problems: &mut Problems) {
        let top = &self.top;
        let asked = |name: &str| top.any(name).filter(|_| top.real(name).is_some_and(|value| value > 0.0));
        if self.retention_datasets.is_empty() {
            for setting in asked("retention_share").into_iter().chain(asked("ewc")) {
                let needs = "rows of what is not to be forgotten: [[retention_datasets]]";
                problems.push(&setting.node.place, Error::Needs { key: setting.written.clone(), needs });
            }
        }
        let fresh = top.any("reinit_weights").filter(|_| top.flag("reinit_weights") == Some(true));
        for (setting, fresh) in asked("l2_sp").into_iter().chain(asked("ewc")).zip(fresh.iter().cycle()) {
            let error = Error::Contradiction {
                first: format!("`{}`", setting.written),
                second: format!("`{}` = true", fresh.written),
                why: "weights that start at random have nothing to hold on to",
                way_out: "remove one of them",
            };
            problems.push(&setting.node.place, error);
        }
    }

    fn warn_of_rare_evaluation(&self, problems: &mut Problems) {
        let top = &self.top;
        if let (Some(setting), None) = (top.written("early_stopping_patience"), top.any("eval_steps")) {
            let text = "`early_stopping_patience` has no effect without `eval_steps`: there is one evaluation \
                        before the first step and one after the last";
            problems.warn(&setting.node.place, text.to_owned());
        }
    }
}

fn members(entry: Entry, problems: &mut Problems) -> Vec<Entry> {
    match entry.node.value {
        Value::Table(entries) => entries,
        other => {
            let error =
                Error::Type { key: entry.name, expected: "table".to_owned(), found: other.described() };
            problems.push(&entry.node.place, error);
            Vec::new()
        }
    }
}

/// The trackers that are named; "none" names none.
fn trackers(top: &Section, problems: &mut Problems) -> Vec<Tracker> {
    let mut found = Vec::new();
    for name in top.texts("report_to").unwrap_or_default() {
        match Tracker::ALL.into_iter().find(|tracker| tracker.name() == name) {
            Some(tracker) if !found.contains(&tracker) => found.push(tracker),
            Some(_) => {}
            None if name == "none" => {}
            None => {
                if let Some(setting) = top.get("report_to") {
                    let what = format!("`{}`: reporting to {name}", setting.written);
                    let error = Error::NotAvailable { what, instead: setting.key.tip };
                    problems.push(&setting.node.place, error);
                }
            }
        }
    }
    found
}

/// The server's address. It is never repeated in a message: it may hold a password.
fn tracking_uri(top: &Section, problems: &mut Problems) -> Option<String> {
    let setting = top.get("mlflow_tracking_uri")?;
    let uri = top.text("mlflow_tracking_uri")?;
    let rest = uri.strip_prefix("http://").or_else(|| uri.strip_prefix("https://"));
    let rule = match rest {
        None => "is no http:// or https:// address",
        Some(rest) if rest.split('/').next().is_some_and(|host| host.contains('@')) => {
            "holds a name or a password, which would be kept in the run's folder"
        }
        Some(rest) if rest.is_empty() || rest.contains(char::is_whitespace) => "names no server",
        Some(_) => return Some(uri.trim_end_matches('/').to_owned()),
    };
    let error = Error::Rule { key: setting.written.clone(), rule: rule.to_owned(), tip: setting.key.tip };
    problems.push(&setting.node.place, error);
    None
}

fn base(top: &Section) -> Base {
    Base {
        model: top.text("base_model").unwrap_or_default().to_owned(),
        revision: top.text("revision").map(str::to_owned),
        reinit_weights: top.flag("reinit_weights").unwrap_or_default(),
        bf16: top.flag("bf16"),
    }
}

fn val_set(top: &Section) -> ValSet {
    match (top.size("val_set_size"), top.real("val_set_size")) {
        (Some(0), _) | (None, None) => ValSet::None,
        (Some(rows), _) => ValSet::Count(rows),
        (None, Some(share)) => ValSet::Share(share),
    }
}

fn train(top: &mut Section, problems: &mut Problems) -> Train {
    let why = "each is a length of the warm-up";
    top.exclude("warmup_steps", "warmup_ratio", why, problems);
    check_warmup(top, problems);
    let optimizer = optimizer(top, problems);
    check_in_backward(top, problems);
    let size = |name: &str| top.size(name).unwrap_or_default();
    let real = |name: &str| top.real(name).unwrap_or_default();
    Train {
        micro_batch_size: size("micro_batch_size"),
        gradient_accumulation_steps: size("gradient_accumulation_steps"),
        num_epochs: size("num_epochs"),
        max_steps: top.count("max_steps"),
        learning_rate: real("learning_rate"),
        lr_scheduler: match top.text("lr_scheduler") {
            Some("linear") => LrScheduler::Linear,
            Some("constant") => LrScheduler::Constant,
            _ => LrScheduler::Cosine,
        },
        warmup: match top.real("warmup_ratio") {
            Some(share) => Warmup::Ratio(share),
            None => Warmup::Steps(top.count("warmup_steps").unwrap_or_default()),
        },
        cosine_min_lr_ratio: real("cosine_min_lr_ratio"),
        optimizer,
        weight_decay: real("weight_decay"),
        adam_beta1: real("adam_beta1"),
        adam_beta2: real("adam_beta2"),
        adam_epsilon: real("adam_epsilon"),
        momentum: real("momentum"),
        bf16_weights: top.text("master_weights") == Some("bf16"),
        optimizer_in_backward: top.flag("optimizer_in_backward").unwrap_or_default(),
        max_grad_norm: real("max_grad_norm"),
        l2_sp: real("l2_sp"),
        ewc: real("ewc"),
        loraplus_lr_ratio: top.real("loraplus_lr_ratio"),
        gradient_checkpointing: top.flag("gradient_checkpointing"),
        device: top.text("device").and_then(|text| text.parse().ok()).unwrap_or(Device::Auto),
        threads: top.size("threads"),
        seed: top.count("seed").unwrap_or_default(),
    }
}

fn optimizer(top: &mut Section, problems: &mut Problems) -> Optimizer {
    let optimizer = match top.text("optimizer") {
        Some("adamw_8bit") => Optimizer::Adamw8bit,
        Some("adafactor") => Optimizer::Adafactor,
        Some("lion") => Optimizer::Lion,
        Some("sgd") => Optimizer::Sgd,
        _ => Optimizer::Adamw,
    };
    if let Some(setting) = top.changed("momentum").filter(|_| optimizer != Optimizer::Sgd) {
        let text = format!("`{}` has no effect: it is SGD's", setting.written);
        problems.warn(&setting.node.place, text);
    }
    if optimizer == Optimizer::Lion && top.written("adam_beta2").is_none() {
        top.put("adam_beta2", "0.99", Origin::From("optimizer"));
    }
    if let (Some(setting), Some("lora" | "qlora")) = (top.changed("master_weights"), top.text("adapter")) {
        let text = format!("`{}` has no effect: an adapter is trained in f32", setting.written);
        problems.warn(&setting.node.place, text);
    }
    optimizer
}

/// A gradient that is gone before the next is made can neither be added to nor measured with the others.
fn check_in_backward(top: &Section, problems: &mut Problems) {
    if top.flag("optimizer_in_backward") != Some(true) {
        return;
    }
    let count = top.count("gradient_accumulation_steps").filter(|n| *n != 1);
    let norm = top.real("max_grad_norm").filter(|norm| *norm != 0.0);
    let accumulates = count.map(|n| {
        let second = format!("`gradient_accumulation_steps` = {n}");
        (
            second,
            "a gradient is gone before the next micro-batch could be added",
            "set gradient_accumulation_steps = 1",
        )
    });
    let clips = norm.map(|norm| {
        let second = format!("`max_grad_norm` = {norm}");
        (second, "a gradient is used before the norm of all is known", "set max_grad_norm = 0")
    });
    for (second, why, way_out) in accumulates.into_iter().chain(clips) {
        let first = "`optimizer_in_backward` = true".to_owned();
        let error = Error::Contradiction { first, second, why, way_out };
        problems.push(&place_of(top, "optimizer_in_backward"), error);
    }
}

fn check_warmup(top: &Section, problems: &mut Problems) {
    if let (Some(warmup), Some(steps)) = (top.count("warmup_steps"), top.count("max_steps"))
        && warmup > steps
    {
        let error = Error::Contradiction {
            first: format!("`warmup_steps` = {warmup}"),
            second: format!("`max_steps` = {steps}"),
            why: "the learning rate would never reach its peak",
            way_out: "warm up for a part of the run: 3 % … 10 % is usual",
        };
        problems.push(&place_of(top, "warmup_steps"), error);
    }
    let floor = top.changed("cosine_min_lr_ratio");
    if let (Some(floor), Some(shape)) = (floor, top.text("lr_scheduler"))
        && shape != "cosine"
    {
        let text = format!("`cosine_min_lr_ratio` has no effect with lr_scheduler = \"{shape}\"");
        problems.warn(&floor.node.place, text);
    }
}

fn schedule(top: &Section) -> Schedule {
    Schedule {
        eval_steps: top.count("eval_steps"),
        early_stopping_patience: top.count("early_stopping_patience"),
        load_best_model_at_end: top.flag("load_best_model_at_end").unwrap_or_default(),
        save_steps: top.count("save_steps"),
        save_total_limit: top.size("save_total_limit"),
        logging_steps: top.count("logging_steps").unwrap_or_default(),
    }
}

fn output(top: &Section, problems: &mut Problems) -> Output {
    Output {
        dir: PathBuf::from(top.text("output_dir").unwrap_or_default()),
        auto_resume: top.flag("auto_resume_from_checkpoints").unwrap_or_default(),
        project: top.text("project").unwrap_or_default().to_owned(),
        purpose: top.text("purpose").unwrap_or_default().to_owned(),
        samples: top.texts("sample_prompts").unwrap_or_default(),
        report_to: trackers(top, problems),
        mlflow_tracking_uri: tracking_uri(top, problems),
        mlflow_experiment_name: top.text("mlflow_experiment_name").map(str::to_owned),
    }
}

fn budget(section: &Section) -> Budget {
    Budget {
        max_usd: section.real("max_usd"),
        max_hours: section.real("max_hours"),
        max_memory_gib: section.real("max_memory_gib"),
        max_energy_kwh: section.real("max_energy_kwh"),
        refuse_repeats: section.text("repeats") == Some("refuse"),
    }
}
