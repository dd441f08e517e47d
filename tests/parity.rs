//! fttrain against PyTorch, transformers and PEFT: logits, every gradient, ten losses and gradient norms, on the
//! goldens that `tests/golden/make.py` made in float64. fttrain wrote none of them.

mod support;

use fttrain::data::Batch;
use fttrain::data::packing::{Epochs, Order};
use fttrain::ranks::Ranks;
use fttrain::train::optimizer::Optimizer;
use fttrain::train::schedule::Schedule;
use fttrain::train::step::accumulate;
use safetensors::SafeTensors;
use std::path::Path;
use support::{Made, Overrides, cases, folders, golden, gpu, json, make, rows, runs, values};

/// Largest |difference| of a tensor over its largest |value|, and of a loss over itself. torch in f32 is within 3e-6 of
/// the same numbers (manifest.json), so this is wide for another order of summation and narrow for a wrong formula.
const TOLERANCE: f32 = 1e-4;

fn close(what: &str, ours: &[f32], file: &SafeTensors<'_>, name: &str) {
    let view = file.tensor(name).unwrap_or_else(|e| panic!("{what}: {name}: {e}"));
    let theirs: Vec<f32> =
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(ours.len(), theirs.len(), "{what}: {name}");
    let largest = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
    let off = ours.iter().zip(&theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    let allowed = if largest == 0.0 { 0.0 } else { TOLERANCE * largest };
    assert!(off <= allowed, "{what}: {name} is off by {off:e}, largest value {largest:e}");
}

fn near(what: &str, ours: f64, theirs: f64) {
    assert!((ours - theirs).abs() <= f64::from(TOLERANCE) * theirs.abs(), "{what}: {ours}, golden {theirs}");
}

#[test]
fn logits_of_every_base_equal_transformers() {
    for case in cases() {
        let what = case.file_name().unwrap().to_str().unwrap().to_owned();
        let made = make(&folders(&case, "run.toml")[0], false, &[]);
        let bytes = std::fs::read(case.join("golden.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let about = json(&case.join("golden.json"));
        let count = usize::try_from(about["rows"].as_u64().unwrap()).unwrap();
        let rows = rows(&case);
        for (i, row) in rows.iter().take(count).enumerate() {
            let logits = made.decoder.logits(&Batch::new([row], 0)).unwrap();
            close(&what, &values(&logits), &file, &format!("logits.{i}"));
        }
        let packed = Batch::new(&rows[..count], 0);
        let mean = made.decoder.loss(&packed).unwrap() / packed.targets.len() as f64;
        near(&format!("{what}: packed loss"), mean, about["packed_loss"].as_f64().unwrap());
    }
}

#[test]
fn gradients_losses_and_norms_of_every_run_equal_peft() {
    for (case, run) in runs() {
        for recompute in [false, true] {
            compare(&case, &run, recompute, &[]);
        }
    }
}

/// Largest relative distance of a loss in bf16 from PyTorch's under autocast. Both round, at other places: autocast alone
/// is up to 1.3e-3 from float64 (`apart` in autocast.json).
const AUTOCAST: f64 = 5e-3;

/// Base and products in bf16, with and without recompute: the same ten losses as torch's own mixed precision, and not
/// those of f32.
#[test]
fn ten_losses_in_bf16_are_those_of_torch_under_autocast() {
    let golden = json(&golden().join("autocast.json"));
    let runs = golden["runs"].as_object().unwrap();
    assert!(runs.len() >= 8, "{runs:?}");
    for (name, theirs) in runs {
        let run = self::golden().join(name);
        let rows = rows(run.parent().unwrap());
        let losses = |bf16, recompute| make(&run, true, &[("bf16", bf16)]).train(&rows, 10, recompute).losses;
        let ours = losses("true", false);
        assert_eq!(ours, losses("true", true), "{name}: recompute");
        let theirs = theirs["losses"].as_array().unwrap();
        assert_eq!((ours.len(), theirs.len()), (10, 10), "{name}");
        let mut apart = 0f64;
        for (k, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            let theirs = theirs.as_f64().unwrap();
            assert!(
                (ours - theirs).abs() <= AUTOCAST * theirs,
                "{name}: loss {}: {ours}, torch {theirs}",
                k + 1
            );
            apart = apart.max((ours - theirs).abs() / theirs);
        }
        println!("{name}: at most {apart:.1e} from torch's autocast");
        assert_ne!(ours, losses("false", false), "{name}: bf16 was not used");
    }
}

#[test]
#[ignore = "needs FTTRAIN_GPU, the GPU to compute on (cuda:0), and the feature cuda"]
fn gradients_losses_and_norms_on_a_gpu_equal_peft() {
    let gpu = gpu();
    // Trained lengths of rows are the CPU's alone.
    for (case, run) in runs().into_iter().filter(|(_, run)| !run.ends_with("dora")) {
        for recompute in [false, true] {
            compare(&case, &run, recompute, &[("device", &gpu)]);
        }
    }
}

fn compare(case: &Path, run: &Path, recompute: bool, overrides: Overrides<'_>) {
    let what =
        format!("{} recompute={recompute} {overrides:?}", run.strip_prefix(golden()).unwrap().display());
    let Made { config, decoder, params, .. } = make(run, true, overrides);
    let bytes = std::fs::read(run.join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let golden = json(&run.join("golden.json"));
    let rows = rows(case);
    for (i, row) in rows.iter().enumerate().take_while(|(i, _)| file.tensor(&format!("logits.{i}")).is_ok()) {
        close(&what, &values(&decoder.logits(&Batch::new([row], 0)).unwrap()), &file, &format!("logits.{i}"));
    }
    let mut epochs = Epochs::new(rows.clone(), Order::from(&config));
    let mut optimizer = Optimizer::new(&params, &config.train).unwrap();
    let schedule = Schedule::new(&config.train, epochs.total_steps());
    let steps = golden["steps"].as_array().unwrap();
    assert_eq!(epochs.total_steps(), steps.len() as u64, "{what}");
    for (k, theirs) in steps.iter().enumerate() {
        let k = k as u64;
        let step = epochs.step(k).unwrap();
        let done = accumulate(&decoder, &params, &step, k, 0, recompute, &Ranks::alone())
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        if k == 0 {
            let mut compared = 0;
            for (id, param) in params.sorted() {
                let grad = done.grads.get(id).map_or_else(|| vec![0.0; param.value.elem_count()], values);
                close(&what, &grad, &file, &format!("grad.{}", param.name));
                compared += 1;
            }
            assert_eq!(compared, file.names().iter().filter(|n| n.starts_with("grad.")).count(), "{what}");
        }
        let norm = optimizer.norm(&done.grads).unwrap();
        let lr = schedule.lr_at(k);
        let at = |name: &str| format!("{what}: step {} {name}", k + 1);
        let golden = |name: &str| theirs[name].as_f64().unwrap();
        near(&at("loss"), done.loss, golden("loss"));
        near(&at("grad_norm"), norm, golden("grad_norm"));
        near(&at("learning_rate"), lr, golden("learning_rate"));
        let tokens: usize = step.batches.iter().map(Batch::tokens).sum();
        assert_eq!(tokens as u64, theirs["tokens"].as_u64().unwrap(), "{}", at("tokens"));
        optimizer.apply(&params, &done.grads, norm, lr).unwrap();
    }
    let last = decoder.logits(&Batch::new([&rows[0]], 0)).unwrap();
    close(&what, &values(&last), &file, "final_logits.0");
}
