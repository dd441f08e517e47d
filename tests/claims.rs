//! What is commonly said of the cost of fine-tuning, held against the estimate: `configs/claims/README.md` is what the
//! configs beside it give, and says what would make each claim true. `FTTRAIN_BLESS=1` writes it anew.

#[path = "support/run.rs"]
mod run;

use run::Place;
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

/// Where a single accelerator of the kind that the claims are about is rented.
const MACHINE: &str = "lambda/gpu_1x_h100_sxm5";
const TOKENS_PER_ROW: u64 = 512;

/// One line of the page.
struct Claim {
    said: &'static str,
    estimated: String,
    against: String,
    true_if: String,
}

/// The estimate of a claim's config.
fn estimate(place: &Place, name: &str, rows: u64) -> Value {
    let config = format!("configs/claims/{name}.toml");
    let (rows, tokens) = (rows.to_string(), TOKENS_PER_ROW.to_string());
    let ended = place.run(&[
        "estimate",
        &config,
        "--rows",
        &rows,
        "--tokens-per-row",
        &tokens,
        "--on",
        MACHINE,
        "--json",
    ]);
    ended.expect(0).json()["machines"][0].clone()
}

fn number(of: &Value) -> f64 {
    of.as_f64().unwrap_or_else(|| panic!("{of} is no number"))
}

fn method<'a>(estimate: &'a Value, name: &str) -> &'a Value {
    estimate["methods"].as_array().unwrap().iter().find(|m| m["setting"] == name).unwrap()
}

fn money(usd: f64) -> String {
    let digits = if usd < 10.0 { 2 } else { 0 };
    format!("${}", grouped(&format!("{usd:.digits$}")))
}

fn grouped(number: &str) -> String {
    let (whole, rest) = number.split_once('.').map_or((number, String::new()), |(w, r)| (w, format!(".{r}")));
    let mut out = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out + &rest
}

fn times(ratio: f64) -> String {
    let digits = usize::from(ratio < 10.0);
    format!("{} ×", grouped(&format!("{ratio:.digits$}")))
}

fn gb(bytes: f64) -> String {
    format!("{:.0} GB", bytes / 1e9)
}

/// A sum of money that a project is said to cost.
fn project(said: &'static str, usd: f64, estimate: &Value) -> Claim {
    let cost = number(&estimate["predicted"]["cost_usd"]);
    let hours = number(&estimate["predicted"]["wall_s"]) / 3600.0;
    let interval = &estimate["interval"]["cost_usd"];
    let (low, high) = (number(&interval["low"]), number(&interval["high"]));
    let ratio = usd / cost;
    let true_if = if ratio > 1.0 {
        format!(
            "the money pays for {} such runs (experiments, failures, retraining), or for people and data: the run itself \
             takes {hours:.1} hours of one H100",
            grouped(&format!("{ratio:.0}"))
        )
    } else {
        format!("there were {} of the tokens: fewer rows, shorter ones, or fewer epochs", share(ratio))
    };
    Claim {
        said,
        estimated: format!("{} ({} – {})", money(cost), money(low), money(high)),
        against: times(ratio),
        true_if,
    }
}

fn share(of_one: f64) -> String {
    format!("{:.0} %", 100.0 * of_one)
}

/// How much an adapter saves of the cost of full fine-tuning, and of its memory.
fn saving(said: &'static str, name: &str, claimed: f64, seven: &Value) -> Claim {
    let of = |key: &str| {
        let [full, other] = ["full", name].map(|m| number(&method(seven, m)[key]));
        1.0 - other / full
    };
    let (cost, memory) = (of("cost_usd"), of("peak_memory_bytes"));
    let price = (1.0 - claimed) / (1.0 - cost);
    Claim {
        said,
        estimated: format!("{} of the money, {} of the memory", share(cost), share(memory)),
        against: times(claimed / cost),
        true_if: format!(
            "what needs {} of the memory also runs on a machine at {} of the hourly price and the same speed: on one \
             machine the forward pass and the gradient's way back stay, and only the weights' own gradients go",
            share(1.0 - memory),
            share(price)
        ),
    }
}

/// Bytes of each parameter in full fine-tuning.
fn memory(seven: &Value) -> Claim {
    let bytes = number(&method(seven, "full")["peak_memory_bytes"]);
    let parameters = number(&seven["parameters"]);
    let (each, billions) = (bytes / parameters, parameters / 1e9);
    Claim {
        said: "Full fine-tuning needs 12 GB of memory for each billion of parameters",
        estimated: format!("{each:.1} GB each, {} for {billions:.1} billion", gb(bytes)),
        against: times(12.0 / each),
        true_if: "weights and gradients are kept in 16 bits (4 bytes) and both moments in f32 (8 bytes), and nothing is \
                  counted for activations; in f32, as here, weights, gradients and moments alone take 16"
            .into(),
    }
}

/// Dollars of an hour: what the price table has for machines with eight of the accelerators.
fn hourly(place: &Place, said: &'static str, usd: f64) -> Claim {
    let table = place.run(&["prices", "--json"]).expect(0).json();
    let rows = table.as_array().or_else(|| table["prices"].as_array()).expect("rows of prices");
    let of = |count: u64| {
        let own = rows.iter().filter(|r| r["accelerator"] == "H100" && r["count"] == count);
        let rented = own.filter(|r| !r["provider"].as_str().unwrap_or_default().contains("hosting"));
        let mut prices: Vec<f64> = rented.filter_map(|r| r["usd_per_hour"].as_f64()).collect();
        prices.sort_by(f64::total_cmp);
        prices
    };
    let (one, prices) = (of(1), of(8));
    let [least, middle, most] = [0, prices.len() / 2, prices.len() - 1].map(|at| prices[at]);
    let above = prices.iter().filter(|p| **p >= usd).count();
    Claim {
        said,
        estimated: format!(
            "{} for eight H100 ({} – {}, {} rows)",
            money(middle),
            money(least),
            money(most),
            prices.len()
        ),
        against: times(usd / middle),
        true_if: format!(
            "all eight are kept at work, at one of the {above} dearest of {} rows; one H100 is rented from {} to {}",
            prices.len(),
            money(one[0]),
            money(one[one.len() - 1])
        ),
    }
}

fn claims(place: &Place) -> Vec<Claim> {
    let seven = estimate(place, "seven-billion", 100_000);
    vec![
        project("Fine-tuning 7 billion parameters on 100,000 examples approaches $10,000", 10_000.0, &seven),
        saving("PEFT cuts the cost of training by 80 %", "lora", 0.8, &seven),
        saving("QLoRA cuts it by up to 90 %", "qlora", 0.9, &seven),
        memory(&seven),
        project("A small project costs $300", 300.0, &estimate(place, "small", 10_000)),
        project("A large project costs $35,000", 35_000.0, &estimate(place, "large", 100_000)),
        hourly(place, "The machine costs $61.60 an hour", 61.60),
    ]
}

fn page(place: &Place) -> String {
    let mut text = format!(
        "# Claims\n\nWhat is commonly said of the cost of fine-tuning, against what fttrain estimates for the configs in this \
         folder. Generated: `FTTRAIN_BLESS=1 cargo test --release --test claims`.\n\nAll on one H100 (`{MACHINE}`), by data \
         sheet and published runs alone, rows of {TOKENS_PER_ROW} tokens, three epochs; `seven-billion.toml` and \
         `large.toml` with 100,000 rows, `small.toml` with 10,000. The shapes are those of Llama 2 (7B, 70B) and TinyLlama \
         (1.1B) as their `config.json` states them. Where a run does not fit on one H100, its time and money are those of \
         the same work on as many as it needs.\n\n| Said | Estimated (interval) | Said over estimated | It would be true if \
         |\n|---|---|---|---|\n"
    );
    for claim in claims(place) {
        let Claim { said, estimated, against, true_if } = claim;
        let _ = writeln!(text, "| {said} | {estimated} | {against} | {true_if} |");
    }
    text
}

#[test]
fn the_claims_page_is_what_its_configs_give() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/claims/README.md");
    let wanted = page(&Place::unknown());
    if std::env::var_os("FTTRAIN_BLESS").is_some() {
        std::fs::write(&path, wanted).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap();
    assert!(found == wanted, "run: FTTRAIN_BLESS=1 cargo test --release --test claims\n{wanted}");
}
