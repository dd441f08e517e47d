//! Numbers as people read them, and the words where there is no number. Shared by terminal and HTML, so that both say
//! the same.

use super::record::{Interval, Price, Report, Work};
use crate::units::{Bytes, Joules, Seconds, Usd, group_thousands};

/// In place of a measured number.
pub const NOT_MEASURED: &str = "not measured";
/// In place of a number that follows from something not known, such as a price.
pub const UNKNOWN: &str = "unknown";

/// Of a run that ended before it began.
pub const NOTHING_MEASURED: &str = "Nothing was measured: the run ended before its meter had a figure.";

/// One of the six quantities of a run, ready to be shown.
pub struct Quantity {
    /// Its key in the JSON.
    pub key: &'static str,
    /// What people call it.
    pub title: &'static str,
    /// In the key's unit.
    pub predicted: Option<f64>,
    /// Range of the prediction.
    pub interval: Option<Interval>,
    /// In the key's unit.
    pub measured: Option<f64>,
    /// In the key's unit.
    pub modelled: Option<f64>,
    /// %.
    pub error_pct: Option<f64>,
    /// The number with its unit.
    pub show: fn(f64) -> String,
    /// The word for a measured value that is missing.
    pub missing: &'static str,
}

impl Quantity {
    /// Whether there is any figure of it.
    pub fn is_known(&self) -> bool {
        self.predicted.or(self.measured).or(self.modelled).is_some()
    }

    /// The prediction or "unknown".
    pub fn predicted_text(&self) -> String {
        self.predicted.map_or_else(|| UNKNOWN.to_owned(), |v| (self.show)(v))
    }

    /// The range, or nothing.
    pub fn interval_text(&self) -> String {
        self.interval.map_or_else(String::new, |range| {
            format!("{} – {}", (self.show)(range.low), (self.show)(range.high))
        })
    }

    /// The measurement, or the word for its absence.
    pub fn measured_text(&self) -> String {
        self.measured.map_or_else(|| self.missing.to_owned(), |v| (self.show)(v))
    }

    /// The error, or a dash.
    pub fn error_text(&self) -> String {
        self.error_pct.map_or_else(|| "–".to_owned(), percent_error)
    }
}

/// The six quantities of a report in the order in which they are shown.
pub fn quantities(report: &Report) -> [Quantity; 6] {
    let (p, m, e, x) = (&report.predicted, &report.measured, &report.error_pct, &report.modelled);
    let float = |v: Option<u64>| v.map(|v| v as f64);
    let quantity = |key, title, predicted, measured, modelled, error_pct, show| Quantity {
        key,
        title,
        predicted,
        interval: report.interval.get(key).copied(),
        measured,
        modelled,
        error_pct,
        show,
        missing: NOT_MEASURED,
    };
    let money: fn(f64) -> String = money;
    let mut rows = [
        quantity("wall_s", "time", p.wall_s, m.wall_s, x.wall_s, e.wall_s, seconds),
        quantity("step_s", "step time", p.step_s, m.step_s, x.step_s, e.step_s, seconds),
        quantity(
            "tokens_per_s",
            "tokens/s",
            p.tokens_per_s,
            m.tokens_per_s,
            x.tokens_per_s,
            e.tokens_per_s,
            rate,
        ),
        quantity(
            "peak_memory_bytes",
            "peak memory",
            float(p.peak_memory_bytes),
            float(m.peak_memory_bytes),
            float(x.peak_memory_bytes),
            e.peak_memory_bytes,
            bytes,
        ),
        quantity("energy_j", "energy", p.energy_j, m.energy_j, x.energy_j, e.energy_j, joules),
        quantity("cost_usd", "cost", p.cost_usd, m.cost_usd, x.cost_usd, e.cost_usd, money),
    ];
    // The clock ran; it is the price that nobody gave.
    if report.price.usd_per_hour.is_none()
        && let Some(cost) = rows.last_mut()
    {
        cost.missing = UNKNOWN;
    }
    rows
}

/// What people call a quantity, by its key.
pub fn title(key: &str) -> Option<&'static str> {
    quantities(&Report::default()).into_iter().find(|q| q.key == key).map(|q| q.title)
}

/// A share of an error in points, with its sign.
pub fn points(points: f64) -> String {
    percent_error(points).trim_end_matches(" %").to_owned()
}

/// Puts the sign where people write it.
fn signed(v: f64, show: impl Fn(f64) -> String) -> String {
    if v < 0.0 { format!("−{}", show(-v)) } else { show(v) }
}

/// Time, s.
pub fn seconds(s: f64) -> String {
    signed(s, |s| {
        // Three digits: with fewer, an error of 3 % would stand beside two equal times.
        if s > 0.0 && s < 5e-7 {
            "< 1 µs".to_owned()
        } else if (9.995e-4..9.995e-3).contains(&s) {
            format!("{:.2} ms", s * 1e3)
        } else if (9.995e-3..9.995e-2).contains(&s) {
            format!("{:.1} ms", s * 1e3)
        } else if (0.9995..9.995).contains(&s) {
            format!("{s:.2} s")
        } else if (59.95..60.0).contains(&s) {
            Seconds(60.0).to_string()
        } else if s >= 100.0 * 3600.0 {
            format!("{} h", thousands(s / 3600.0))
        } else {
            Seconds(s).to_string()
        }
    })
}

/// Memory, bytes.
pub fn bytes(b: f64) -> String {
    signed(b, |b| match format!("{b:.0}").parse() {
        Ok(whole) => Bytes(whole).to_string(),
        Err(_) => format!("{b:.2e} B"),
    })
}

/// The unit of a chart whose largest value is `largest` bytes, and its bytes.
pub fn memory_unit(largest: f64) -> (&'static str, f64) {
    if largest >= 1_073_741_824.0 { ("GiB", 1_073_741_824.0) } else { ("MiB", 1_048_576.0) }
}

/// Energy, J.
pub fn joules(j: f64) -> String {
    signed(j, |j| {
        if j > 0.0 && j < 10.0 {
            format!("{j:.2} J")
        } else if j < 3.6e5 {
            format!("{} J", thousands(j))
        } else {
            Joules(j).to_string()
        }
    })
}

/// Dollars; a small sum is never shown as none.
pub fn money(usd: f64) -> String {
    signed(usd, |usd| {
        if usd > 0.0 && usd < 5e-7 {
            "< $0.000001".to_owned()
        } else if usd >= 1000.0 {
            format!("${}", thousands(usd))
        } else {
            Usd(usd).to_string()
        }
    })
}

/// A count a second.
pub fn rate(per_s: f64) -> String {
    signed(per_s, |r| {
        if r >= 100.0 {
            thousands(r)
        } else if r >= 1.0 {
            format!("{r:.1}")
        } else {
            format!("{r:.3}")
        }
    })
}

/// Rounded to a whole number, in groups of three.
pub fn thousands(v: f64) -> String {
    let whole = format!("{v:.0}");
    whole.parse().map_or(whole, group_thousands)
}

/// An error in percent, always with its sign.
pub fn percent_error(pct: f64) -> String {
    if pct.abs() < 0.05 { "0.0 %".to_owned() } else { format!("{pct:+.1} %").replace('-', "−") }
}

/// A share of 0 … 1 in percent.
pub fn share(of_one: f64) -> String {
    let pct = of_one * 100.0;
    if pct > 0.0 && pct < 0.01 {
        "< 0.01 %".to_owned()
    } else if pct < 1.0 {
        signed(pct, |pct| format!("{pct:.2} %"))
    } else {
        format!("{pct:.1} %")
    }
}

/// A loss, four decimals.
pub fn loss(v: f64) -> String {
    format!("{v:.4}")
}

/// Floating-point operations a second.
pub fn flops_per_s(v: f64) -> String {
    format!("{}/s", crate::units::Flops(v))
}

/// What was computed, how fast, and how much of the machine that used; `None` where no step was timed.
pub fn work(work: &Work) -> Option<String> {
    let count = |v: Option<f64>| or_word(v, |v| crate::units::Flops(v).to_string(), UNKNOWN);
    let (all, step) = (count(work.flops), count(work.flops_per_step));
    let text = format!("computed {all}, {step} a step, at {}", flops_per_s(work.flops_per_s?));
    let (Some(used), Some(peak)) = (work.utilisation, work.peak_flops_per_s) else { return Some(text) };
    let source = work.peak_source.as_deref().unwrap_or("at best");
    Some(format!("{text}, {} of {} ({source})", share(used), flops_per_s(peak)))
}

/// The value by `show`, or the word.
pub fn or_word<T>(value: Option<T>, show: impl Fn(T) -> String, word: &str) -> String {
    value.map_or_else(|| word.to_owned(), show)
}

/// `base_weights` as `base weights`.
pub fn name(key: &str) -> String {
    key.replace('_', " ")
}

/// `lora` as people write it.
pub fn method(key: &str) -> &str {
    match key {
        "lora" => "LoRA",
        "qlora" => "QLoRA",
        "full" => "full fine-tuning",
        other => other,
    }
}

/// The first letter large.
pub fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + letters.as_str()
}

/// Two decimals, or as many as a price has, up to six.
fn cents(usd: f64) -> String {
    let all = format!("{usd:.6}");
    let shown = all.trim_end_matches('0').len().max(all.len() - 4);
    all.split_at(shown).0.to_owned()
}

/// The price with its source and date, or that it is unknown.
pub fn price(price: &Price) -> String {
    let Some(per_hour) = price.usd_per_hour else {
        return "unknown (set `[cost] machine` or `usd_per_hour`)".to_owned();
    };
    let from: Vec<&str> = [price.source.as_deref(), price.as_of.as_deref()].into_iter().flatten().collect();
    let from = if from.is_empty() { "source not given".to_owned() } else { from.join(", ") };
    format!("${} an hour ({from})", cents(per_hour))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_amounts_are_never_shown_as_0() {
        assert_eq!(money(1e-9), "< $0.000001");
        assert_eq!(money(0.0), "$0.00");
        assert_eq!(seconds(1e-8), "< 1 µs");
        assert_eq!(joules(0.3), "0.30 J");
        assert_eq!(joules(62_000.0), "62,000 J");
        assert_eq!(seconds(0.001_234), "1.23 ms");
        assert_eq!(seconds(1.861), "1.86 s");
        assert_eq!(seconds(12.34), "12.3 s");
        assert_eq!(share(1e-6), "< 0.01 %");
        assert_eq!(share(0.0), "0.00 %");
    }

    #[test]
    fn work_says_how_much_how_fast_and_of_what() {
        let mut done = Work {
            flops: Some(4e12),
            flops_per_step: Some(1e12),
            flops_per_s: Some(5e11),
            ..Work::default()
        };
        assert_eq!(work(&done).unwrap(), "computed 4.00 TFLOP, 1.00 TFLOP a step, at 500.00 GFLOP/s");
        done.peak_flops_per_s = Some(1e12);
        done.utilisation = Some(0.5);
        done.peak_source = Some("measured".into());
        assert!(work(&done).unwrap().ends_with(", 50.0 % of 1.00 TFLOP/s (measured)"));
        assert_eq!(work(&Work::default()), None);
    }

    #[test]
    fn signs_stand_in_front() {
        assert_eq!(money(-0.02), "−$0.020000");
        assert_eq!(bytes(-1536.0), "−1.5 KiB");
        assert_eq!(percent_error(-4.94), "−4.9 %");
        assert_eq!(percent_error(12.0), "+12.0 %");
        assert_eq!(percent_error(-0.01), "0.0 %");
    }

    #[test]
    fn large_amounts_are_grouped() {
        assert_eq!(rate(12_345.6), "12,346");
        assert_eq!(money(12_345.6), "$12,346");
        assert_eq!(seconds(3.6e6), "1,000 h");
        assert_eq!(seconds(59.97), "1 min 00 s");
    }

    #[test]
    fn a_price_says_where_and_when_it_comes_from() {
        let mut known = Price {
            usd_per_hour: Some(2.49),
            source: Some("aws/p5.4xlarge".into()),
            as_of: Some("2025-10-01".into()),
        };
        assert_eq!(price(&known), "$2.49 an hour (aws/p5.4xlarge, 2025-10-01)");
        known.usd_per_hour = Some(0.3472);
        assert!(price(&known).starts_with("$0.3472 an hour"));
        known.usd_per_hour = Some(3.0);
        assert!(price(&known).starts_with("$3.00 an hour"));
        known.usd_per_hour = None;
        assert!(price(&known).starts_with("unknown"));
    }

    #[test]
    fn without_a_price_the_measured_cost_is_unknown_rather_than_not_measured() {
        let rows = quantities(&Report::default());
        assert_eq!(rows[5].measured_text(), "unknown");
        assert_eq!(rows[0].measured_text(), "not measured");
    }
}
