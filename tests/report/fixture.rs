//! Runs as they usually end, and as they end at the edges of what can be shown.

use fttrain::estimate::Quantities;
use fttrain::estimate::parts::{Part, PartBytes};
use fttrain::report::{
    DataSummary, Difference, Inputs, Interval, Moment, Parameters, Parent, PartInput, PhaseInput, Price,
    Provenance, SamplePair, Status,
};
use fttrain::train::metrics::{EvalRecord, StepRecord};

pub(crate) fn steps(count: u32) -> Vec<StepRecord> {
    (1..=count)
        .map(|step| {
            let done = f64::from(step) / f64::from(count);
            let noise = (f64::from(step) * 12.9898).sin() * 0.12;
            StepRecord {
                step: u64::from(step),
                epoch: 2.0 * done,
                loss: 1.15 + 1.3 * (-4.0 * done).exp() + noise,
                grad_norm: 0.6 + 1.5 * (-6.0 * done).exp() + noise.abs(),
                learning_rate: 2e-4 * (done * 10.0).min(1.0) * (1.0 + (done * 3.0).cos()) / 2.0,
                tokens: 8192,
                penalty: None,
                padded_tokens: 0,
                loss_tokens: 3010,
                step_s: 1.9 + noise / 3.0,
                rss_bytes: Some(1_250_000_000 + u64::from(step.min(40)) * 4_000_000),
                device_bytes: None,
            }
        })
        .collect()
}

pub(crate) fn evals() -> Vec<EvalRecord> {
    [(0, 2.48), (100, 1.62), (200, 1.41), (300, 1.36), (400, 1.37)]
        .map(|(step, loss)| EvalRecord {
            step,
            epoch: step as f64 / 200.0,
            loss,
            loss_tokens: 20_000,
            wall_s: 6.2,
        })
        .into()
}

pub(crate) fn part(name: &str, predicted: Option<u64>, measured: Option<u64>) -> PartInput {
    PartInput { name: name.into(), predicted_bytes: predicted, measured_bytes: measured }
}

pub(crate) fn provenance() -> Provenance {
    Provenance {
        version: Some("0.1.0".into()),
        build: Some("48305b3, release".into()),
        os: Some("Linux 6.1".into()),
        cpu: Some("Intel Xeon Platinum 8488C, 4 cores".into()),
        device: Some("cpu".into()),
        threads: Some(4),
        kernel: Some("amx".into()),
        base: Some("HuggingFaceTB/SmolLM2-135M-Instruct".into()),
        base_hash: Some("5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c".into()),
        data_hash: Some("9c56cc51b374c3ba189210d5b6d4bf57790d351c96c47c02190ecf1e430635ab".into()),
        config_hash: Some("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".into()),
        seed: Some(42),
        ..Provenance::default()
    }
}

pub(crate) fn memory_parts() -> Vec<PartInput> {
    vec![
        part("base_weights", Some(538_000_000), Some(538_000_000)),
        part("packed_copies", Some(212_000_000), None),
        part("adapter", Some(19_500_000), Some(19_500_000)),
        part("gradients", Some(19_500_000), Some(19_500_000)),
        part("moments", Some(39_000_000), Some(39_000_000)),
        part("activations", Some(402_000_000), Some(411_300_000)),
        part("logits", Some(100_000_000), Some(98_700_000)),
        part("runtime", Some(90_000_000), None),
    ]
}

/// Memory of a part, once the model is there; passes take theirs only while they last.
fn held(part: Part, phase: &str) -> u64 {
    match (part, phase) {
        (_, "load" | "tokenise" | "calibrate") => 0,
        (Part::BaseWeights, _) => 538_000_000,
        (Part::Adapter | Part::Gradients, _) => 7_300_000,
        (Part::Moments, _) => 14_600_000,
        (Part::Activations, "train") => 402_000_000,
        (Part::Logits, "train" | "evaluate") => 50_300_000,
        (Part::Data, _) => 9_100_000,
        _ => 0,
    }
}

/// What a meter sees of such a run: load, then training with an evaluation in the middle.
fn timeline() -> Vec<Moment> {
    let moment = |n: u32| {
        let at_s = f64::from(n) * 2.8;
        let phase = match n {
            0..5 => "load",
            5..8 => "tokenise",
            8..12 => "calibrate",
            140..146 | 288..294 => "evaluate",
            294.. => "save",
            _ => "train",
        };
        Moment {
            at_s,
            phase: phase.into(),
            rss_bytes: Some(1_447_000_000 - 900_000_000 / u64::from(n + 1)),
            device_bytes: None,
            cores_busy: (n > 0).then(|| if phase == "train" { 3.7 + f64::from(n % 7) / 40.0 } else { 1.1 }),
            power_w: None,
            parts: Some(PartBytes(Part::ALL.map(|part| held(part, phase)))),
        }
    };
    (0..296).map(moment).collect()
}

fn parent() -> Parent {
    let difference =
        |key: &str, then: &str, now: &str| Difference { key: key.into(), then: then.into(), now: now.into() };
    Parent {
        run_id: "5k2m9q1x".into(),
        is_origin: false,
        started_at: "2025-11-01T09:00:00Z".into(),
        cost_usd: Some(0.0741),
        loss: Some(1.31),
        differences: vec![
            difference("learning_rate", "0.0001", "0.0002"),
            difference("lora_target_modules", "[\"q_proj\", \"v_proj\"]", "\"all-linear\""),
        ],
    }
}

/// A run of 400 steps as it usually ends, on a machine without an energy counter.
pub(crate) fn usual() -> Inputs {
    let price = 0.3472;
    let wall = 826.4;
    Inputs {
        run_id: "7f3a2c91".into(),
        status: Status::Done,
        method: Some("lora".into()),
        started_at: Some("2025-11-02T10:11:12Z".into()),
        predicted: Quantities {
            wall_s: Some(803.0),
            step_s: Some(1.86),
            tokens_per_s: Some(4404.0),
            peak_memory_bytes: Some(1_420_000_000),
            energy_j: None,
            cost_usd: Some(0.0778),
        },
        measured: Quantities {
            wall_s: Some(wall),
            peak_memory_bytes: Some(1_447_000_000),
            cost_usd: Some(840.0 / 3600.0 * price),
            ..Quantities::default()
        },
        modelled: Quantities {
            energy_j: Some(62_000.0),
            ..Quantities::default()
        },
        interval: [
            ("wall_s", 742.0, 872.0),
            ("step_s", 1.71, 2.02),
            ("tokens_per_s", 4050.0, 4790.0),
            ("peak_memory_bytes", 1.36e9, 1.5e9),
            ("cost_usd", 0.0718, 0.0847),
        ]
        .map(|(key, low, high)| (key.to_owned(), Interval { low, high }))
        .into(),
        phases: [
            ("load", 3.1),
            ("tokenise", 8.4),
            ("calibrate", 11.0),
            ("train", 760.9),
            ("evaluate", 31.0),
            ("save", 6.2),
            ("report", 0.4),
        ]
        .map(|(name, wall_s)| PhaseInput {
            name: name.into(),
            wall_s,
            cost_usd: None,
            beside: false,
        })
        .into(),
        memory_parts: memory_parts(),
        price: Price {
            usd_per_hour: Some(price),
            source: Some("aws/c7i.2xlarge".into()),
            as_of: Some("2025-10-14".into()),
        },
        provenance: provenance(),
        parameters: Parameters {
            total: Some(139_399_488),
            trainable: Some(4_884_480),
        },
        planned_steps: Some(400),
        steps: steps(400),
        evals: evals(),
        flops_per_step: Some(5.1e12),
        peak_flops_per_s: Some(4.2e12),
        peak_source: Some("this machine’s measured matmul rate".into()),
        data: DataSummary {
            rows: Some(7473),
            dropped_rows: Some(3),
            train_samples: Some(7320),
            eval_samples: Some(150),
            tokens: Some(1_612_400),
            loss_tokens: Some(602_331),
            longest_tokens: Some(611),
            sequence_len: Some(1024),
            packs: Some(1601),
            ..DataSummary::default()
        },
        samples: vec![SamplePair {
            prompt: "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May. How \
                     many clips did she sell altogether?"
                .into(),
            reference: Some("48 / 2 = 24\n48 + 24 = 72\n#### 72".into()),
            before: Some("Natalia sold 48 clips in April and 48 in May, so she sold 96 clips in total.".into()),
            after: Some("Natalia sold 48 / 2 = 24 clips in May.\nShe sold 48 + 24 = 72 clips altogether.\n#### 72".into()),
        }],
        warnings: vec!["The price was read 19 days before the run.".into()],
        timeline: timeline(),
        parent: Some(parent()),
        ..Inputs::default()
    }
}

pub(crate) fn edges() -> Vec<(&'static str, Inputs)> {
    let mut nothing = Inputs {
        run_id: "0".into(),
        status: Status::Failed,
        reason: Some("the disk is full".into()),
        ..Inputs::default()
    };
    nothing.predicted.wall_s = Some(12.5);
    let one_step =
        Inputs { run_id: "1".into(), status: Status::Stopped, steps: steps(1), ..Inputs::default() };
    let mut all_nan = usual();
    all_nan.status = Status::Diverged;
    for step in &mut all_nan.steps {
        step.loss = f64::NAN;
        step.grad_norm = f64::INFINITY;
        step.step_s = f64::NAN;
        step.learning_rate = f64::NAN;
        step.epoch = f64::NAN;
        step.rss_bytes = None;
    }
    for eval in &mut all_nan.evals {
        eval.loss = f64::NAN;
    }
    all_nan.measured = Quantities {
        wall_s: Some(f64::NAN),
        energy_j: Some(f64::INFINITY),
        cost_usd: Some(f64::NAN),
        ..Quantities::default()
    };
    all_nan.predicted.wall_s = Some(f64::NAN);
    all_nan.price.usd_per_hour = Some(f64::NAN);
    all_nan.flops_per_step = Some(f64::NAN);
    all_nan.peak_flops_per_s = Some(0.0);
    all_nan.phases[0].wall_s = f64::NAN;
    all_nan.interval.insert("wall_s".into(), Interval { low: f64::NAN, high: 1.0 });
    let mut instant = usual();
    for step in &mut instant.steps {
        step.step_s = 0.0;
        step.tokens = 0;
    }
    instant.measured = Quantities {
        wall_s: Some(0.0),
        cost_usd: Some(0.0),
        peak_memory_bytes: Some(0),
        ..Quantities::default()
    };
    instant.phases.clear();
    instant.memory_parts.clear();
    vec![
        ("nothing", nothing),
        ("default", Inputs::default()),
        ("one step", one_step),
        ("all not finite", all_nan),
        ("no time at all", instant),
    ]
}
