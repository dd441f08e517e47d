//! The run over its time: what the meter saw, from the first process to the last, in about [`MOST`] moments.

use super::record::Moment;
use crate::estimate::parts::PartBytes;
use crate::ledger;
use crate::meter::Measured;

/// More than a page can show side by side. Earlier processes and this one are cut apart: that may add one.
pub const MOST: usize = 300;

/// Counters as they were read; rates are their differences.
struct Look<'a> {
    at_s: f64,
    phase: &'a str,
    rss_bytes: Option<u64>,
    device_bytes: Option<u64>,
    cpu_s: Option<f64>,
    energy_j: Option<f64>,
    parts: Option<PartBytes>,
}

/// The moments of a run: those of `earlier` processes as the ledger heard of them, then those of this one, which began
/// `earlier_s` into the run.
pub fn moments(earlier: &[ledger::Sample], measured: &Measured, earlier_s: f64) -> Vec<Moment> {
    let before = earlier.iter().filter(|sample| sample.wall_s < earlier_s).map(|sample| Look {
        at_s: sample.wall_s,
        phase: &sample.phase,
        rss_bytes: sample.rss_bytes,
        device_bytes: None,
        cpu_s: sample.cpu_s,
        energy_j: sample.energy_j,
        parts: sample.parts,
    });
    let now = measured.samples.iter().map(|sample| Look {
        at_s: earlier_s + sample.at_s,
        phase: &sample.phase,
        rss_bytes: sample.rss_bytes,
        device_bytes: sample.device_bytes,
        cpu_s: sample.cpu_s,
        energy_j: sample.energy_j,
        parts: sample.parts,
    });
    let (before, now): (Vec<Look<'_>>, Vec<Look<'_>>) = (before.collect(), now.collect());
    let stride = (before.len() + now.len()).div_ceil(MOST).max(1);
    // Counters begin anew with each process: no rate spans two of them.
    [before, now].iter().flat_map(|looks| rates(looks, stride)).collect()
}

/// One moment of every `stride` looks.
fn rates(looks: &[Look<'_>], stride: usize) -> Vec<Moment> {
    let mut moments: Vec<Moment> = Vec::new();
    let mut last: Option<&Look<'_>> = None;
    for part in looks.chunks(stride) {
        let Some(end) = part.last() else { continue };
        let since = |of: fn(&Look<'_>) -> Option<f64>| {
            let then = last?;
            let rate = (of(end)? - of(then)?) / (end.at_s - then.at_s);
            (rate.is_finite() && rate >= 0.0).then_some(rate)
        };
        moments.push(Moment {
            at_s: end.at_s,
            phase: end.phase.to_owned(),
            rss_bytes: part.iter().filter_map(|look| look.rss_bytes).max(),
            device_bytes: part.iter().filter_map(|look| look.device_bytes).max(),
            cores_busy: since(|look| look.cpu_s),
            power_w: since(|look| look.energy_j),
            parts: part.iter().filter_map(|look| look.parts).max_by_key(PartBytes::sum),
        });
        last = Some(end);
    }
    moments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Sample;

    fn measured(count: u32) -> Measured {
        let sample = |n: u32| Sample {
            at_s: f64::from(n) * 0.1,
            phase: "train".into(),
            rss_bytes: Some(if n == 777 { 99 } else { 5 }),
            cpu_s: Some(f64::from(n) * 0.15),
            ..Sample::default()
        };
        Measured { samples: (0..count).map(sample).collect(), ..Measured::default() }
    }

    #[test]
    fn rates_are_differences_within_a_process_and_no_peak_is_lost() {
        let early = |wall_s: f64| ledger::Sample {
            wall_s,
            phase: "load".into(),
            cpu_s: Some(100.0 + wall_s),
            energy_j: Some(wall_s * 50.0),
            ..ledger::Sample::default()
        };
        let earlier: Vec<_> = (1..=20).map(|n| early(f64::from(n))).collect();
        let moments = moments(&earlier, &measured(1000), 15.5);
        assert!(moments.len() <= MOST, "{}", moments.len());
        assert!(moments.is_sorted_by(|a, b| a.at_s < b.at_s));
        assert_eq!(moments.iter().filter_map(|m| m.rss_bytes).max(), Some(99));
        let (load, train): (Vec<&Moment>, Vec<&Moment>) = moments.iter().partition(|m| m.phase == "load");
        // What the ledger heard after the checkpoint that this process went on from is not drawn twice.
        assert!(load.iter().all(|m| m.at_s < 15.5 && m.power_w.is_none_or(|w| (w - 50.0).abs() < 1e-9)));
        assert_eq!(train[0].cores_busy, None, "the counter began anew");
        assert!(train[1..].iter().all(|m| (m.cores_busy.unwrap() - 1.5).abs() < 1e-9 && m.power_w.is_none()));
    }
}
