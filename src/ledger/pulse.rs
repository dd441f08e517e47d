//! The heartbeat of a run, on a thread of its own: once a second the ledger hears how the run stands, whatever it is
//! doing, so that a kill costs no more than that second of knowledge.

use super::book::Book;
use super::record::{Record, Sample};
use crate::estimate::PriceUsed;
use crate::meter::Watch;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// From beat to beat.
const INTERVAL: Duration = Duration::from_secs(1);

/// The records of a run, for the two threads that write them.
#[derive(Debug, Clone)]
pub struct SharedBook(Arc<Mutex<Book>>);

impl SharedBook {
    /// Shares it.
    pub fn new(book: Book) -> Self {
        Self(Arc::new(Mutex::new(book)))
    }

    /// The book, alone. A thread that died over it left whole records: each is one transaction.
    pub fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A beating heart; it stops when it is dropped.
#[derive(Debug)]
pub struct Pulse {
    shared: Arc<Shared>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    step: AtomicU64,
    /// Bits of the last loss; NaN = none yet.
    loss: AtomicU64,
    price: Mutex<PriceUsed>,
    warnings: Mutex<Vec<String>>,
    /// There are some: whoever asks after every step takes no lock before that.
    is_warned: AtomicBool,
}

/// What the beats are made of.
struct Heart {
    book: SharedBook,
    run_id: String,
    watch: Watch,
    earlier_s: f64,
    earlier_j: Option<f64>,
}

impl Pulse {
    /// Begins to beat at once; `before` is how the run stood when an earlier process left it.
    pub fn start(book: SharedBook, run_id: &str, watch: Watch, price: &PriceUsed, before: &Sample) -> Self {
        let shared = Arc::new(Shared {
            step: AtomicU64::new(before.step),
            loss: AtomicU64::new(before.loss.unwrap_or(f64::NAN).to_bits()),
            price: Mutex::new(price.clone()),
            warnings: Mutex::default(),
            is_warned: AtomicBool::new(false),
        });
        let heart = Heart {
            book,
            run_id: run_id.to_owned(),
            watch,
            earlier_s: before.wall_s,
            earlier_j: before.energy_j,
        };
        let (stop, stopped) = mpsc::channel::<()>();
        let theirs = Arc::clone(&shared);
        let run = move || {
            loop {
                if let Err(error) = heart.beat(&theirs) {
                    lock(&theirs.warnings).push(error.to_string());
                    theirs.is_warned.store(true, Ordering::Release);
                }
                match stopped.recv_timeout(INTERVAL) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
                }
            }
        };
        let thread = std::thread::Builder::new().name("pulse".into()).spawn(run);
        Self { shared, stop: Some(stop), thread: thread.ok() }
    }

    /// A step was taken: two atomic stores.
    pub fn step(&self, step: u64, loss: f64) {
        self.shared.step.store(step, Ordering::Release);
        self.shared.loss.store(loss.to_bits(), Ordering::Release);
    }

    /// More is known of what the run costs.
    pub fn set_price(&self, price: &PriceUsed) {
        *lock(&self.shared.price) = price.clone();
    }

    /// What a run of so many seconds costs, USD; `None` without a price.
    pub fn bill(&self, wall_s: f64) -> Option<f64> {
        lock(&self.shared.price).bill(wall_s).map(|bill| bill.cost_usd)
    }

    /// What the user must be told, once; where there is nothing, an atomic operation.
    pub fn warnings(&self) -> Vec<String> {
        if !self.shared.is_warned.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        std::mem::take(&mut lock(&self.shared.warnings))
    }

    /// The last beat; nothing is recorded behind it.
    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It panics no more than a beat can fail.
            let _ = thread.join();
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Heart {
    fn beat(&self, shared: &Shared) -> crate::error::Result<()> {
        let reading = self.watch.latest();
        let wall_s = self.earlier_s + self.watch.elapsed().0;
        let here_j = self.watch.joules();
        let loss = f64::from_bits(shared.loss.load(Ordering::Acquire));
        let sample = Sample {
            wall_s,
            at_ms: jiff::Timestamp::now().as_millisecond(),
            step: shared.step.load(Ordering::Acquire),
            phase: self.watch.phase().name().into(),
            cost_usd: lock(&shared.price).bill(wall_s).map(|bill| bill.cost_usd),
            loss: Some(loss).filter(|loss| loss.is_finite()),
            rss_bytes: reading.rss_bytes,
            cpu_s: reading.cpu_s,
            parts: reading.parts,
            energy_j: here_j.map(|here| here + self.earlier_j.unwrap_or(0.0)).or(self.earlier_j),
        };
        self.book.lock().heartbeat(&self.run_id, &sample)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::RunRow;
    use crate::ledger::tests::run;
    use crate::meter::fake::Fake;
    use crate::meter::{Meter, Phase, Reading};

    #[test]
    fn the_ledger_hears_of_a_run_whatever_it_does_and_nothing_after_its_end() {
        let (home, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut book, _) = Book::open(home.path(), out.path());
        book.start_run(&run("abcd", out.path())).unwrap();
        let book = SharedBook::new(book);
        let reading = |energy| Reading { package_j: Some(energy), rss_bytes: Some(7), ..Reading::default() };
        let meter = Meter::start(
            Box::new(Fake::new(vec![reading(100.0), reading(130.0)])),
            Duration::from_millis(1),
            Phase::Load,
        );
        let before = Sample { wall_s: 50.0, energy_j: Some(5.0), ..Sample::default() };
        let price = PriceUsed { usd_per_hour: Some(3600.0), ..PriceUsed::unknown() };
        std::thread::sleep(Duration::from_millis(20));
        let mut pulse = Pulse::start(book.clone(), "abcd", meter.watch(), &price, &before);
        let row = || book.lock().ledger().unwrap().find("abcd").unwrap();
        let heard = |of: &dyn Fn(&RunRow) -> bool| {
            let late = std::time::Instant::now() + 20 * INTERVAL;
            while !of(&row()) && std::time::Instant::now() < late {
                std::thread::sleep(Duration::from_millis(5));
            }
            row()
        };
        let first = heard(&|row| row.wall_s.is_some());
        assert!(first.wall_s.unwrap() > 50.0 && first.cost_usd.unwrap() > 50.0, "{first:?}");
        assert_eq!((first.step, first.loss), (0, None));
        pulse.step(9, 1.5);
        heard(&|row| row.step == 9);
        pulse.stop();
        let last = row();
        assert_eq!((last.step, last.loss), (9, Some(1.5)));
        assert!(last.energy_j.unwrap() >= 5.0, "{last:?}");
        let samples = book.lock().ledger().unwrap().samples("abcd", 0.0).unwrap();
        assert!(samples.iter().all(|s| s.phase == "load" && s.rss_bytes == Some(7)));
        assert!(pulse.warnings().is_empty());
    }
}
