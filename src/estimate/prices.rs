//! The price table that ships with the program: public facts, each row with its source and date. The same accelerator
//! differs by a factor of five between providers, so a row is named `provider/instance`, never by accelerator alone.

use super::csv;
use super::error::Error;
use super::money;
use crate::config::MOST_USD_PER_HOUR;
use crate::error::Result;
use crate::fs;
use crate::units::group_thousands;
use jiff::civil::Date;
use serde::Serialize;
use std::path::Path;

/// The shipped table; the columns are named in its first line.
const SHIPPED: &str = include_str!("prices.csv");
/// Older rows are used with a warning.
const MAX_AGE_DAYS: i32 = 180;
/// Rows named when there is no such row.
const NEAREST: usize = 3;
/// No price table is larger.
const MAX_BYTES: u64 = 16 << 20;

/// One machine's price.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Who rents it out, with the region where the source has one.
    pub provider: String,
    /// What it is called there.
    pub instance: String,
    /// Accelerator, `None` for CPU machines.
    pub accelerator: Option<String>,
    /// Number of accelerators.
    pub count: u64,
    /// Memory of each, GiB.
    pub vram_gib: Option<f64>,
    /// On demand, USD per hour.
    pub usd_per_hour: f64,
    /// Spot, USD per hour.
    pub usd_per_hour_spot: Option<f64>,
    /// Where the price was read.
    pub source: String,
    /// When, as the source has it.
    pub as_of: String,
    /// Bills are rounded up to this many seconds, where known.
    pub billing_granularity_s: Option<u64>,
    /// Shortest bill in seconds, where known.
    pub minimum_s: Option<u64>,
}

impl Row {
    /// `provider/instance`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.provider, self.instance)
    }

    /// The last day on which the price was seen to hold; of a span without a day of its own, the first.
    fn seen(&self) -> Option<Date> {
        let date = |text: &str| text.get(..10).and_then(|d| d.parse::<Date>().ok());
        let unchanged = self.as_of.split_once("unchanged ").map(|(_, d)| d);
        unchanged.and_then(date).or_else(|| date(&self.as_of))
    }

    /// Days from the price's day to `today`; `None` where the row has no day.
    pub fn age_days(&self, today: Date) -> Option<i32> {
        today.since(self.seen()?).ok().map(|span| span.get_days())
    }

    /// Too old to be trusted unseen, or of no known age.
    pub fn is_old(&self, today: Date) -> bool {
        self.age_days(today).is_none_or(|days| days > MAX_AGE_DAYS)
    }

    /// What to say about the row's age on `today`, if anything.
    pub fn age_warning(&self, today: Date) -> Option<String> {
        let Some(days) = self.age_days(today) else {
            return Some(format!("the price of `{}` has no date ({}): check it", self.key(), self.as_of));
        };
        self.is_old(today).then(|| {
            format!(
                "the price of `{}` is {days} days old ({}): check it, or set `usd_per_hour`",
                self.key(),
                self.as_of
            )
        })
    }
}

/// Rows in the order of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// The table that ships with the program.
    ///
    /// # Errors
    /// None in a released program: a test reads every row.
    pub fn shipped() -> Result<Self> {
        Self::parse(SHIPPED)
    }

    /// The shipped table behind one of the user's own, whose rows win.
    ///
    /// # Errors
    /// The file cannot be read, or is not a table (2).
    pub fn with_own(own: Option<&Path>) -> Result<Self> {
        let mut table = Self::shipped()?;
        if let Some(path) = own {
            let bytes = fs::read_at_most(path, MAX_BYTES)?;
            let own = Self::parse(&String::from_utf8_lossy(&bytes))
                .map_err(|error| error.hint(format!("correct {}", path.display())))?;
            table.rows.splice(0..0, own.rows);
        }
        Ok(table)
    }

    /// Reads a table of the shipped one's columns, in any order.
    ///
    /// # Errors
    /// Usage, with the line, where a row is cut or a price is not one.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(Self { rows: csv::read("price table", text, row)? })
    }

    /// All rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The row called `name`: `provider/instance`, in any case, a remark in parentheses may be left out.
    ///
    /// # Errors
    /// Usage: no such row, with the nearest; or an accelerator's name, with its rows.
    pub fn find(&self, name: &str) -> Result<&Row> {
        let wanted = plain(name);
        let found = self.rows.iter().find(|r| r.key() == name);
        if let Some(row) = found.or_else(|| self.rows.iter().find(|r| plain(&r.key()) == wanted)) {
            return Ok(row);
        }
        let of_accelerator: Vec<String> = self
            .rows
            .iter()
            .filter(|r| is_accelerator(r, &wanted))
            .map(|r| format!("{}  ${}/h", r.key(), r.usd_per_hour))
            .collect();
        if !of_accelerator.is_empty() {
            return Err(Error::BareAccelerator { name: name.into(), rows: of_accelerator }.into());
        }
        Err(Error::UnknownMachine { name: name.into(), nearest: self.nearest(&wanted) }.into())
    }

    /// The rows that a filter lets through, the cheapest first.
    pub fn select(&self, filter: &Filter) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.iter().filter(|row| filter.lets(row)).collect();
        rows.sort_by(|a, b| filter.price(a).total_cmp(&filter.price(b)));
        rows
    }

    fn nearest(&self, wanted: &str) -> Vec<String> {
        let mut scored: Vec<(f64, String)> =
            self.rows.iter().map(|r| (strsim::jaro_winkler(&plain(&r.key()), wanted), r.key())).collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        scored.into_iter().take(NEAREST).map(|(_, k)| k).collect()
    }
}

/// Which rows are wanted; `None` = any.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// Accelerator: `H100`, or `A100` for both of its sizes.
    pub gpu: Option<String>,
    /// A part of the provider's name.
    pub provider: Option<String>,
    /// USD per hour at most.
    pub max_usd: Option<f64>,
    /// Only rows with a spot price, and that one counts.
    pub spot: bool,
}

impl Filter {
    fn lets(&self, row: &Row) -> bool {
        let is_gpu = self.gpu.as_ref().is_none_or(|gpu| is_accelerator(row, &gpu.trim().to_lowercase()));
        let has_name = |p: &String| row.provider.to_lowercase().contains(&p.trim().to_lowercase());
        is_gpu
            && self.provider.as_ref().is_none_or(has_name)
            && (!self.spot || row.usd_per_hour_spot.is_some())
            && self.max_usd.is_none_or(|most| self.price(row) <= most)
    }

    fn price(&self, row: &Row) -> f64 {
        row.usd_per_hour_spot.filter(|_| self.spot).unwrap_or(row.usd_per_hour)
    }
}

/// `H100` names H100; `A100` names A100-40GB and A100-80GB.
pub(crate) fn is_accelerator(row: &Row, wanted: &str) -> bool {
    row.accelerator.as_deref().is_some_and(|a| {
        let a = a.to_lowercase();
        a == wanted || a.strip_prefix(wanted).is_some_and(|r| r.starts_with('-'))
    })
}

/// Lower case, without a remark in parentheses at the end.
fn plain(name: &str) -> String {
    let name = name.trim().to_lowercase();
    match name.rsplit_once(" (") {
        Some((head, _)) if name.ends_with(')') => head.to_owned(),
        _ => name,
    }
}

fn row(fields: &csv::Row<'_>) -> Result<Row, Error> {
    Ok(Row {
        provider: fields.text("provider")?.into(),
        instance: fields.text("instance")?.into(),
        accelerator: Some(fields.optional("accelerator")).filter(|a| !a.is_empty()).map(Into::into),
        count: fields.whole("count")?.unwrap_or(0),
        vram_gib: fields.number("vram_gib")?,
        usd_per_hour: price(fields, "usd_per_hour_on_demand")?
            .ok_or_else(|| fields.fault("`usd_per_hour_on_demand` is empty".into()))?,
        usd_per_hour_spot: price(fields, "usd_per_hour_spot")?,
        source: fields.text("source")?.into(),
        as_of: fields.text("as_of")?.into(),
        billing_granularity_s: fields.whole("billing_granularity_s")?,
        minimum_s: fields.whole("minimum_s")?,
    })
}

fn price(fields: &csv::Row<'_>, column: &str) -> Result<Option<f64>, Error> {
    let most = group_thousands(MOST_USD_PER_HOUR.into());
    match fields.number(column)? {
        Some(usd) if !money::is_price(usd) => {
            Err(fields.fault(format!("`{column}` is {usd:?}, more than {most}")))
        }
        found => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn table() -> Table {
        Table::shipped().unwrap()
    }

    fn day(text: &str) -> Date {
        text.parse().unwrap()
    }

    #[test]
    fn every_shipped_row_has_a_price_a_source_and_a_key_of_its_own() {
        let table = table();
        assert_eq!(table.rows().len(), 131);
        let mut keys: Vec<String> = table.rows().iter().map(Row::key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 131);
        assert!(table.rows().iter().all(|r| !r.source.is_empty() && r.usd_per_hour > 0.0));
    }

    #[test]
    fn a_row_is_found_by_its_key_in_any_case_and_without_its_remark() {
        let table = table();
        let row = table.find("aws us-east-1/g5.xlarge").unwrap();
        assert!((row.usd_per_hour - 1.006).abs() < 1e-12);
        assert_eq!(row.minimum_s, Some(60));
        assert_eq!(table.find("AWS us-east-1/G5.XLARGE").unwrap(), row);
        let cpu = table.find("huggingface-jobs/cpu-xl").unwrap();
        assert_eq!(cpu.instance, "cpu-xl (16 vCPU 124GB)");
        assert_eq!(cpu.accelerator, None);
    }

    #[test]
    fn a_miss_names_the_nearest_rows() {
        let error = table().find("lambda/gpu_1x_h100_sxm").unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
        let hint = error.problems[0].hint.clone().unwrap();
        assert!(hint.contains("`lambda/gpu_1x_h100_sxm5`"), "{hint}");
    }

    #[test]
    fn a_bare_accelerator_lists_its_rows() {
        for name in ["H100", "a100"] {
            let error = table().find(name).unwrap_err();
            let hint = error.problems[0].hint.clone().unwrap();
            assert!(hint.lines().count() > 4 && hint.contains("/h"), "{hint}");
            assert!(!hint.contains("t4-small"));
        }
    }

    #[test]
    fn age_is_judged_by_the_day_the_price_was_last_seen() {
        let table = table();
        let crusoe = table.find("crusoe/L40S-48GB").unwrap();
        assert_eq!(crusoe.age_warning(day("2026-11-21")), None, "unchanged 2026-10-20");
        assert!(crusoe.age_warning(day("2027-11-21")).unwrap().contains("397 days"));
        let undated = table.find("runpod serverless/flex A100").unwrap();
        assert!(undated.age_warning(day("2026-11-21")).unwrap().contains("no date"));
        let span = table.find("lambda/gpu_1x_gh200").unwrap();
        assert!(span.age_warning(day("2026-11-21")).is_some(), "its first day counts");
        let fresh = table.find("aws us-east-1/g5.xlarge").unwrap();
        assert_eq!(fresh.age_warning(day("2026-11-21")), None);
    }

    #[test]
    fn a_filter_lists_the_cheapest_first() {
        let table = table();
        let filter = Filter { gpu: Some("h100".into()), max_usd: Some(5.0), ..Filter::default() };
        let rows = table.select(&filter);
        assert!(rows.len() > 3 && rows.iter().all(|r| r.accelerator.as_deref() == Some("H100")));
        assert!(rows.windows(2).all(|w| w[0].usd_per_hour <= w[1].usd_per_hour));
        let spot = Filter { provider: Some("AWS".into()), spot: true, ..Filter::default() };
        assert!(table.select(&spot).iter().all(|r| r.usd_per_hour_spot.is_some()));
        assert_eq!(table.select(&Filter::default()).len(), 131);
    }

    #[test]
    fn a_row_of_ones_own_wins_over_the_shipped_one() {
        let own = tempfile::NamedTempFile::new().unwrap();
        let text = "provider,instance,usd_per_hour_on_demand,source,as_of\nlambda,gpu_1x_gh200,1.1,mine,2026-11-01\n";
        std::fs::write(own.path(), text).unwrap();
        let table = Table::with_own(Some(own.path())).unwrap();
        assert_eq!(table.rows().len(), 132);
        let row = table.find("lambda/gpu_1x_gh200").unwrap();
        assert_eq!((row.usd_per_hour, row.source.as_str()), (1.1, "mine"));
        std::fs::write(own.path(), "provider\nx\n").unwrap();
        let error = Table::with_own(Some(own.path())).unwrap_err().to_string();
        assert!(error.contains("price table:2") && error.contains("correct /"), "{error}");
    }

    #[test]
    fn a_price_that_is_none_is_refused_with_its_line() {
        let header = "provider,instance,usd_per_hour_on_demand,source,as_of";
        for bad in ["nan", "-1", "inf", "1e308", "1000001", "abc", ""] {
            let text = format!("{header}\na,b,1,s,d\na,c,{bad},s,d\n");
            let error = Table::parse(&text).unwrap_err();
            assert_eq!(error.kind, Kind::Usage);
            assert!(error.to_string().contains("price table:3"), "{error}");
        }
        assert!(Table::parse(&format!("{header}\na,b,1\n")).is_err());
    }
}
