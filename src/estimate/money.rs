//! Price × billed time: which price holds, what is paid for beside the run, and how a provider's rounding turns seconds
//! into a bill.

use super::amount::{Amount, CostLine, Kind};
use super::error::Error;
use super::prices::{Row, Table};
use crate::config::{Cost, MOST_USD_PER_HOUR, Price};
use crate::error::Result;
use crate::units::JOULES_PER_KWH;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

/// The machine's time from its start to its first run.
pub const SET_UP: &str = "set-up";
/// The machine's time from the run before.
pub const IDLE: &str = "idle before";

/// Whether a phase of this name is the machine's time before a run.
pub fn is_before(name: &str) -> bool {
    [SET_UP, IDLE].contains(&name)
}

/// The price that a run is judged by, with its origin.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PriceUsed {
    /// USD per hour; `None` = unknown, and so is every cost.
    pub usd_per_hour: Option<f64>,
    /// Where it comes from.
    pub source: String,
    /// When it was read there.
    pub as_of: Option<String>,
    /// Bills are rounded up to this many seconds.
    pub granularity_s: u64,
    /// Shortest bill, s.
    pub minimum_s: u64,
    /// Paid for beside the run: the machine before it and behind it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<Beside>,
    /// Paid for beside the hour; `None` = part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub electricity: Option<Electricity>,
    /// What to say about it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Time of the machine that is paid for and is not the run's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Beside {
    /// `set-up`, `idle before`, `until release`.
    pub name: String,
    /// s.
    pub seconds: f64,
    /// Measured, or stated by the user.
    pub kind: Kind,
}

impl Beside {
    /// It lies before the run; what is stated lies behind it.
    pub fn is_over(&self) -> bool {
        self.kind != Kind::Stated
    }
}

/// What electricity costs on a machine of one's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Electricity {
    /// USD of a kWh.
    pub usd_per_kwh: f64,
    /// Mean power, W; `None` = not known, and so is every cost.
    pub power_w: Option<f64>,
    /// How the power is known.
    pub kind: Kind,
}

/// What a run is charged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bill {
    /// Seconds after rounding, the machine's time beside the run included.
    pub billed_s: f64,
    /// USD in all.
    pub cost_usd: f64,
    /// USD of the seconds that rounding added.
    pub rounding_usd: f64,
    /// USD of electricity, where it is paid beside the hour.
    pub electricity_usd: Option<f64>,
}

/// A phase with its share of the bill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseCost {
    /// `load`, `tokenise`, `train`, `evaluate`, `save`, …; `rounding` is what the provider rounds up.
    pub name: String,
    /// Seconds by the wall clock.
    pub wall_s: f64,
    /// USD; `None` = no price.
    pub cost_usd: Option<f64>,
    /// Paid for, and not a part of the run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub beside: bool,
}

/// The price that `[cost]` states, on the day `today`.
///
/// # Errors
/// Usage: no such row in the table, an accelerator's name alone, or a price that is not one.
pub fn price_used(cost: &Cost, today: Date) -> Result<PriceUsed> {
    let mut used = PriceUsed::unknown();
    match &cost.price {
        Price::Unknown => {}
        Price::PerHour(usd) => {
            used.usd_per_hour = Some(sound("cost.usd_per_hour", *usd)?);
            used.source = "usd_per_hour in the config".into();
        }
        Price::Owned { hardware_usd, life_hours } => {
            used.usd_per_hour = Some(sound("cost.hardware_usd", hardware_usd / life_hours)?);
            used.source = format!("${hardware_usd} over {life_hours} hours, as the config states");
        }
        Price::Machine(name) => {
            let table = Table::with_own(cost.price_file.as_deref())?;
            let row = table.find(name)?;
            used = if cost.is_spot {
                PriceUsed::of_spot(row, today).ok_or_else(|| Error::NoSpot { name: row.key() })?
            } else {
                PriceUsed::of_row(row, today)
            };
        }
    }
    if let Some(own) = cost.billing_granularity_s {
        used.granularity_s = own.max(1);
    }
    if let Some(own) = cost.minimum_s {
        used.minimum_s = own;
    }
    used.electricity =
        cost.usd_per_kwh.map(|usd_per_kwh| Electricity { usd_per_kwh, power_w: None, kind: Kind::Unknown });
    Ok(used)
}

fn sound(key: &str, usd: f64) -> Result<f64> {
    if is_price(usd) { Ok(usd) } else { Err(Error::BadPrice { key: key.into(), value: usd }.into()) }
}

/// USD of an hour: finite, and no more than any hour costs.
pub(super) fn is_price(usd: f64) -> bool {
    (0.0..=f64::from(MOST_USD_PER_HOUR)).contains(&usd)
}

impl PriceUsed {
    /// No price.
    pub fn unknown() -> Self {
        Self { source: "not stated".into(), granularity_s: 1, ..Self::default() }
    }

    /// The price of a row on demand, on the day `today`.
    pub fn of_row(row: &Row, today: Date) -> Self {
        Self {
            usd_per_hour: Some(row.usd_per_hour),
            source: format!("{}: {}", row.key(), row.source),
            as_of: Some(row.as_of.clone()),
            granularity_s: row.billing_granularity_s.unwrap_or(1),
            minimum_s: row.minimum_s.unwrap_or(0),
            warnings: row.age_warning(today).into_iter().collect(),
            ..Self::default()
        }
    }

    /// A row's spot price; `None` where it has none.
    pub fn of_spot(row: &Row, today: Date) -> Option<Self> {
        let usd_per_hour = Some(row.usd_per_hour_spot?);
        let on_demand = Self::of_row(row, today);
        Some(Self { usd_per_hour, source: format!("spot, {}", on_demand.source), ..on_demand })
    }

    /// The price of so many machines.
    #[must_use]
    pub fn times(mut self, machines: usize) -> Self {
        if machines > 1 {
            self.usd_per_hour = self.usd_per_hour.map(|usd| usd * machines as f64);
            self.source = format!("{machines} machines, each by {}", self.source);
        }
        self
    }

    /// The bill for a run of `wall_s` seconds; `None` where the price, or the power behind the electricity, is not
    /// known.
    pub fn bill(&self, wall_s: f64) -> Option<Bill> {
        let per_second = self.usd_per_hour? / 3600.0;
        let step = self.granularity_s.max(1) as f64;
        let paid_s = wall_s + self.beside_s();
        // A time that is a multiple up to rounding errors is not pushed to the next.
        let rounded_up = (paid_s / step - 1e-9).ceil().max(0.0) * step;
        let billed_s = rounded_up.max(self.minimum_s as f64).max(paid_s);
        let electricity_usd = match &self.electricity {
            Some(electricity) => Some(electricity.usd(wall_s)?),
            None => None,
        };
        Some(Bill {
            billed_s,
            cost_usd: per_second * billed_s + electricity_usd.unwrap_or(0.0),
            rounding_usd: per_second * (billed_s - paid_s),
            electricity_usd,
        })
    }

    /// The mean power that electricity is paid by.
    pub fn set_power(&mut self, power_w: Option<f64>, kind: Kind) {
        if let Some(electricity) = &mut self.electricity {
            electricity.power_w = power_w.filter(|w| w.is_finite() && *w >= 0.0);
            electricity.kind = electricity.power_w.map_or(Kind::Unknown, |_| kind);
        }
    }

    /// The bill as lines of the ledger, for a run whose time was metered.
    pub fn lines(&self, wall_s: f64) -> Vec<CostLine> {
        let bill = self.bill(wall_s);
        let hours = self.usd_per_hour.map(|usd| usd / 3600.0);
        let beside_usd = hours.map(|per_second| per_second * self.beside_s());
        let run_usd = hours.map(|per_second| per_second * wall_s);
        let mut lines = vec![CostLine::of_run("compute", Amount::new(Kind::Measured, run_usd))];
        if let Some(weakest) = self.beside.iter().map(|b| b.kind).max() {
            lines.push(CostLine::of_run("machine beside the run", Amount::new(weakest, beside_usd)));
        }
        if let Some(rounding) = bill.map(|b| b.rounding_usd).filter(|usd| *usd > 0.0) {
            lines.push(CostLine::of_run("rounding", Amount::new(Kind::Measured, Some(rounding))));
        }
        if let Some(electricity) = &self.electricity {
            let amount = Amount::new(electricity.kind, electricity.usd(wall_s));
            lines.push(CostLine::of_run("electricity", amount));
        }
        lines
    }

    /// Phases with their shares of the bill, what is paid for beside the run, electricity, and the rounding as a
    /// phase of its own without time. The costs sum to the bill, the times of the run's own phases to the run.
    pub fn share(&self, phases: &[(String, f64)]) -> Vec<PhaseCost> {
        let per_second = self.usd_per_hour.map(|usd| usd / 3600.0);
        let phase = |name: &str, wall_s: f64, beside| PhaseCost {
            name: name.into(),
            wall_s,
            cost_usd: per_second.map(|usd| usd * wall_s),
            beside,
        };
        let (before, behind): (Vec<&Beside>, Vec<&Beside>) = self.beside.iter().partition(|b| b.is_over());
        let row = |b: &&Beside| phase(&b.name, b.seconds, true);
        let mut shared: Vec<PhaseCost> = before.iter().map(row).collect();
        shared.extend(phases.iter().map(|(name, wall_s)| phase(name, *wall_s, false)));
        shared.extend(behind.iter().map(row));
        let wall_s = phases.iter().map(|(_, s)| s).sum();
        let money = |name: &str, usd| PhaseCost { cost_usd: Some(usd), ..phase(name, 0.0, false) };
        if let Some(bill) = self.bill(wall_s) {
            shared.extend(bill.electricity_usd.map(|usd| money("electricity", usd)));
            shared.push(money("rounding", bill.rounding_usd));
        }
        shared
    }

    fn beside_s(&self) -> f64 {
        self.beside.iter().map(|b| b.seconds).sum()
    }
}

impl Electricity {
    fn usd(&self, wall_s: f64) -> Option<f64> {
        Some(self.usd_per_kwh * self.power_w? * wall_s / JOULES_PER_KWH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::fixture::price;

    fn today() -> Date {
        "2026-11-21".parse().unwrap()
    }

    fn stated(price: Price, billing_granularity_s: Option<u64>) -> Result<PriceUsed> {
        price_used(&Cost { price, billing_granularity_s, ..Cost::default() }, today())
    }

    #[test]
    fn an_own_price_wins_and_a_bad_one_is_refused() {
        let own = stated(Price::PerHour(1.5), Some(60)).unwrap();
        assert_eq!((own.usd_per_hour, own.granularity_s), (Some(1.5), 60));
        for bad in [f64::NAN, f64::INFINITY, -0.1, 1e308, 1_000_000.1] {
            let error = stated(Price::PerHour(bad), None).unwrap_err();
            assert_eq!(error.kind, crate::error::Kind::Usage);
            assert!(error.to_string().contains("from 0 to 1,000,000, got "), "{error}");
        }
        // The dearest hour, billed for as long as there are seconds to count, is still a number.
        let mut dearest = stated(Price::PerHour(1e6), None).unwrap();
        dearest.minimum_s = u64::MAX;
        assert!(dearest.bill(1.0).unwrap().cost_usd.is_finite());
    }

    #[test]
    fn a_row_brings_its_source_date_and_rounding() {
        let row = stated(Price::Machine("lambda/gpu_1x_gh200".into()), None).unwrap();
        assert_eq!((row.usd_per_hour, row.granularity_s), (Some(2.29), 60));
        assert!(row.source.contains("skypilot") && row.as_of.is_some());
        assert_eq!(row.warnings.len(), 1);
        let own = stated(Price::Machine("lambda/gpu_1x_gh200".into()), Some(1)).unwrap();
        assert_eq!(own.granularity_s, 1);
    }

    #[test]
    fn bills_are_rounded_up_and_have_a_minimum() {
        let mut used = price(Some(3.6));
        used.granularity_s = 60;
        let bill = used.bill(61.0).unwrap();
        assert!((bill.billed_s - 120.0).abs() < 1e-9);
        assert!((bill.cost_usd - 0.12).abs() < 1e-12);
        assert!((bill.rounding_usd - 0.059).abs() < 1e-12);
        assert!((used.bill(120.0).unwrap().billed_s - 120.0).abs() < 1e-9);
        used.minimum_s = 600;
        assert!((used.bill(61.0).unwrap().billed_s - 600.0).abs() < 1e-9);
        assert_eq!(price(None).bill(61.0), None);
    }

    #[test]
    fn shares_sum_to_the_bill_and_to_the_wall() {
        let mut used = price(Some(2.0));
        used.granularity_s = 3600;
        let shares = used.share(&[("load".into(), 10.0), ("train".into(), 1000.0)]);
        let cost: f64 = shares.iter().filter_map(|p| p.cost_usd).sum();
        let wall: f64 = shares.iter().map(|p| p.wall_s).sum();
        assert!((cost - 2.0).abs() < 1e-12 && (wall - 1010.0).abs() < 1e-12);
        assert_eq!(shares.last().unwrap().name, "rounding");
        let unknown = price(None).share(&[("load".into(), 10.0)]);
        assert_eq!(unknown.len(), 1);
        assert_eq!(unknown[0].cost_usd, None);
    }

    #[test]
    fn the_cost_is_price_times_billed_time() {
        let mut used = price(Some(2.99));
        used.granularity_s = 60;
        for wall_s in [0.1, 59.999, 3600.0, 123_456.789] {
            let bill = used.bill(wall_s).unwrap();
            assert!((bill.cost_usd - 2.99 / 3600.0 * bill.billed_s).abs() < 1e-9);
            let lines: f64 = used.lines(wall_s).iter().filter_map(|l| l.amount.usd()).sum();
            assert!((lines - bill.cost_usd).abs() < 1e-9);
        }
    }

    #[test]
    fn the_machine_is_paid_for_from_its_start_to_its_release() {
        let mut used = price(Some(3.6));
        let beside = |name: &str, seconds, kind| Beside { name: name.into(), seconds, kind };
        used.beside =
            vec![beside("set-up", 100.0, Kind::Measured), beside("until release", 50.0, Kind::Stated)];
        let bill = used.bill(10.0).unwrap();
        assert!((bill.cost_usd - 0.16).abs() < 1e-12, "{bill:?}");
        let shares = used.share(&[("train".into(), 10.0)]);
        let names: Vec<&str> = shares.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["set-up", "train", "until release", "rounding"]);
        assert_eq!(shares.iter().map(|p| p.beside).collect::<Vec<_>>(), [true, false, true, false]);
        let cost: f64 = shares.iter().filter_map(|p| p.cost_usd).sum();
        assert!((cost - bill.cost_usd).abs() < 1e-12);
        assert_eq!(used.lines(10.0)[1].amount.kind(), Kind::Stated);
    }

    #[test]
    fn a_machine_of_ones_own_costs_its_wear_and_its_electricity() {
        let cost = Cost {
            price: Price::Owned { hardware_usd: 13_000.0, life_hours: 13_000.0 },
            usd_per_kwh: Some(0.3),
            ..Cost::default()
        };
        let mut used = price_used(&cost, today()).unwrap();
        assert_eq!(used.usd_per_hour, Some(1.0));
        assert_eq!(used.bill(3600.0), None, "without the power the whole is unknown, not too low");
        assert_eq!(used.lines(3600.0)[1].amount, Amount::Unknown);
        used.set_power(Some(500.0), Kind::Modelled);
        let bill = used.bill(3600.0).unwrap();
        assert!((bill.cost_usd - 1.15).abs() < 1e-12);
        let lines = used.lines(3600.0);
        assert_eq!(lines.iter().map(|l| l.amount).sum::<Amount>().kind(), Kind::Modelled);
        let never = Price::Owned { hardware_usd: 1.0, life_hours: 0.0 };
        assert!(stated(never, None).is_err());
    }

    #[test]
    fn spot_is_the_rows_own_price_or_refused() {
        let spot = |name: &str| {
            let price = Price::Machine(name.into());
            price_used(&Cost { price, is_spot: true, ..Cost::default() }, today())
        };
        let table = Table::shipped().unwrap();
        let row = table.rows().iter().find(|r| r.usd_per_hour_spot.is_some()).unwrap();
        let used = spot(&row.key()).unwrap();
        assert_eq!(used.usd_per_hour, row.usd_per_hour_spot);
        assert!(used.source.starts_with("spot"));
        let error = spot("lambda/gpu_1x_gh200").unwrap_err().to_string();
        assert!(error.contains("no spot price"), "{error}");
    }
}
