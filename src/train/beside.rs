//! What is paid for beside the run where the whole machine is: its time since it was started, or since the last run on
//! it ended, and until it is released.

use crate::config::Cost;
use crate::error::Result;
use crate::estimate::amount::Kind;
use crate::estimate::money::{Beside, IDLE, SET_UP};
use crate::fs;
use crate::ledger::{Ledger, Phase};
use crate::meter::machine::since_boot_s;

/// The machine's time beside a run that begins now, or goes on under the id `run`, by `[cost] bill_from`; the second
/// value is a warning.
pub(super) fn beside(cost: &Cost, run: Option<&str>) -> (Vec<Beside>, Option<String>) {
    if !cost.from_boot {
        return (Vec::new(), None);
    }
    let stated = cost.release_after_s.filter(|&s| s > 0).map(|s| Beside {
        name: "until release".into(),
        seconds: s as f64,
        kind: Kind::Stated,
    });
    let Some(since_boot) = since_boot_s() else {
        let warning =
            "`bill_from = \"boot\"`: when this machine was started cannot be told; the run alone is billed";
        return (stated.into_iter().collect(), Some(warning.into()));
    };
    let before = with_earlier(&before(since_boot, idle_s()), &earlier(run));
    (before.into_iter().chain(stated).collect(), None)
}

/// What earlier processes of the run were billed for beside it.
fn earlier(run: Option<&str>) -> Vec<Phase> {
    let phases =
        |run| -> Result<Vec<Phase>> { Ok(Ledger::open_in_haste(&fs::home()?)?.details(run)?.phases) };
    // A ledger that cannot be read is said where the run enters itself.
    run.and_then(|run| phases(run).ok()).unwrap_or_default()
}

/// The time before this process on top of that before earlier ones.
fn with_earlier(now: &Beside, earlier: &[Phase]) -> Vec<Beside> {
    let sum = |name: &str| {
        let then = earlier.iter().filter(|phase| phase.name == name).map(|phase| phase.wall_s).sum::<f64>();
        let here = if now.name == name { now.seconds } else { 0.0 };
        Beside { name: name.to_owned(), seconds: then + here, kind: Kind::Measured }
    };
    [SET_UP, IDLE].map(sum).into_iter().filter(|b| b.seconds > 0.0 || b.name == now.name).collect()
}

/// Time that no run has been billed for yet.
fn before(since_boot_s: f64, idle_s: Option<f64>) -> Beside {
    let (name, seconds) = match idle_s {
        Some(idle) => (IDLE, idle.clamp(0.0, since_boot_s)),
        None => (SET_UP, since_boot_s),
    };
    Beside { name: name.into(), seconds, kind: Kind::Measured }
}

/// Seconds since the last run on this boot of the machine ended; `None` = this is the first, or nobody knows.
fn idle_s() -> Option<f64> {
    let boot_id = fs::Owner::here().boot_id?;
    let ends =
        Ledger::open_in_haste(&fs::home().ok()?).and_then(|ledger| ledger.ends_on_boot(&boot_id)).ok()?;
    let now = jiff::Timestamp::now();
    ends.into_iter().map(|end| now.duration_since(end).as_secs_f64()).reduce(f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_run_pays_the_set_up_and_the_next_its_idle_time() {
        let first = before(500.0, None);
        assert_eq!((first.name.as_str(), first.seconds), ("set-up", 500.0));
        let second = before(500.0, Some(60.0));
        assert_eq!((second.name.as_str(), second.seconds), ("idle before", 60.0));
        assert!(before(500.0, Some(-3.0)).seconds.abs() < 1e-12, "two clocks may disagree");
        assert!((before(500.0, Some(9999.0)).seconds - 500.0).abs() < 1e-12);
    }

    #[test]
    fn a_run_that_goes_on_keeps_what_was_paid_before_it() {
        let phase = |name: &str, wall_s| Phase { name: name.into(), wall_s, ..Phase::default() };
        let earlier = [phase(SET_UP, 500.0), phase("train", 90.0), phase(IDLE, 7.0)];
        let named = |all: Vec<Beside>| all.into_iter().map(|b| (b.name, b.seconds)).collect::<Vec<_>>();
        let idle = with_earlier(&before(700.0, Some(60.0)), &earlier);
        assert_eq!(named(idle), [(SET_UP.to_owned(), 500.0), (IDLE.to_owned(), 67.0)]);
        let on_another_machine = with_earlier(&before(40.0, None), &earlier[..2]);
        assert_eq!(named(on_another_machine), [(SET_UP.to_owned(), 540.0)]);
    }

    #[test]
    fn a_run_alone_has_nothing_beside_it_and_a_release_is_stated() {
        assert_eq!(beside(&Cost::default(), None), (Vec::new(), None));
        let cost = Cost { from_boot: true, release_after_s: Some(90), ..Cost::default() };
        let (all, _) = beside(&cost, None);
        let last = all.last().unwrap();
        assert_eq!((last.name.as_str(), last.seconds, last.kind), ("until release", 90.0, Kind::Stated));
    }
}
