//! What must not change a result: packing, the split into micro-batches, recompute, the number of threads, and doing
//! it again.

mod support;

use fttrain::data::packing::{Epochs, Order};
use fttrain::data::rng::Rng;
use fttrain::data::{Batch, Sample};
use fttrain::model::decoder::Training;
use fttrain::ops::Grads;
use fttrain::ops::dropout::Noise;
use fttrain::ranks::Ranks;
use fttrain::train::optimizer::Optimizer;
use fttrain::train::schedule::Schedule;
use fttrain::train::step::{Descent, descend};
use rayon::ThreadPoolBuilder;
use std::path::{Path, PathBuf};
use support::{Made, Overrides, Trace, cases, fresh, make, reinit, rows, runs, values};

/// Of a sum of the same terms in another order, in f32.
const SAME: f64 = 1e-6;
/// Of a single gradient, against the largest of its tensor; and of a loss after nine updates from such gradients.
const CLOSE: f64 = 1e-4;

fn near(what: &str, a: f64, b: f64, tolerance: f64) {
    assert!((a - b).abs() <= tolerance * b.abs(), "{what}: {a} and {b}");
}

fn differ(a: &[f32], b: &[f32]) -> f64 {
    let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    let off = a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    if largest == 0.0 { f64::from(off) } else { f64::from(off / largest) }
}

/// Every run of the goldens, those of adapters with dropout.
fn noisy_runs() -> Vec<(PathBuf, PathBuf, Overrides<'static>)> {
    let noisy = |run: &Path| run.join("adapter").is_dir();
    let with = |(case, run): (PathBuf, PathBuf)| {
        let overrides: Overrides = if noisy(&run) { &[("lora_dropout", "0.2")] } else { &[] };
        (case, run, overrides)
    };
    runs().into_iter().map(with).collect()
}

/// Σ of the losses of these batches, and their gradients.
fn pass(made: &Made, batches: &[Batch], recompute: bool) -> (f64, Grads) {
    let counted: usize = batches.iter().map(|b| b.targets.len()).sum();
    let noise = Some(Noise { seed: 1, step: 2, first_token: 0 });
    let how = Training { scale: 1.0 / counted as f32, recompute, noise };
    let mut grads = made.params.no_grads();
    let one = |b| made.decoder.loss_and_backward(b, how, &mut grads).unwrap().sum.value().unwrap();
    let sum = batches.iter().map(one).sum();
    (sum, grads)
}

/// Each row a batch of its own.
fn apart(rows: &[Sample]) -> Vec<Batch> {
    let mut first = 0;
    let mut next = |row: &Sample| {
        let batch = Batch::new([row], first);
        first += row.ids.len() as u64;
        batch
    };
    rows.iter().map(&mut next).collect()
}

#[test]
fn packed_rows_give_the_losses_and_gradients_of_separate_ones() {
    for (case, run, overrides) in noisy_runs() {
        let made = make(&run, true, overrides);
        let rows = rows(&case);
        let what = run.display();
        let separate = apart(&rows);
        let losses: f64 = separate.iter().map(|b| made.decoder.loss(b).unwrap()).sum();
        let packed = Batch::new(&rows, 0);
        near(&format!("{what}: loss"), made.decoder.loss(&packed).unwrap(), losses, SAME);
        let (sum_apart, grads_apart) = pass(&made, &separate, false);
        let (sum, grads) = pass(&made, &[packed], false);
        near(&format!("{what}: loss in training"), sum, sum_apart, SAME);
        for (id, param) in made.params.sorted() {
            let (a, b) = (values(grads.get(id).unwrap()), values(grads_apart.get(id).unwrap()));
            let off = differ(&a, &b);
            assert!(off <= CLOSE, "{what}: gradient of {} is off by {off:e}", param.name);
        }
    }
}

#[test]
fn an_epoch_packed_by_the_config_has_the_loss_and_norm_of_one_that_is_not() {
    for case in cases() {
        let rows = rows(&case);
        let first = |packing: &'static str, packs: &'static str| {
            let split = [("micro_batch_size", packs), ("gradient_accumulation_steps", "64")];
            let made =
                fresh(&case, &[&split[..], &[("sample_packing", packing), ("sequence_len", "256")]].concat());
            let step = Epochs::new(rows.clone(), Order::from(&made.config)).step(0).unwrap();
            assert_eq!(step.samples.len(), rows.len(), "a step is the whole epoch");
            (step.batches.len(), made.train(&rows, 1, false))
        };
        let (packed, apart) = (first("true", "1"), first("false", "1"));
        assert!(packed.0 < apart.0 && apart.0 == rows.len(), "{} packs, {} rows", packed.0, apart.0);
        near("loss", packed.1.losses[0], apart.1.losses[0], SAME);
        near("norm", packed.1.norms[0], apart.1.norms[0], SAME);
    }
}

#[test]
fn eight_rows_at_once_are_eight_times_one_row() {
    let other: [Overrides; 2] = [
        &[("micro_batch_size", "1"), ("gradient_accumulation_steps", "8")],
        &[("micro_batch_size", "2"), ("gradient_accumulation_steps", "4")],
    ];
    let at_once: Overrides = &[("micro_batch_size", "8"), ("gradient_accumulation_steps", "1")];
    let ways: [Overrides; 3] = [
        &[],
        &[("shuffle", "true"), ("lora_dropout", "0.2")],
        // Packs of several rows.
        &[("sample_packing", "true"), ("sequence_len", "101"), ("lora_dropout", "0.2")],
    ];
    for case in cases() {
        let mut without_dropout = None;
        for way in ways {
            let train = |split: Overrides| {
                let overrides = [way, &[("num_epochs", "10")], split].concat();
                fresh(&case, &overrides).train(&rows(&case), 10, false)
            };
            let once = train(at_once);
            for split in other {
                compare(&format!("{} {way:?} {split:?}", case.display()), &train(split), &once);
            }
            let plain = without_dropout.get_or_insert_with(|| once.clone());
            assert_eq!(way.is_empty(), plain.losses == once.losses, "{way:?} does something");
        }
    }
}

/// Another split of the same steps: the first to rounding, the tenth to what rounding grows to.
fn compare(what: &str, a: &Trace, b: &Trace) {
    assert_eq!((a.losses.len(), b.losses.len()), (10, 10), "{what}");
    near(&format!("{what}: first loss"), a.losses[0], b.losses[0], SAME);
    near(&format!("{what}: first norm"), a.norms[0], b.norms[0], SAME);
    near(&format!("{what}: tenth loss"), a.losses[9], b.losses[9], CLOSE);
}

#[test]
fn full_fine_tuning_does_not_see_the_split_either() {
    for (case, run, _) in noisy_runs().into_iter().filter(|(_, run, _)| run.ends_with("full")) {
        let train = |rows_at_once, times| {
            let split = [("micro_batch_size", rows_at_once), ("gradient_accumulation_steps", times)];
            make(&run, true, &[&split[..], &[("num_epochs", "4")]].concat()).train(&rows(&case), 10, false)
        };
        compare(&run.display().to_string(), &train("1", "8"), &train("8", "1"));
    }
}

#[test]
fn recompute_changes_no_bit() {
    for (case, run, overrides) in noisy_runs() {
        let trace = |recompute| make(&run, true, overrides).train(&rows(&case), 4, recompute);
        assert_eq!(trace(false), trace(true), "{}", run.display());
    }
}

#[test]
fn updates_in_the_backward_pass_are_the_same_updates() {
    for (case, run, _) in noisy_runs() {
        let how = [("gradient_accumulation_steps", "1"), ("max_grad_norm", "0"), ("optimizer", "adafactor")];
        let whole = make(&run, true, &how).train(&rows(&case), 4, false);
        let made = make(&run, true, &how);
        let mut epochs = Epochs::new(rows(&case), Order::from(&made.config));
        let mut optimizer = Optimizer::new(&made.params, &made.config.train).unwrap();
        let schedule = Schedule::new(&made.config.train, epochs.total_steps());
        let mut trace = Trace { losses: Vec::new(), norms: Vec::new(), params: Vec::new() };
        for k in 0..4 {
            let step = epochs.step(k).unwrap();
            let lr = schedule.lr_at(k);
            let how = Descent { k, seed: 0, recompute: true, lr };
            let done =
                descend(&made.decoder, &made.params, &mut optimizer, None, &step, how, &Ranks::alone())
                    .unwrap();
            let all = made.params.count() * 4;
            let most = done.memory.gradients;
            assert!(most < all, "{}: {most} of {all} bytes at once", run.display());
            trace.losses.push(done.loss);
            trace.norms.push(done.norm);
        }
        let params = made.params.sorted().into_iter();
        trace.params = params.map(|(_, p)| (p.name.clone(), values(&p.value))).collect();
        assert_eq!((&trace.losses, &trace.params), (&whole.losses, &whole.params), "{}", run.display());
        for (a, b) in trace.norms.iter().zip(&whole.norms) {
            near("the norm, summed in another order", *a, *b, 1e-12);
        }
    }
}

#[test]
fn a_run_done_again_is_the_same_run_to_the_bit() {
    for (case, run, overrides) in noisy_runs() {
        let trace = || make(&run, true, overrides).train(&rows(&case), 10, false);
        assert_eq!(trace(), trace(), "{}", run.display());
    }
}

/// Rows of a model that is large enough for every op to be shared among threads.
fn long_rows() -> Vec<Sample> {
    let mut rng = Rng::new(3, "rows", 0, 0);
    let row = |i: u64| {
        let ids: Vec<u32> = (0..40 + 17 * (i % 5)).map(|_| u32::try_from(rng.below(1500)).unwrap()).collect();
        let labels = ids.iter().map(|&id| i32::try_from(id).unwrap()).collect();
        Sample { ids, labels }
    };
    (0..12).map(row).collect()
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "vocab_size": 1500, "hidden_size": 192, "intermediate_size": 328, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": true, "initializer_range": 0.02}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let ways: [Overrides; 3] =
        [&[], &[("adapter", "lora"), ("lora_dropout", "0.1")], &[("adapter", "lora"), ("bf16", "true")]];
    for way in ways {
        let train = |threads: usize| {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let made = reinit(folder.path(), way);
            pool.install(|| {
                assert_eq!(rayon::current_num_threads(), threads);
                made.train(&long_rows(), 2, false)
            })
        };
        let one = train(1);
        for threads in 2..=4 {
            let more = train(threads);
            assert_eq!(one.losses, more.losses, "{way:?}: losses on {threads} threads");
            assert_eq!(one.norms, more.norms, "{way:?}: norms on {threads} threads");
            assert!(one == more, "{way:?}: trained tensors on {threads} threads");
        }
    }
}
