//! The live line on stderr: where the run is, what it learned, what it has cost and what it will. One redrawn line on
//! a terminal, plain lines elsewhere; a reader that went away never stops a run.

use super::metrics::StepRecord;
use super::screen::{Screen, visible};
use crate::units::{Seconds, Usd, group_thousands};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::Write;

/// What the whole run will take, as far as is known now.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Projection {
    /// All phases, earlier sessions included, s.
    pub wall_s: Option<f64>,
    /// The bill for it, USD.
    pub cost_usd: Option<f64>,
}

/// Shows steps as they are taken.
pub struct Progress {
    sink: Sink,
    screen: Screen,
    total_steps: u64,
    usd_per_hour: Option<f64>,
    logging_steps: u64,
    /// Σ of this session: single steps jump too much to be read.
    tokens: u64,
    step_s: f64,
    first_line_due: bool,
}

enum Sink {
    Live(ProgressBar),
    Lines(Box<dyn Write + Send>),
}

impl Progress {
    /// Opens the line at `done_steps` of `total_steps`; without a price, costs read "cost unknown".
    pub fn new(total_steps: u64, done_steps: u64, usd_per_hour: Option<f64>, logging_steps: u64) -> Self {
        let screen = Screen::stderr();
        let sink = if screen.live {
            let bar = ProgressBar::with_draw_target(Some(total_steps), ProgressDrawTarget::stderr())
                .with_position(done_steps);
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                bar.set_style(style);
            }
            bar.set_message(format!("step {done_steps}/{total_steps}"));
            Sink::Live(bar)
        } else {
            Sink::Lines(Box::new(std::io::stderr()))
        };
        Self::with_sink(sink, screen, total_steps, usd_per_hour, logging_steps)
    }

    fn with_sink(
        sink: Sink,
        screen: Screen,
        total_steps: u64,
        usd_per_hour: Option<f64>,
        logging_steps: u64,
    ) -> Self {
        Self {
            sink,
            screen,
            total_steps,
            usd_per_hour,
            logging_steps: logging_steps.max(1),
            tokens: 0,
            step_s: 0.0,
            first_line_due: true,
        }
    }

    /// A step was taken, `elapsed_s` after the run began (earlier sessions included).
    pub fn step(&mut self, record: &StepRecord, elapsed_s: f64, projected: Projection) {
        if record.step_s.is_finite() {
            self.tokens += record.tokens;
            self.step_s += record.step_s;
        }
        let facts = Facts {
            record,
            total_steps: self.total_steps,
            tokens_per_s: (self.step_s > 0.0).then(|| self.tokens as f64 / self.step_s),
            spent_usd: self.usd_per_hour.map(|price| price * elapsed_s / 3600.0),
            elapsed_s,
            projected,
        };
        match &mut self.sink {
            Sink::Live(bar) => {
                // Asked again each time: windows are resized.
                let columns = Screen::stderr().columns;
                bar.set_message(self.screen.fit(facts.live_line(columns)));
                bar.set_position(record.step);
            }
            Sink::Lines(to) => {
                let due = record.step.is_multiple_of(self.logging_steps) || record.step == self.total_steps;
                if due || self.first_line_due {
                    let _ = writeln!(to, "{}", self.screen.fit(facts.plain_line()));
                }
                self.first_line_due = false;
            }
        }
    }

    /// Prints a line of its own above the live one.
    pub fn note(&mut self, text: &str) {
        let text = self.screen.fit(visible(text));
        match &mut self.sink {
            Sink::Live(bar) => bar.suspend(|| {
                let _ = writeln!(std::io::stderr(), "{text}");
            }),
            Sink::Lines(to) => {
                let _ = writeln!(to, "{text}");
            }
        }
    }

    /// Leaves the last line standing and goes below it.
    pub fn finish(self) {
        drop(self);
    }
}

/// A run that ends in an error leaves its last line too, and the error stands below it.
impl Drop for Progress {
    fn drop(&mut self) {
        match &mut self.sink {
            Sink::Live(bar) => {
                bar.abandon();
                let _ = writeln!(std::io::stderr());
            }
            Sink::Lines(to) => {
                let _ = to.flush();
            }
        }
    }
}

/// What one line can say.
struct Facts<'a> {
    record: &'a StepRecord,
    total_steps: u64,
    tokens_per_s: Option<f64>,
    spent_usd: Option<f64>,
    elapsed_s: f64,
    projected: Projection,
}

impl Facts<'_> {
    /// The parts in the order shown, each with its rank: a narrow terminal loses the highest first.
    fn parts(&self) -> Vec<(u8, String)> {
        let r = self.record;
        let mut parts = vec![(0, format!("step {}/{}", r.step, self.total_steps))];
        parts.push(if r.loss.is_finite() {
            (1, format!("loss {:.4}", r.loss))
        } else {
            (1, "loss not finite".to_owned())
        });
        if r.grad_norm.is_finite() {
            parts.push((6, format!("norm {:.3}", r.grad_norm)));
        }
        parts.push((5, format!("lr {:.2e}", r.learning_rate)));
        if let Some(rate) = self.tokens_per_s.filter(|rate| rate.is_finite()) {
            let digits = if rate < 10.0 { 2 } else { 0 };
            let number = format!("{rate:.digits$}");
            let number = number.parse().map_or(number, group_thousands);
            parts.push((4, format!("{number} tok/s")));
        }
        parts.push((3, self.money()));
        let known = |wall_s: &f64| wall_s.is_finite() && *wall_s >= 0.0;
        if let Some(wall_s) = self.projected.wall_s.filter(known) {
            let left = wall_s - self.elapsed_s;
            if left > 0.0 && r.step < self.total_steps {
                parts.push((2, format!("{} left", Seconds(left))));
            }
        }
        parts
    }

    fn money(&self) -> String {
        let shown = |usd: Option<f64>| usd.filter(|u| u.is_finite()).map(|u| Usd(u).to_string());
        match (shown(self.spent_usd), shown(self.projected.cost_usd)) {
            (Some(spent), Some(whole)) => format!("{spent} of {whole}"),
            (Some(spent), None) => format!("{spent} spent"),
            (None, _) => "cost unknown".to_owned(),
        }
    }

    fn plain_line(&self) -> String {
        let parts: Vec<_> = self.parts().into_iter().map(|(_, text)| text).collect();
        parts.join("  ")
    }

    /// As many parts as fit in `columns`, with a bar where room is left for one.
    fn live_line(&self, columns: usize) -> String {
        let mut parts = self.parts();
        // The last column stays free: some terminals wrap when it is written.
        let room = columns.saturating_sub(1);
        while width(&parts) > room && parts.len() > 1 {
            let worst = parts.iter().map(|(rank, _)| *rank).max();
            parts.retain(|(rank, _)| Some(*rank) != worst);
        }
        let left = room.saturating_sub(width(&parts) + 2).min(30);
        if left >= 8 {
            parts.insert(1, (0, self.bar(left)));
        }
        let line: Vec<_> = parts.into_iter().map(|(_, text)| text).collect();
        line.join("  ").chars().take(room).collect()
    }

    /// A bar of `cells` characters.
    fn bar(&self, cells: usize) -> String {
        let total = u128::from(self.total_steps.max(1));
        let done = u128::from(self.record.step).min(total);
        let full = usize::try_from(done * cells as u128 / total).unwrap_or(cells);
        "━".repeat(full) + &"·".repeat(cells.saturating_sub(full))
    }
}

fn width(parts: &[(u8, String)]) -> usize {
    let texts: usize = parts.iter().map(|(_, text)| text.chars().count()).sum();
    texts + 2 * parts.len().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    fn record(step: u64) -> StepRecord {
        StepRecord {
            step,
            epoch: 0.5,
            loss: 1.234_56,
            grad_norm: 0.987,
            learning_rate: 1.95e-4,
            tokens: 4096,
            penalty: None,
            padded_tokens: 0,
            loss_tokens: 2000,
            step_s: 2.0,
            rss_bytes: None,
            device_bytes: None,
        }
    }

    fn facts(record: &StepRecord) -> Facts<'_> {
        Facts {
            record,
            total_steps: 400,
            tokens_per_s: Some(2048.0),
            spent_usd: Some(0.0123),
            elapsed_s: 240.0,
            projected: Projection { wall_s: Some(800.0), cost_usd: Some(0.041) },
        }
    }

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(steps: u64, every: u64, price: Option<f64>) -> String {
        let to = Shared::default();
        let sink = Sink::Lines(Box::new(to.clone()));
        let mut progress = Progress::with_sink(sink, Screen::plain(80), steps, price, every);
        for step in 1..=steps {
            progress.step(&record(step), 3600.0, Projection::default());
        }
        progress.finish();
        String::from_utf8(to.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn the_whole_line_says_everything() {
        assert_eq!(
            facts(&record(120)).plain_line(),
            "step 120/400  loss 1.2346  norm 0.987  lr 1.95e-4  2,048 tok/s  $0.012300 of $0.041000  9 min 20 s left"
        );
    }

    #[test]
    fn nothing_is_left_after_the_last_step() {
        assert!(!facts(&record(400)).plain_line().contains("left"));
    }

    #[test]
    fn a_narrow_terminal_loses_the_least_first_and_is_never_overrun() {
        let record = record(120);
        for columns in 1..200 {
            let line = facts(&record).live_line(columns);
            assert!(line.chars().count() < columns.max(1), "{columns}: {line}");
        }
        assert_eq!(facts(&record).live_line(20), "step 120/400");
        assert_eq!(facts(&record).live_line(45), "step 120/400  loss 1.2346  9 min 20 s left");
        assert!(facts(&record).live_line(80).contains("$0.012300 of $0.041000"));
        assert!(facts(&record).live_line(160).contains("━━━━━━━━━·····"));
    }

    #[test]
    fn plain_lines_come_first_last_and_every_logging_steps() {
        let text = lines(25, 10, Some(1.0));
        let steps: Vec<_> = text.lines().map(|l| l.split_whitespace().nth(1).unwrap()).collect();
        assert_eq!(steps, ["1/25", "10/25", "20/25", "25/25"]);
        assert!(text.contains("$1.00 spent"), "{text}");
        assert_eq!(lines(3, 0, None).lines().count(), 3);
    }

    #[test]
    fn without_a_price_the_cost_is_unknown_and_not_0() {
        let text = lines(1, 1, None);
        assert!(text.contains("cost unknown") && !text.contains('$'), "{text}");
    }

    #[test]
    fn what_is_not_finite_is_said_in_words() {
        let mut broken = record(3);
        broken.loss = f64::NAN;
        broken.grad_norm = f64::INFINITY;
        let mut facts = facts(&broken);
        facts.spent_usd = Some(f64::NAN);
        facts.projected = Projection { wall_s: Some(f64::NAN), cost_usd: Some(f64::INFINITY) };
        facts.total_steps = 0;
        let line = facts.live_line(150);
        assert!(line.contains("loss not finite") && line.contains("cost unknown"), "{line}");
        assert!(!line.contains("NaN") && !line.contains("inf"), "{line}");
    }

    #[test]
    fn a_reader_that_went_away_does_not_stop_the_run() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let sink = Sink::Lines(Box::new(Closed));
        let mut progress = Progress::with_sink(sink, Screen::plain(80), 2, None, 1);
        progress.step(&record(1), 1.0, Projection::default());
        progress.note("saved");
        progress.finish();
    }

    #[test]
    fn a_note_cannot_drive_the_terminal() {
        let to = Shared::default();
        let sink = Sink::Lines(Box::new(to.clone()));
        let mut progress = Progress::with_sink(sink, Screen::plain(80), 2, None, 1);
        progress.note("row \x1b[2J skipped");
        let text = String::from_utf8(to.0.lock().unwrap().clone()).unwrap();
        assert!(!text.contains('\x1b') && text.contains("skipped"), "{text:?}");
    }
}
