//! A report says what was measured, what was not, and nothing else; no text inside it becomes markup or moves the
//! terminal.

use fttrain::estimate::Quantities;
use fttrain::report::{
    self, DataSummary, Inputs, Interval, Parameters, PartInput, PhaseInput, Plan, Price, Provenance, Report,
    SamplePair, Status, build, estimate_table, html, json, terminal,
};
use fttrain::train::metrics::{EvalRecord, StepRecord};
use fttrain::train::screen::Screen;

fn steps(count: u32) -> Vec<StepRecord> {
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
                padded_tokens: 0,
                loss_tokens: 3010,
                step_s: 1.9 + noise / 3.0,
                rss_bytes: Some(1_250_000_000 + u64::from(step.min(40)) * 4_000_000),
                device_bytes: None,
            }
        })
        .collect()
}

fn evals() -> Vec<EvalRecord> {
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

fn part(name: &str, predicted: Option<u64>, measured: Option<u64>) -> PartInput {
    PartInput { name: name.into(), predicted_bytes: predicted, measured_bytes: measured }
}

fn provenance() -> Provenance {
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

fn memory_parts() -> Vec<PartInput> {
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

/// A run of 400 steps as it usually ends, on a machine without an energy counter.
fn usual() -> Inputs {
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
        ..Inputs::default()
    }
}

fn pages(inputs: Inputs) -> (Report, Vec<String>) {
    let (steps, evals) = (inputs.steps.clone(), inputs.evals.clone());
    let report = build(inputs);
    let texts = vec![
        terminal(&report, Screen::plain(80)),
        html(&report, &steps, &evals),
        json::to_text(&report).unwrap(),
    ];
    (report, texts)
}

#[test]
fn report_json_has_the_pinned_keys() {
    let (_, texts) = pages(usual());
    let value: serde_json::Value = serde_json::from_str(&texts[2]).unwrap();
    for key in ["predicted", "measured", "error_pct", "modelled"] {
        let keys: Vec<_> = value[key].as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            ["wall_s", "step_s", "tokens_per_s", "peak_memory_bytes", "energy_j", "cost_usd"],
            "{key}"
        );
    }
    assert_eq!(value["status"], "done");
    assert_eq!(value["interval"]["cost_usd"]["low"], 0.0718);
    assert!(value["measured"]["energy_j"].is_null());
    assert!(value["error_pct"]["energy_j"].is_null());
    assert_eq!(value["modelled"]["energy_j"], 62_000.0);
    for key in ["usd_per_hour", "source", "as_of"] {
        assert!(!value["price"][key].is_null(), "{key}");
    }
    let keys = |v: &serde_json::Value| -> Vec<String> { v.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(keys(&value["phases"][0]), ["name", "wall_s", "cost_usd"]);
    assert_eq!(keys(&value["memory_parts"][0]), ["name", "predicted_bytes", "measured_bytes"]);
}

#[test]
fn the_parts_sum_to_their_wholes() {
    let (report, _) = pages(usual());
    let wall: f64 = report.phases.iter().map(|p| p.wall_s).sum();
    let cost: f64 = report.phases.iter().filter_map(|p| p.cost_usd).sum();
    assert!((wall - report.measured.wall_s.unwrap()).abs() < 1e-9);
    assert!((cost - report.measured.cost_usd.unwrap()).abs() < 1e-12);
    assert_eq!(report.phases.last().unwrap().name, "rounding");
    let bytes: i64 = report.memory_parts.iter().filter_map(|p| p.measured_bytes).sum();
    assert_eq!(u64::try_from(bytes).ok(), report.measured.peak_memory_bytes);
}

#[test]
fn step_time_and_throughput_follow_from_the_records() {
    let mut inputs = usual();
    inputs.steps = steps(3);
    for (record, step_s) in inputs.steps.iter_mut().zip([9.0, 2.0, 4.0]) {
        record.step_s = step_s;
    }
    let report = build(inputs);
    assert_eq!(report.measured.step_s, Some(3.0));
    assert_eq!(report.measured.tokens_per_s, Some(3.0 * 8192.0 / 15.0));
}

#[test]
fn a_report_reads_back_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let (report, _) = pages(usual());
    json::write(&path, &report).unwrap();
    assert_eq!(json::read(&path).unwrap(), report);
}

#[test]
fn a_file_that_is_no_report_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    std::fs::write(&path, "{\n \"run_id\": 7}").unwrap();
    let error = json::read(&path).unwrap_err().to_string();
    assert!(error.contains("report.json:2:12: not a report"), "{error}");
    assert!(json::read(&folder.path().join("none")).is_err());
}

#[test]
fn the_closing_table_fits_any_terminal() {
    let (report, _) = pages(usual());
    for columns in [12, 20, 40, 59, 60, 79, 80, 120, 200] {
        let text = terminal(&report, Screen::plain(columns));
        for line in text.lines() {
            assert!(console::measure_text_width(line) <= columns, "{columns}: {line:?}");
        }
        let words: Vec<_> = text.split_whitespace().collect();
        assert!(words.join(" ").contains("not measured"), "{columns}:\n{text}");
    }
    let text = terminal(&report, Screen::plain(80));
    assert!(text.contains("12 min 22 s – 14 min 32 s"), "the interval is lost at 80 columns:\n{text}");
    assert!(text.contains("modelled, not measured: energy 62,000 J"), "{text}");
    assert!(text.contains("rounding") && text.contains("unattributed"), "{text}");
}

#[test]
fn without_utf8_the_report_is_ascii() {
    let mut inputs = usual();
    inputs.samples[0].after = Some("答え 72 – ok".into());
    let screen = Screen { unicode: false, ..Screen::plain(80) };
    let text = terminal(&build(inputs), screen);
    assert!(text.is_ascii(), "{text}");
}

/// Runs that have little or nothing to report.
fn edges() -> Vec<(&'static str, Inputs)> {
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

#[test]
fn what_is_missing_says_so_and_is_never_nan_or_infinite() {
    for (name, inputs) in edges() {
        let (report, texts) = pages(inputs);
        for text in &texts {
            for word in ["NaN", "inf ", "inf<", ">inf", "$inf"] {
                assert!(!text.contains(word), "{name}: {word} in\n{text}");
            }
        }
        let back: Report = serde_json::from_str(&texts[2]).unwrap();
        assert_eq!(back, report, "{name}");
    }
}

#[test]
fn a_run_without_measurements_shows_words_and_no_numbers() {
    let (_, inputs) = edges().swap_remove(0);
    let (report, texts) = pages(inputs);
    assert_eq!(report.measured, Quantities::default());
    assert_eq!(report.error_pct, report::ErrorPct::default());
    for text in &texts[..2] {
        // The style sheet has zeros of its own.
        let text = text.split("</style>").last().unwrap();
        assert!(text.contains("Nothing was measured"), "{text}");
        assert!(text.contains("not measured") && text.contains("the disk is full"), "{text}");
        assert!(!text.contains("$0") && !text.contains("0 B") && !text.contains("0.0"), "{text}");
    }
    assert!(texts[0].contains("no step was taken"), "{}", texts[0]);
}

#[test]
fn one_step_has_no_step_time_but_a_throughput() {
    let (_, inputs) = edges().swap_remove(2);
    let (report, texts) = pages(inputs);
    assert_eq!(report.measured.step_s, None);
    assert!(report.measured.tokens_per_s.is_some());
    assert!(texts[0].contains("training loss "), "{}", texts[0]);
}

const HOSTILE: &str = "<script>alert(1)</script>\"'><img src=x onerror=y>\x1b[2J\u{202e}";

/// Every string of the report replaced.
fn hostile(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => *text = HOSTILE.into(),
        serde_json::Value::Array(all) => all.iter_mut().for_each(hostile),
        serde_json::Value::Object(all) => all.values_mut().for_each(hostile),
        _ => {}
    }
}

#[test]
fn no_string_of_a_report_becomes_markup_or_moves_the_terminal() {
    let mut inputs = usual();
    inputs.reason = Some("x".into());
    inputs.provenance.gpu = Some("x".into());
    let (steps, evals) = (inputs.steps.clone(), inputs.evals.clone());
    let mut value = serde_json::to_value(build(inputs)).unwrap();
    hostile(&mut value);
    value["status"] = "done".into();
    let report: Report = serde_json::from_value(value).unwrap();
    let page = html(&report, &steps, &evals);
    assert!(!page.contains("<script") && !page.contains("<img"), "markup got through");
    // Once each: three of the header's strings stand twice.
    let shown = page.matches("&lt;script&gt;").count();
    assert!(shown >= 35, "only {shown} strings are shown");
    for text in [page, terminal(&report, Screen::plain(80))] {
        assert!(!text.contains('\x1b') && !text.contains('\u{202e}'));
    }
}

#[test]
fn the_page_needs_nothing_and_runs_nothing() {
    let (_, texts) = pages(usual());
    let page = &texts[1];
    assert!(page.contains("default-src 'none'"));
    for word in ["http://", "https://", "src=", "href=", "url(", "@import", "<script", "style=", "onload"] {
        assert!(!page.contains(word), "{word}");
    }
    let opened = page.matches("<section>").count();
    assert_eq!(opened, page.matches("</section>").count());
    assert_eq!(opened, 7);
}

#[test]
fn a_figure_too_small_to_show_is_escaped_as_well() {
    let mut inputs = usual();
    inputs.measured.cost_usd = Some(1e-9);
    inputs.predicted.wall_s = Some(1e-9);
    let (_, texts) = pages(inputs);
    assert!(texts[1].contains("&lt; $0.000001") && texts[1].contains("&lt; 1 µs"));
    assert!(!texts[1].contains("< $") && !texts[1].contains("< 1"));
}

#[test]
fn the_page_of_a_long_run_stays_small() {
    let mut inputs = usual();
    inputs.steps = steps(50_000);
    let (_, texts) = pages(inputs);
    assert!(texts[1].len() < 120_000, "{} bytes", texts[1].len());
}

#[test]
fn the_estimate_says_what_will_be_trained_and_what_it_takes() {
    let inputs = usual();
    let mut plan = Plan {
        base: "HuggingFaceTB/SmolLM2-135M-Instruct".into(),
        method: "lora".into(),
        machine: "this machine: Intel Xeon Platinum 8488C, 4 threads".into(),
        parameters: inputs.parameters,
        data: inputs.data,
        steps: Some(400),
        epochs: Some(2.0),
        memory_parts: vec![("base_weights".into(), 538_000_000), ("activations".into(), 402_000_000)],
        memory_available: Some(16 << 30),
        predicted: inputs.predicted,
        interval: inputs.interval,
        flops_per_step: Some(5.1e12),
        price: inputs.price,
        methods: Vec::new(),
        levers: Vec::new(),
        warnings: vec!["a warning".into()],
    };
    let text = estimate_table(&plan, Screen::plain(80));
    for fact in [
        "139,399,488, of which 4,884,480 are trained (3.5 %)",
        "7,320 to train on, 150 to evaluate on, 3 dropped",
        "1,612,400 an epoch, 37.4 % counted in the loss",
        "400 in 2 epochs, 5.10 TFLOP each",
        "fits: 16.00 GiB are available",
        "12 min 22 s – 14 min 32 s",
        "aws/c7i.2xlarge, 2025-10-14",
        "a warning",
    ] {
        assert!(text.contains(fact), "{fact} is not in\n{text}");
    }
    for columns in [20, 40, 60, 80] {
        for line in estimate_table(&plan, Screen::plain(columns)).lines() {
            assert!(console::measure_text_width(line) <= columns, "{columns}: {line:?}");
        }
    }
    plan.memory_available = Some(1 << 30);
    assert!(estimate_table(&plan, Screen::plain(80)).contains("does not fit"));
    let empty = estimate_table(&Plan::default(), Screen::plain(80));
    assert!(empty.contains("unknown") && !empty.contains("NaN"), "{empty}");
}

/// Writes the pages that a person should look at: `FTTRAIN_PAGES=folder cargo test --test report -- --ignored`.
#[test]
#[ignore = "needs FTTRAIN_PAGES"]
fn pages_to_look_at() {
    let folder = std::env::var("FTTRAIN_PAGES").expect("FTTRAIN_PAGES names a folder");
    let folder = std::path::Path::new(&folder);
    let named = std::iter::once(("usual", usual())).chain(edges());
    for (name, inputs) in named {
        let (_, texts) = pages(inputs);
        let file = folder.join(name.replace(' ', "-"));
        std::fs::write(file.with_extension("html"), &texts[1]).unwrap();
        std::fs::write(file.with_extension("txt"), &texts[0]).unwrap();
    }
}
