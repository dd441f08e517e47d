//! A machine's profile as people read it: what it reaches by op, and what else was measured.

use super::table::{Table, section};
use super::words::{self, NOT_MEASURED, or_word};
use crate::estimate::Machine;
use crate::estimate::rates::Rate;
use crate::estimate::work::{Class, Stored, Way};
use crate::train::screen::{Screen, visible};

/// The profile in two tables.
pub fn profile_table(machine: &Machine, screen: Screen) -> String {
    let rates =
        section(screen, &format!("Rates of {}", visible(&machine.name)), &rates(machine).render(screen));
    let rest = section(screen, "Memory, disk, power", &rest(machine).render(screen));
    screen.fit(format!("{rates}\n{rest}"))
}

/// Each op, way and kind of weight with the slowest and the fastest shape.
fn rates(machine: &Machine) -> Table {
    let mut table =
        Table::new().left("op").left("way").left("weights").right("shapes").right("slowest").right("fastest");
    let mut keys: Vec<(Class, Way, Stored)> =
        machine.rates.iter().map(|r| (r.class, r.way, r.stored)).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let of = |r: &&Rate| (r.class, r.way, r.stored) == key;
        let rates = || machine.rates.iter().filter(of).map(|r| r.per_s);
        let show = |v: f64| match key.0 {
            Class::Elementwise
            | Class::Optimizer
            | Class::Adamw8bit
            | Class::Adafactor
            | Class::Lion
            | Class::Sgd => format!("{}/s", words::bytes(v)),
            _ => words::flops_per_s(v),
        };
        table.row([
            op(key.0).to_owned(),
            way(key.1).to_owned(),
            stored(key.2).to_owned(),
            rates().count().to_string(),
            show(rates().fold(f64::INFINITY, f64::min)),
            show(rates().fold(0.0, f64::max)),
        ]);
    }
    table
}

fn rest(machine: &Machine) -> Table {
    let per_s = |v: f64| format!("{}/s", words::bytes(v));
    let values = |v: f64| format!("{:.1} M/s", v / 1e6);
    let watts = |w: f64| format!("{w:.1} W");
    let mut table = Table::new().left("").right("measured");
    for (what, value) in [
        ("threads", machine.threads.to_string()),
        ("kernel path", machine.kernel.clone()),
        ("launch of a kernel", or_word(Some(machine.launch_s).filter(|s| *s > 0.0), words::seconds, "–")),
        ("memory, read and written", per_s(machine.copy_bytes_per_s)),
        ("fresh pages", per_s(machine.fresh_bytes_per_s)),
        (
            "fresh pages, many",
            or_word(Some(machine.far_bytes_per_s).filter(|v| *v > 0.0), per_s, NOT_MEASURED),
        ),
        ("disk, read through the cache", per_s(machine.disk_bytes_per_s)),
        ("disk, written and synced", per_s(machine.disk_write_bytes_per_s)),
        ("one small durable write", words::seconds(machine.fsync_s)),
        ("values drawn", values(machine.draw_values_per_s)),
        ("values quantised", values(machine.quantise_values_per_s)),
        ("weights decomposed", words::flops_per_s(machine.decompose_flops_per_s)),
        ("scatter of repeated runs", words::share(machine.spread)),
        ("power at rest", or_word(machine.idle_power_w, watts, NOT_MEASURED)),
        ("power under load", or_word(machine.power_w, watts, NOT_MEASURED)),
    ] {
        table.row([what.to_owned(), visible(&value)]);
    }
    table
}

fn op(class: Class) -> &'static str {
    match class {
        Class::Optimizer => "AdamW",
        Class::Adamw8bit => "8-bit AdamW",
        Class::Adafactor => "Adafactor",
        Class::Lion => "Lion",
        Class::Sgd => "SGD",
        _ => class.name(),
    }
}

fn way(way: Way) -> &'static str {
    match way {
        Way::Forward => "forward",
        Way::Backward => "backward",
        Way::Trained => "backward, trained",
    }
}

fn stored(stored: Stored) -> &'static str {
    match stored {
        Stored::F32 => "f32",
        Stored::Bf16 => "bf16",
        Stored::Quantised => "quantised",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_says_so() {
        let mut machine = Machine::assumed("A CPU", 2);
        machine.rates.push(Rate {
            class: Class::Linear,
            way: Way::Forward,
            stored: Stored::F32,
            m: 1,
            n: 1,
            k: 1,
            rank: 0,
            per_s: 2e11,
        });
        let text = profile_table(&machine, Screen::plain(100));
        assert!(text.contains("200.00 GFLOP/s") && text.contains("not measured"), "{text}");
    }
}
