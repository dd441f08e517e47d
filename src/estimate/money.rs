//! Price × billed time: which price holds, and how a provider's rounding turns seconds into a bill.

use super::error::Error;
use super::prices::Table;
use crate::config::{Cost, Price};
use crate::error::Result;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

/// The price that a run is judged by, with its origin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// What to say about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What a run is charged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bill {
    /// Seconds after rounding.
    pub billed_s: f64,
    /// USD, rounding included.
    pub cost_usd: f64,
    /// USD of the seconds that rounding added.
    pub rounding_usd: f64,
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
}

/// The price that `[cost]` states, on the day `today`.
///
/// # Errors
/// Usage: no such row in the table, an accelerator's name alone, or a price that is not one.
pub fn price_used(cost: &Cost, today: Date) -> Result<PriceUsed> {
    let mut used = PriceUsed {
        usd_per_hour: None,
        source: "not stated".into(),
        as_of: None,
        granularity_s: 1,
        minimum_s: 0,
        warnings: Vec::new(),
    };
    match &cost.price {
        Price::Unknown => {}
        Price::PerHour(usd) if usd.is_finite() && *usd >= 0.0 => {
            used.usd_per_hour = Some(*usd);
            used.source = "usd_per_hour in the config".into();
        }
        Price::PerHour(usd) => {
            return Err(Error::BadPrice { key: "cost.usd_per_hour".into(), value: *usd }.into());
        }
        Price::Machine(name) => {
            let table = Table::shipped()?;
            let row = table.find(name)?;
            used.usd_per_hour = Some(row.usd_per_hour);
            used.source = format!("{}: {}", row.key(), row.source);
            used.as_of = Some(row.as_of.clone());
            used.granularity_s = row.billing_granularity_s.unwrap_or(1);
            used.minimum_s = row.minimum_s.unwrap_or(0);
            used.warnings.extend(row.age_warning(today));
        }
    }
    if let Some(own) = cost.billing_granularity_s {
        used.granularity_s = own.max(1);
    }
    Ok(used)
}

impl PriceUsed {
    /// The bill for `wall_s` seconds; `None` without a price.
    pub fn bill(&self, wall_s: f64) -> Option<Bill> {
        let per_second = self.usd_per_hour? / 3600.0;
        let step = self.granularity_s.max(1) as f64;
        // A wall time that is a multiple up to rounding errors is not pushed to the next.
        let rounded_up = (wall_s / step - 1e-9).ceil().max(0.0) * step;
        let billed_s = rounded_up.max(self.minimum_s as f64).max(wall_s);
        Some(Bill {
            billed_s,
            cost_usd: per_second * billed_s,
            rounding_usd: per_second * (billed_s - wall_s),
        })
    }

    /// Phases with their shares of the bill, and the rounding as a phase of its own without time: both columns sum
    /// to the whole.
    pub fn share(&self, phases: &[(String, f64)]) -> Vec<PhaseCost> {
        let per_second = self.usd_per_hour.map(|usd| usd / 3600.0);
        let mut shared: Vec<PhaseCost> = phases
            .iter()
            .map(|(name, wall_s)| PhaseCost {
                name: name.clone(),
                wall_s: *wall_s,
                cost_usd: per_second.map(|usd| usd * wall_s),
            })
            .collect();
        if let Some(bill) = self.bill(phases.iter().map(|(_, s)| s).sum()) {
            shared.push(PhaseCost {
                name: "rounding".into(),
                wall_s: 0.0,
                cost_usd: Some(bill.rounding_usd),
            });
        }
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::estimate::fixture::price;

    fn today() -> Date {
        "2026-11-21".parse().unwrap()
    }

    fn stated(price: Price, billing_granularity_s: Option<u64>) -> Result<PriceUsed> {
        price_used(&Cost { price, billing_granularity_s }, today())
    }

    #[test]
    fn an_own_price_wins_and_a_bad_one_is_refused() {
        let own = stated(Price::PerHour(1.5), Some(60)).unwrap();
        assert_eq!((own.usd_per_hour, own.granularity_s), (Some(1.5), 60));
        for bad in [f64::NAN, f64::INFINITY, -0.1] {
            let error = stated(Price::PerHour(bad), None).unwrap_err();
            assert_eq!(error.kind, Kind::Usage);
        }
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
}
