//! From what the meter read to what a run took: energy by measurement or model, the bill with its lines, carbon. Shared
//! by the runs of this program and those of others.

use crate::error::Result;
use crate::estimate::amount::Kind;
use crate::estimate::carbon::{Carbon, Intensity};
use crate::estimate::energy::{self, EnergyLine};
use crate::estimate::money::PhaseCost;
use crate::estimate::{CostLine, PriceUsed, Quantities};
use crate::ledger::{self, Book, Final, Record, Status};
use crate::meter::Measured;
use crate::report::PhaseInput;

/// What a run took in all.
pub(super) struct Settled {
    /// Wall time, memory, energy and cost, where each was measured.
    pub(super) measured: Quantities,
    /// What stands in for what could not be.
    pub(super) modelled: Quantities,
    pub(super) energy: Vec<EnergyLine>,
    pub(super) carbon: Option<Carbon>,
    pub(super) costs: Vec<CostLine>,
    pub(super) phases: Vec<PhaseInput>,
    pub(super) warnings: Vec<String>,
}

/// More of the wall time than this, and the meter is part of what it measures.
const MOST_OVERHEAD: f64 = 0.005;

/// What processes of a run took before its last one.
#[derive(Default)]
pub(super) struct Earlier {
    /// Seconds by phase.
    pub(super) phases: Vec<(String, f64)>,
    /// Joules, where they were metered.
    pub(super) energy_j: Option<f64>,
}

/// Settles a run of which `measured` is the last process.
pub(super) fn settle(
    measured: &Measured,
    earlier: &Earlier,
    price: &PriceUsed,
    grid: Option<&Intensity>,
    cpu: &str,
) -> Settled {
    let earlier_s: f64 = earlier.phases.iter().map(|(_, s)| s).sum();
    let wall_s = earlier_s + measured.wall_s;
    let lines = parts(measured, cpu);
    let (energy_j, kind) = energy::total(&lines);
    let (energy_j, kind) = match earlier.energy_j {
        _ if earlier_s <= 0.0 => (energy_j, kind),
        Some(before) => (energy_j.map(|here| before + here), kind),
        // Of what was not metered the time is known: it is taken to have drawn what this process does.
        None => {
            let share = wall_s / measured.wall_s;
            (energy_j.filter(|_| share.is_finite()).map(|here| here * share), kind.max(Kind::Modelled))
        }
    };
    let power_w = energy_j.filter(|_| wall_s > 0.0).map(|j| j / wall_s);
    let mut price = price.clone();
    price.set_power(power_w, kind);
    let costs = price.lines(wall_s);
    let bill = price.bill(wall_s).map(|bill| bill.cost_usd);
    let cost_kind = costs.iter().map(|line| line.amount).sum::<crate::estimate::Amount>().kind();
    // A price is always stated; what is measured is what it is paid for.
    let is_measured = |kind| matches!(kind, Kind::Measured | Kind::Stated);
    Settled {
        measured: Quantities {
            wall_s: Some(wall_s),
            peak_memory_bytes: measured.peak_rss_bytes,
            energy_j: energy_j.filter(|_| is_measured(kind)),
            cost_usd: bill.filter(|_| is_measured(cost_kind)),
            ..Quantities::default()
        },
        modelled: Quantities {
            energy_j: energy_j.filter(|_| !is_measured(kind)),
            cost_usd: bill.filter(|_| !is_measured(cost_kind)),
            ..Quantities::default()
        },
        carbon: grid.zip(energy_j).map(|(grid, j)| grid.of(j)),
        phases: phases(measured, &earlier.phases, &price),
        energy: lines,
        costs,
        warnings: warnings(measured),
    }
}

fn parts(measured: &Measured, cpu: &str) -> Vec<EnergyLine> {
    let processor = energy::Reading {
        counted_j: measured.package_j,
        is_partial: measured.package_partial,
        integrated_j: None,
        busy_s: measured.cpu_s,
    };
    let accelerators = measured.devices.iter().map(|device| {
        let reading = energy::Reading {
            counted_j: device.energy_j,
            is_partial: device.energy_partial,
            integrated_j: device.integrated_j.filter(|_| device.lost_at_s.is_none()),
            busy_s: device.busy_s,
        };
        energy::accelerator(&device.name, reading)
    });
    std::iter::once(energy::processor(cpu, processor)).chain(accelerators).collect()
}

/// The run's phases with their shares of the bill; the report adds the rounding.
fn phases(measured: &Measured, earlier: &[(String, f64)], price: &PriceUsed) -> Vec<PhaseInput> {
    let own = measured.phases.iter().map(|p| (p.name.clone(), p.wall_s));
    let all: Vec<(String, f64)> = earlier.iter().cloned().chain(own).collect();
    let input = |phase: PhaseCost| PhaseInput {
        name: phase.name,
        wall_s: phase.wall_s,
        cost_usd: phase.cost_usd,
        beside: phase.beside,
    };
    let shared = price.share(&all).into_iter().filter(|phase| phase.name != "rounding");
    shared.map(input).collect()
}

fn warnings(measured: &Measured) -> Vec<String> {
    let mut all = measured.warnings.clone();
    if let Some(asleep) = measured.suspended_s.filter(|s| *s > 0.0) {
        all.push(format!(
            "the machine slept for {asleep:.1} s: not in the run's time, and nothing was metered"
        ));
    }
    if measured.package_partial && measured.package_j.is_some() {
        all.push("the processor's energy counter did not cover the whole run: its energy is modelled".into());
    }
    // A run of a moment pays for the meter's first look alone.
    if let Some(share) = measured.overhead().filter(|share| *share > MOST_OVERHEAD && measured.wall_s > 5.0) {
        all.push(format!("the meter took {:.2} % of the time: raise `meter.interval_ms`", share * 100.0));
    }
    all
}

/// The phases as the ledger has them.
fn entries(measured: &Measured, settled: &Settled) -> Vec<ledger::Phase> {
    let seen = |name: &str| measured.phases.iter().find(|p| p.name == name);
    let entry = |phase: &PhaseInput| ledger::Phase {
        name: phase.name.clone(),
        wall_s: phase.wall_s,
        cpu_s: seen(&phase.name).and_then(|p| p.cpu_s),
        peak_rss_bytes: seen(&phase.name).and_then(|p| p.peak_rss_bytes),
        cost_usd: phase.cost_usd,
    };
    settled.phases.iter().map(entry).collect()
}

/// Closes a run in the ledger with what it took; gives what failed there, which changes nothing of the run.
pub(super) fn close(
    book: &mut Book,
    run_id: &str,
    (measured, settled): (&Measured, &Settled),
    status: Status,
    end: &Final,
) -> Vec<String> {
    let phases = entries(measured, settled);
    let mut outcomes = vec![book.anew(run_id)];
    outcomes.extend(phases.iter().map(|phase| book.phase(run_id, phase)));
    outcomes.extend(settled.costs.iter().map(|line| book.cost_line(run_id, line)));
    outcomes.push(book.finish_run(run_id, status, end));
    outcomes.push(book.settle());
    outcomes.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Cost, Price};
    use crate::estimate::price_used;
    use crate::meter::{DeviceTotal, PhaseTotal};

    fn measured() -> Measured {
        let phase = |name: &str, wall_s| PhaseTotal { name: name.into(), wall_s, ..PhaseTotal::default() };
        Measured {
            wall_s: 100.0,
            phases: vec![phase("load", 10.0), phase("train", 90.0)],
            cpu_s: Some(150.0),
            ..Measured::default()
        }
    }

    fn price(cost: &Cost) -> PriceUsed {
        price_used(cost, "2026-11-21".parse().unwrap()).unwrap()
    }

    fn own() -> Cost {
        Cost { price: Price::PerHour(3.6), usd_per_kwh: Some(0.36), ..Cost::default() }
    }

    #[test]
    fn energy_without_a_meter_is_modelled_and_what_follows_from_it_too() {
        let settled = settle(&measured(), &Earlier::default(), &price(&own()), None, "AMD EPYC");
        let energy = 150.0 * 1.872;
        assert_eq!(settled.measured.energy_j, None);
        assert!((settled.modelled.energy_j.unwrap() - energy).abs() < 1e-9);
        assert_eq!(settled.measured.cost_usd, None, "its electricity is modelled, so is the whole");
        let expected = 0.1 + energy / 3.6e6 * 0.36;
        assert!((settled.modelled.cost_usd.unwrap() - expected).abs() < 1e-12);
        let sum: f64 = settled.phases.iter().filter_map(|p| p.cost_usd).sum();
        assert!((sum - expected).abs() < 1e-12);
    }

    #[test]
    fn what_was_measured_is_said_to_be() {
        let device =
            DeviceTotal { name: "Tesla T4".into(), energy_j: Some(5000.0), ..DeviceTotal::default() };
        let seen = Measured { package_j: Some(3000.0), devices: vec![device], ..measured() };
        let settled = settle(&seen, &Earlier::default(), &price(&own()), None, "AMD EPYC");
        assert_eq!((settled.measured.energy_j, settled.modelled.energy_j), (Some(8000.0), None));
        assert_eq!(settled.costs.last().unwrap().amount.kind(), Kind::Measured);
        assert!((settled.measured.cost_usd.unwrap() - 0.1008).abs() < 1e-12);
    }

    #[test]
    fn one_unknown_part_makes_the_whole_unknown() {
        let settled = settle(&measured(), &Earlier::default(), &price(&own()), None, "a riddle");
        assert_eq!((settled.measured.energy_j, settled.modelled.energy_j), (None, None));
        assert_eq!((settled.measured.cost_usd, settled.modelled.cost_usd), (None, None));
        let hour_alone = Cost { usd_per_kwh: None, ..own() };
        let settled = settle(&measured(), &Earlier::default(), &price(&hour_alone), None, "a riddle");
        assert!((settled.measured.cost_usd.unwrap() - 0.1).abs() < 1e-12, "energy is no part of this bill");
    }

    #[test]
    fn a_resumed_run_is_billed_whole_and_its_earlier_energy_is_a_model_unless_it_was_metered() {
        let seen = Measured { package_j: Some(3000.0), ..measured() };
        let phases = vec![("before the resume".to_owned(), 100.0)];
        let unknown = Earlier { phases, energy_j: None };
        let settled = settle(&seen, &unknown, &price(&own()), None, "AMD EPYC");
        assert_eq!(settled.measured.wall_s, Some(200.0));
        assert_eq!((settled.measured.energy_j, settled.modelled.energy_j), (None, Some(6000.0)));
        let metered = Earlier { energy_j: Some(500.0), ..unknown };
        let settled = settle(&seen, &metered, &price(&own()), None, "AMD EPYC");
        assert_eq!((settled.measured.energy_j, settled.modelled.energy_j), (Some(3500.0), None));
        let expected = 0.2 + 3500.0 / 3.6e6 * 0.36;
        assert!((settled.measured.cost_usd.unwrap() - expected).abs() < 1e-12);
    }

    #[test]
    fn carbon_follows_from_energy_and_a_sleep_is_said() {
        let grid = Intensity { region: "x".into(), g_per_kwh: 360.0, source: "s".into(), as_of: None };
        let seen = Measured { package_j: Some(1e4), suspended_s: Some(7.0), ..measured() };
        let settled = settle(&seen, &Earlier::default(), &price(&Cost::default()), Some(&grid), "AMD EPYC");
        assert!((settled.carbon.unwrap().grams - 1.0).abs() < 1e-12);
        assert!(settled.warnings[0].contains("slept for 7.0 s"), "{:?}", settled.warnings);
        assert_eq!(settled.measured.cost_usd, None);
    }
}
