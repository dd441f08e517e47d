//! What is not to be forgotten: how much a retention set depends on each weight, what holds weights near their start, and
//! what a run says that it lost.

#[path = "support/run.rs"]
mod run;
mod support;

use fttrain::config::Train;
use fttrain::data::Batch;
use fttrain::data::packing::{Epochs, Order};
use fttrain::ops::host;
use fttrain::ranks::Ranks;
use fttrain::train::anchor::Anchor;
use fttrain::train::optimizer::Optimizer;
use fttrain::train::step::{Descent, accumulate, descend};
use run::{Config, Place, json, lines};
use std::fs;
use support::{Made, Overrides, Trace, fresh, golden, make, rows, values};

/// A slope by differences of f32 losses, against one that is computed.
const BY_DIFFERENCES: f64 = 0.02;

fn ewc(made: &Made, strength: f64) -> Train {
    Train { ewc: strength, ..made.config.train.clone() }
}

/// The mean over rows of the squared slope of a row's mean token loss, by moving one value to both sides.
fn by_differences(made: &Made, kept: &[Batch], value: &candle_core::Tensor, at: usize) -> f64 {
    let step = 1e-2f32;
    let losses = |by: f32| -> Vec<f64> {
        host::edit(value, |values| values[at] += by).unwrap();
        kept.iter().map(|b| made.decoder.loss(b).unwrap() / b.targets.len() as f64).collect()
    };
    let (above, below) = (losses(step), losses(-2.0 * step));
    losses(step);
    let squares = above.iter().zip(&below).map(|(a, b)| ((a - b) / (2.0 * f64::from(step))).powi(2));
    squares.sum::<f64>() / kept.len() as f64
}

#[test]
fn the_information_is_the_mean_square_of_each_rows_own_slope() {
    let case = golden().join("qwen3");
    for (run, overrides) in [("full", &[] as Overrides), ("lora", &[("lora_dropout", "0.5")])] {
        let made = make(&case.join(run), true, overrides);
        let kept: Vec<Batch> = rows(&case).iter().take(3).map(|row| Batch::new([row], 0)).collect();
        let anchor = Anchor::new(&made.decoder, &made.params, &ewc(&made, 1.0), &kept).unwrap().unwrap();
        for (id, param) in made.params.sorted().into_iter().step_by(5) {
            let found = values(anchor.fisher(id).unwrap());
            let (at, most) = found.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
            let expected = by_differences(&made, &kept, &param.value, at);
            let off = (f64::from(*most) - expected).abs();
            assert!(off <= BY_DIFFERENCES * expected, "{} [{at}]: {most} and {expected}", param.name);
        }
    }
}

#[test]
fn of_a_new_adapter_only_b_is_depended_on() {
    let case = golden().join("llama");
    let made = fresh(&case, &[]);
    let kept: Vec<Batch> = rows(&case).iter().take(2).map(|row| Batch::new([row], 0)).collect();
    let anchor = Anchor::new(&made.decoder, &made.params, &ewc(&made, 1.0), &kept).unwrap().unwrap();
    for (id, param) in made.params.sorted() {
        let has_any = values(anchor.fisher(id).unwrap()).iter().any(|f| *f > 0.0);
        assert_eq!(has_any, param.name.contains("lora_B"), "{}", param.name);
    }
    assert!(Anchor::new(&made.decoder, &made.params, &made.config.train, &kept).unwrap().is_none());
}

/// Four steps with every pull; what they left, and their penalties.
fn pulled(in_backward: bool) -> (Trace, Vec<f64>) {
    let how: Overrides = &[
        ("gradient_accumulation_steps", "1"),
        ("max_grad_norm", "0"),
        ("num_epochs", "4"),
        ("l2_sp", "0.5"),
    ];
    let case = golden().join("qwen3");
    let made = make(&case.join("full"), true, how);
    let rows = rows(&case);
    let kept: Vec<Batch> = rows.iter().take(3).map(|row| Batch::new([row], 0)).collect();
    let train = ewc(&made, 100.0);
    let anchor = Anchor::new(&made.decoder, &made.params, &train, &kept).unwrap();
    let mut optimizer = Optimizer::new(&made.params, &train).unwrap();
    let mut epochs = Epochs::new(rows, Order::from(&made.config));
    let mut trace = Trace { losses: Vec::new(), norms: Vec::new(), params: Vec::new() };
    let mut penalties = Vec::new();
    for k in 0..4 {
        let step = epochs.step(k).unwrap();
        let (decoder, params, anchor) = (&made.decoder, &made.params, anchor.as_ref());
        let done = if in_backward {
            let how = Descent { k, seed: 0, recompute: false, lr: 1e-2 };
            descend(decoder, params, &mut optimizer, anchor, &step, how, &Ranks::alone()).unwrap()
        } else {
            let gathered = accumulate(decoder, params, &step, k, 0, false, &Ranks::alone()).unwrap();
            gathered.apply(params, &mut optimizer, anchor, 1e-2).unwrap()
        };
        trace.losses.push(done.loss);
        penalties.push(done.penalty.unwrap());
    }
    let params = made.params.sorted().into_iter();
    trace.params = params.map(|(_, p)| (p.name.clone(), values(&p.value))).collect();
    (trace, penalties)
}

#[test]
fn a_pull_is_the_same_whenever_tensors_are_updated() {
    let ((whole, penalties), (early, others)) = (pulled(false), pulled(true));
    assert_eq!(whole, early);
    assert!(penalties[0].abs() < f64::EPSILON, "nothing has moved before the first step");
    for (a, b) in penalties.iter().zip(&others).skip(1) {
        assert!(*a > 0.0 && (a - b).abs() <= 1e-12 * a, "the same terms in another order: {a} and {b}");
    }
}

/// Full fine-tuning on twelve rows, with six others that are not to be forgotten.
fn remembering(place: &Place) -> Config {
    let text = fs::read_to_string(golden().join("llama/rows.jsonl")).unwrap();
    let rows: Vec<&str> = text.lines().collect();
    let (new, old) = rows.split_at(12);
    let [new, old] =
        [("new.jsonl", new), ("old.jsonl", old)].map(|(name, rows)| place.file(name, &rows.join("\n")));
    Config::lora()
        .without("lora_r")
        .without("lora_dropout")
        .rows(&new, "tokenized")
        .table(&format!("[[retention_datasets]]\npath = {old:?}\ntype = \"tokenized\""))
}

#[test]
fn a_report_says_what_was_lost() {
    let place = Place::new();
    let (path, out) = remembering(&place).write(&place, "plain");
    let said = place.run(&["--full", &path]).expect(0).says(&["retention loss"]).stdout;
    let records = lines(&out.join("retention.jsonl"));
    let steps: Vec<_> = records.iter().map(|record| record["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 8]);
    let retention = &json(&out.join("report.json"))["retention"];
    let loss = |key: &str| retention[key].as_f64().unwrap();
    assert_eq!(
        (&retention["loss_before"], &retention["loss_after"]),
        (&records[0]["loss"], &records[1]["loss"])
    );
    assert!((loss("lost") - (loss("loss_after") - loss("loss_before"))).abs() < 1e-12);
    assert!(loss("lost").abs() > 1e-3, "eight steps change what it knows");
    assert!(said.contains("retention loss"), "{said}");
    assert!(fs::read_to_string(out.join("report.html")).unwrap().contains("Retention loss"));
    assert!(lines(&out.join("metrics.jsonl"))[0].get("penalty").is_none());
    // Without a set nothing is said of it.
    let (path, out) = Config::lora().write(&place, "without");
    assert!(!place.run(&["--lora", &path]).expect(0).stdout.contains("retention"));
    assert!(json(&out.join("report.json")).get("retention").is_none());
    assert!(!out.join("retention.jsonl").exists());
}

/// ‖w − w₀‖² after the last step but one, from its penalty.
fn moved(place: &Place, flag: &str, config: Config, l2_sp: f64) -> f64 {
    let name = format!("{}-{l2_sp}", flag.trim_start_matches('-'));
    let (path, out) = config.with("l2_sp", &l2_sp.to_string()).write(place, &name);
    place.run(&[flag, &path]).expect(0);
    let penalties = lines(&out.join("metrics.jsonl"));
    let penalty = |at: usize| penalties[at]["penalty"].as_f64().unwrap();
    assert!(penalty(0).abs() < f64::EPSILON && penalty(7) > 0.0);
    2.0 * penalty(7) / l2_sp
}

#[test]
fn a_pull_holds_what_is_trained_near_its_start() {
    let place = Place::new();
    let free = moved(&place, "--full", remembering(&place), 1e-6);
    let held = moved(&place, "--full", remembering(&place), 10.0);
    assert!(held < 0.5 * free, "{held} and {free}");
    let adapter = || remembering(&place).with("lora_r", "4");
    let (free, held) = (moved(&place, "--lora", adapter(), 1e-6), moved(&place, "--lora", adapter(), 10.0));
    assert!(held < 0.5 * free, "{held} and {free}");
}

#[test]
fn replay_and_ewc_are_predicted_with_the_run() {
    let place = Place::new();
    let estimate = |name: &str, config: Config| {
        let (path, _) = config.write(&place, name);
        place.run(&["estimate", &path, "--json"]).expect(0).json()
    };
    let bytes = |estimate: &serde_json::Value, name: &str| {
        let parts = estimate["memory_parts"].as_array().unwrap();
        parts.iter().find(|part| part["name"] == name).unwrap()["predicted_bytes"].as_u64().unwrap()
    };
    let epochs = || remembering(&place).without("max_steps").with("num_epochs", "2");
    let plain = estimate("plain", epochs());
    let replayed = estimate("replayed", epochs().with("retention_share", "0.25"));
    // Four of twelve more in each epoch.
    assert_eq!((&plain["counts"]["steps"], &replayed["counts"]["steps"]), (&6.into(), &8.into()));
    assert_eq!(plain["counts"]["retention"]["passes"], 2);
    let informed = estimate("informed", epochs().with("ewc", "10"));
    assert_eq!(informed["counts"]["fisher"]["micro_batches"], 3);
    // Beside two moments of each value, its start and its information.
    assert_eq!(bytes(&informed, "moments"), 2 * bytes(&plain, "moments"));
}
