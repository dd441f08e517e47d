//! What the meter saw beside time and memory, in words: processor, disk, accelerators, energy, carbon, the bill's lines,
//! and what metering itself took.

use super::record::Report;
use super::words;
use crate::estimate::energy::EnergyLine;
use crate::meter::{DeviceTotal, Measured};
use std::fmt::Write;

/// Titles with their texts, in the order in which they are shown; what was not measured has none.
pub fn facts(report: &Report) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut put = |title: &str, text: Option<String>| all.extend(text.map(|text| (title.to_owned(), text)));
    if let Some(meter) = &report.meter {
        put("processor", processor(meter));
        put("processes", processes(meter));
        put("disk", disk(meter));
        put("cgroup", group(meter));
        for device in &meter.devices {
            put(&device.name, Some(accelerator(device, meter.wall_s)));
        }
        put(
            "device memory",
            meter.device_memory_source.clone().filter(|_| meter.peak_device_bytes.is_some()),
        );
    }
    put("energy", Some(joined(report.energy.iter().map(energy))).filter(|text| !text.is_empty()));
    put(
        "carbon",
        report.carbon.as_ref().map(|carbon| {
            let grid = &carbon.grid;
            let year = grid.as_of.as_ref().map_or_else(String::new, |year| format!(", {year}"));
            format!(
                "{} CO2e, modelled: {} g a kWh in {} ({}{year})",
                grams(carbon.grams),
                words::rate(grid.g_per_kwh),
                grid.region,
                grid.source
            )
        }),
    );
    let lines = report.costs.iter().map(|line| {
        let amount = words::or_word(line.amount.usd(), words::money, words::UNKNOWN);
        match line.amount.usd() {
            Some(_) => format!("{} {amount} ({})", line.category, line.amount.kind().as_str()),
            None => format!("{} {amount}", line.category),
        }
    });
    put("bill", Some(joined(lines)).filter(|_| report.costs.len() > 1));
    put("the meter", report.meter.as_ref().and_then(overhead));
    all
}

/// Mass; a small one is never shown as none.
fn grams(grams: f64) -> String {
    match grams {
        g if g >= 1000.0 => format!("{:.2} kg", g / 1000.0),
        g if g >= 1.0 || g <= 0.0 => format!("{g:.1} g"),
        g if g >= 1e-3 => format!("{:.1} mg", g * 1e3),
        _ => "< 1 mg".to_owned(),
    }
}

fn joined(texts: impl Iterator<Item = String>) -> String {
    texts.collect::<Vec<_>>().join("; ")
}

fn processor(meter: &Measured) -> Option<String> {
    let cpu_s = meter.cpu_s?;
    let mut text = format!("{} of CPU time", words::seconds(cpu_s));
    if meter.wall_s > 0.0 {
        let _ = write!(text, ", {:.2} threads busy in the mean", cpu_s / meter.wall_s);
    }
    if let Some(faults) = meter.major_faults.filter(|n| *n > 0) {
        let _ = write!(text, ", {} page faults waited for the disk", words::thousands(faults as f64));
    }
    Some(text)
}

fn processes(meter: &Measured) -> Option<String> {
    (meter.processes > 1).then(|| {
        let tree = meter.peak_tree_bytes.map_or_else(String::new, |bytes| {
            let source = meter.tree_memory_source.as_deref().unwrap_or("memory");
            format!(", together up to {} of {source} at a look", words::bytes(bytes as f64))
        });
        format!("up to {} at once{tree}", meter.processes)
    })
}

fn disk(meter: &Measured) -> Option<String> {
    let (read, written) = (meter.read_bytes?, meter.write_bytes?);
    Some(format!("{} read, {} written", words::bytes(read as f64), words::bytes(written as f64)))
}

fn group(meter: &Measured) -> Option<String> {
    let peak = words::bytes(meter.peak_group_bytes? as f64);
    let limit = meter.group_limit_bytes.map_or_else(
        || ", without a limit".to_owned(),
        |bytes| format!(" of {}", words::bytes(bytes as f64)),
    );
    Some(format!("{peak}{limit}, page cache included"))
}

fn accelerator(device: &DeviceTotal, wall_s: f64) -> String {
    let busy = device.busy_s.map(|busy| {
        let share = if wall_s > 0.0 { words::share(busy / wall_s) } else { "–".to_owned() };
        format!("busy {} ({share} of the time)", words::seconds(busy))
    });
    let memory = device.peak_bytes.map(|bytes| format!("{} at its peak", words::bytes(bytes as f64)));
    let hottest = device.hottest_c.map(|c| format!("up to {c} °C"));
    let slowest = device.slowest_mhz.map(|mhz| format!("never below {mhz} MHz while busy"));
    let all: Vec<String> = [busy, memory, hottest, slowest].into_iter().flatten().collect();
    if all.is_empty() { words::NOT_MEASURED.to_owned() } else { all.join(", ") }
}

fn energy(line: &EnergyLine) -> String {
    let joules = words::or_word(line.energy_j, words::joules, words::UNKNOWN);
    format!("{} {joules}, {}: {}", line.part, line.kind.as_str(), line.source)
}

fn overhead(meter: &Measured) -> Option<String> {
    let gap = words::seconds(meter.longest_gap_s);
    Some(format!(
        "{} of the time ({} of CPU time for {} looks, at most {gap} apart)",
        words::share(meter.overhead()?),
        words::seconds(meter.meter_cpu_s?),
        words::thousands(meter.looks as f64),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::amount::Kind;
    use crate::estimate::{Amount, CostLine};
    use crate::units::Usd;

    fn text_of(report: &Report, title: &str) -> Option<String> {
        facts(report).into_iter().find(|(t, _)| t == title).map(|(_, text)| text)
    }

    #[test]
    fn what_was_not_measured_is_not_mentioned() {
        assert_eq!(facts(&Report::default()), []);
        let meter = Some(Measured::default());
        assert_eq!(facts(&Report { meter, ..Report::default() }), []);
    }

    #[test]
    fn the_meter_says_what_it_took_itself() {
        let meter = Measured {
            wall_s: 100.0,
            cpu_s: Some(150.0),
            meter_cpu_s: Some(0.1),
            looks: 1000,
            longest_gap_s: 0.11,
            ..Measured::default()
        };
        let report = Report { meter: Some(meter), ..Report::default() };
        assert!(text_of(&report, "the meter").unwrap().starts_with("0.10 % of the time"));
        assert!(text_of(&report, "processor").unwrap().contains("1.50 threads busy"));
    }

    #[test]
    fn a_small_mass_is_not_shown_as_none() {
        let shown = [0.0, 4.7e-5, 0.0123, 12.3, 12_345.0].map(grams);
        assert_eq!(shown, ["0.0 g", "< 1 mg", "12.3 mg", "12.3 g", "12.35 kg"]);
    }

    #[test]
    fn every_amount_stands_with_its_kind() {
        let report = Report {
            energy: vec![EnergyLine {
                part: "processor".into(),
                energy_j: None,
                kind: Kind::Unknown,
                source: "no counter".into(),
            }],
            costs: vec![
                CostLine::of_run("compute", Amount::Measured(Usd(0.5))),
                CostLine::of_run("electricity", Amount::Unknown),
            ],
            ..Report::default()
        };
        assert_eq!(text_of(&report, "bill").unwrap(), "compute $0.50 (measured); electricity unknown");
        assert_eq!(text_of(&report, "energy").unwrap(), "processor unknown, unknown: no counter");
    }
}
