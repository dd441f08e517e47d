//! The time of training by op: seconds that were recorded beside the work that was counted, over what the machine
//! reaches at best.

use super::table::{Table, section, wrap};
use super::words::{self, or_word};
use crate::estimate::work::{Op, Volume};
use crate::ops::profile::{Pass, Profile, Site};
use crate::train::screen::Screen;
use serde::Serialize;

/// What the machine reaches at best, where measured.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Peak {
    /// Of products, FLOP/s.
    pub flops_per_s: Option<f64>,
    /// Of a copy beyond the caches, bytes read and written per second.
    pub bytes_per_s: Option<f64>,
}

/// One op in one pass.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub op: &'static str,
    /// Its pass.
    pub pass: &'static str,
    /// Times that it ran.
    pub calls: u64,
    /// Seconds in all.
    pub seconds: f64,
    /// Of the steps' time.
    pub share: f64,
    /// Counted FLOPs; `None` for what only moves bytes.
    pub flops: Option<f64>,
    /// Counted bytes; `None` for products.
    pub bytes: Option<f64>,
    /// Of the machine's best rate in FLOP/s or bytes/s; above 1 where the caches serve.
    pub share_of_peak: Option<f64>,
}

/// The rows, the longest first, closed to the steps' whole time by the time outside of any op.
pub fn rows(profile: &Profile, work: &[Op], planned: &Volume, steps: u64, peak: Peak) -> Vec<Row> {
    let whole_s = profile.steps.own_ns as f64 / 1e9;
    let share = |seconds: f64| if whole_s > 0.0 { seconds / whole_s } else { 0.0 };
    let mut rows: Vec<Row> = profile
        .totals
        .iter()
        .map(|(&(site, pass), total)| {
            let seconds = total.own_ns as f64 / 1e9;
            let (flops, bytes) = done(profile, work, planned, steps, site, pass);
            let above = |v: f64| Some(v).filter(|v| *v > 0.0);
            let flops = above(flops);
            let bytes = above(bytes).filter(|_| flops.is_none());
            let of = |amount: Option<f64>, best: Option<f64>| Some(amount? / seconds / best?);
            Row {
                op: site.name(),
                pass: pass.name(),
                calls: total.calls,
                seconds,
                share: share(seconds),
                flops,
                bytes,
                share_of_peak: of(flops, peak.flops_per_s)
                    .or(of(bytes, peak.bytes_per_s))
                    .filter(|s| s.is_finite()),
            }
        })
        .collect();
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let rest = whole_s - rows.iter().map(|r| r.seconds).sum::<f64>();
    rows.push(Row {
        op: "outside of ops",
        pass: "",
        calls: profile.steps.calls,
        seconds: rest,
        share: share(rest),
        flops: None,
        bytes: None,
        share_of_peak: None,
    });
    rows
}

/// FLOPs and bytes of what was done, from those of all that was planned.
fn done(profile: &Profile, work: &[Op], planned: &Volume, steps: u64, site: Site, pass: Pass) -> (f64, f64) {
    let over = |done: f64, planned: f64| if planned > 0.0 { done / planned } else { 0.0 };
    let volume = &profile.volume;
    let part = match site {
        Site::Attention => over(volume.squares + volume.tokens, planned.squares + planned.tokens),
        Site::Head => over(volume.targets, planned.targets),
        Site::Update => over(profile.steps.calls as f64, steps as f64),
        _ => over(volume.tokens, planned.tokens),
    };
    let ops = || work.iter().filter(|op| (op.site, op.pass) == (site, pass));
    (part * ops().map(|op| op.flops).sum::<f64>(), part * ops().map(|op| op.bytes).sum::<f64>())
}

/// The rows as a table.
pub fn table(rows: &[Row], peak: Peak, screen: Screen) -> String {
    let mut table = Table::new()
        .left("op")
        .left("pass")
        .extra("calls", 2)
        .right("time")
        .right("share")
        .extra("work", 1)
        .right("rate")
        .right("of peak");
    for row in rows {
        let amount = row.flops.or(row.bytes);
        let rate = amount.map(|a| a / row.seconds).filter(|r| r.is_finite());
        let flops = |v: f64| crate::units::Flops(v).to_string();
        let show: &dyn Fn(f64) -> String = if row.flops.is_some() { &flops } else { &words::bytes };
        table.row([
            row.op.to_owned(),
            row.pass.to_owned(),
            words::thousands(row.calls as f64),
            words::seconds(row.seconds),
            words::share(row.share),
            or_word(amount, show, ""),
            or_word(rate, |r| format!("{}/s", show(r)), ""),
            or_word(row.share_of_peak, words::share, ""),
        ]);
    }
    let whole_s: f64 = rows.iter().map(|r| r.seconds).sum();
    let flops: f64 = rows.iter().filter_map(|r| r.flops).sum();
    let rate = Some(flops / whole_s).filter(|r| r.is_finite() && *r > 0.0);
    table.total([
        "all".into(),
        String::new(),
        String::new(),
        words::seconds(whole_s),
        String::new(),
        or_word(rate, |_| crate::units::Flops(flops).to_string(), ""),
        or_word(rate, words::flops_per_s, ""),
        or_word(rate.zip(peak.flops_per_s), |(rate, best)| words::share(rate / best), ""),
    ]);
    let best = |v: Option<f64>, show: fn(f64) -> String| or_word(v, show, words::NOT_MEASURED);
    let peaks = format!(
        "Peak is what this machine was measured to reach: {} in a product, {} in a copy.",
        best(peak.flops_per_s, words::flops_per_s),
        best(peak.bytes_per_s, |bytes| format!("{}/s", words::bytes(bytes))),
    );
    let peaks = wrap(&peaks, "  ", screen.columns);
    screen.fit(section(screen, "Where the steps' time went", &(table.render(screen) + &peaks)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::work::{Class, Way};
    use crate::ops::profile::Total;

    fn product(site: Site, pass: Pass, flops: f64) -> Op {
        Op { site, pass, flops, ..Op::nothing(Class::Linear, Way::Forward) }
    }

    fn profile() -> Profile {
        let total = |own_ns| Total { calls: 2, own_ns };
        let totals = [
            ((Site::Down, Pass::Forward), total(1_000_000_000)),
            ((Site::Down, Pass::Backward), total(2_000_000_000)),
            ((Site::Norm, Pass::Forward), total(500_000_000)),
        ];
        Profile {
            totals: totals.into(),
            steps: Total { calls: 1, own_ns: 4_000_000_000 },
            volume: Volume { tokens: 10.0, targets: 10.0, squares: 100.0, calls: 1.0 },
            ..Profile::default()
        }
    }

    fn made() -> Vec<Row> {
        let work = [
            product(Site::Down, Pass::Forward, 400.0),
            product(Site::Down, Pass::Forward, 40.0),
            product(Site::Down, Pass::Backward, 800.0),
            Op { flops: 0.0, bytes: 60.0, ..product(Site::Norm, Pass::Forward, 0.0) },
        ];
        // Half of what was planned was done.
        let planned = Volume { tokens: 20.0, targets: 20.0, squares: 200.0, calls: 2.0 };
        let peak = Peak { flops_per_s: Some(440.0), bytes_per_s: Some(120.0) };
        rows(&profile(), &work, &planned, 2, peak)
    }

    #[test]
    fn time_is_measured_work_is_counted_and_both_close_to_the_whole() {
        let rows = made();
        let names: Vec<_> = rows.iter().map(|r| (r.op, r.pass)).collect();
        let expected =
            [("down", "backward"), ("down", "forward"), ("norm", "forward"), ("outside of ops", "")];
        assert_eq!(names, expected);
        assert_eq!((rows[1].flops, rows[1].bytes, rows[1].share_of_peak), (Some(220.0), None, Some(0.5)));
        assert_eq!((rows[2].bytes, rows[2].share_of_peak), (Some(30.0), Some(0.5)));
        let whole: f64 = rows.iter().map(|r| r.seconds).sum();
        assert!((whole - 4.0).abs() < 1e-9);
        assert!((rows.iter().map(|r| r.share).sum::<f64>() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_table_says_what_it_compares_with() {
        let text = table(&made(), Peak::default(), Screen::plain(100));
        assert!(text.contains("not measured in a product"), "{text}");
        assert!(text.contains("outside of ops"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }

    #[test]
    fn a_run_of_no_steps_gives_no_infinite_rates() {
        let rows = rows(&Profile::default(), &[], &Volume::default(), 0, Peak::default());
        assert_eq!(rows.len(), 1);
        assert!(!table(&rows, Peak::default(), Screen::plain(80)).contains("NaN"));
    }
}
