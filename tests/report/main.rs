//! A report says what was measured, what was not, and nothing else; no text inside it becomes markup or moves the
//! terminal.

mod browser;
mod fixture;

use fixture::{edges, steps, usual};
use fttrain::estimate::Quantities;
use fttrain::report::{self, Inputs, Plan, Report, build, estimate_table, html, json, terminal};
use fttrain::train::screen::Screen;

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
    assert_eq!(opened, 9);
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
fn memory_is_drawn_part_on_part_over_time() {
    let (_, texts) = pages(usual());
    let areas: Vec<&str> = texts[1].split("<path class=\"area m").skip(1).collect();
    // Those that held anything, the uppermost first: data over logits over activations and so on down to the weights.
    let classes: Vec<&str> = areas.iter().filter_map(|area| area.get(..1)).collect();
    assert_eq!(classes, ["7", "6", "4", "3", "2", "1", "0"]);
    assert!(texts[1].contains("<i class=\"key m0\"></i>base weights"));
    let (_, without) = pages(Inputs { timeline: Vec::new(), ..usual() });
    assert!(!without[1].contains("area m"), "what is not known is not drawn");
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
        merge_bytes: Some(768 << 20),
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
        "`fttrain merge` afterwards: 768.0 MiB",
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
