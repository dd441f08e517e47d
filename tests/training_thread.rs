//! What the training thread calls of the meter and of the heartbeat takes no lock and no memory: no work of theirs is
//! done there, and nothing that holds them up holds up a step.

use fttrain::estimate::PriceUsed;
use fttrain::ledger::{Book, Pulse, Sample, SharedBook};
use fttrain::meter::tag::{self, Part, Tagged};
use fttrain::meter::{Meter, Phase, Probe, Reading};
use std::hint::black_box;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

/// Steps that are gone through: more than a run of minutes has.
const STEPS: u64 = 10_000;
/// How long a look or a write is held up; whoever waited for it would wait as long.
const HELD_UP: Duration = Duration::from_secs(10);
/// Ten thousand steps' worth of calls take milliseconds; a busy machine may take them longer.
const MOMENT: Duration = Duration::from_secs(1);

/// A probe whose looks after the first one wait until they are let go.
struct Held {
    looks: u32,
    begun: Sender<()>,
    let_go: Receiver<()>,
}

impl Probe for Held {
    fn sample(&mut self) -> Reading {
        self.looks += 1;
        if self.looks > 1 {
            let _ = self.begun.send(());
            let _ = self.let_go.recv_timeout(HELD_UP);
        }
        Reading { cpu_s: Some(1.5), rss_bytes: Some(7), peak_rss_bytes: Some(9), ..Reading::default() }
    }
}

/// All that a step of the loop asks the meter and the heartbeat for; its record is made of what comes back.
fn step(meter: &Meter, pulse: &Pulse, held: &mut Tagged, k: u64) -> (Reading, f64) {
    meter.enter(Phase::Train);
    tag::add(Part::Workspace, k);
    let activations = Tagged::new(Part::Activations, 1 << 20);
    held.resize(k);
    drop(activations);
    tag::sub(Part::Workspace, k);
    let (reading, wall_s) = (meter.latest(), meter.elapsed().0);
    pulse.step(k, 1.5);
    assert!(pulse.warnings().is_empty());
    meter.enter(Phase::Evaluate);
    (reading, wall_s)
}

#[test]
fn a_step_takes_no_memory_and_waits_for_neither_a_look_nor_a_heartbeat() {
    let folder = tempfile::tempdir().unwrap();
    let (begun, looks) = mpsc::channel();
    let (let_go, held_up) = mpsc::channel();
    let probe = Box::new(Held { looks: 0, begun, let_go: held_up });
    let meter = Meter::start(probe, Duration::from_millis(1), Phase::Load);
    assert_eq!(meter.latest().rss_bytes, Some(7), "the first look is there at once");
    looks.recv_timeout(HELD_UP).unwrap();

    // A beat that another process's lock on the ledger holds up holds the book.
    let (book, _) = Book::open(&folder.path().join("home"), folder.path());
    let book = SharedBook::new(book);
    let writing = book.lock();
    let price = PriceUsed { usd_per_hour: Some(2.0), ..PriceUsed::unknown() };
    let mut pulse = Pulse::start(book.clone(), "abcd", meter.watch(), &price, &Sample::default());
    let mut held = Tagged::new(Part::Gradients, 0);

    let began = Instant::now();
    let taken = allocation_counter::measure(|| {
        for k in 0..STEPS {
            assert_eq!(black_box(step(&meter, &pulse, &mut held, k)).0.rss_bytes, Some(7));
        }
    });
    let took = began.elapsed();
    assert_eq!((taken.count_total, taken.bytes_total), (0, 0), "allocations of {STEPS} steps");
    assert!(took < MOMENT, "{STEPS} steps took {took:?} while a look and a beat were held up");
    assert!(looks.try_recv().is_err(), "the look is still held up");

    // The counter counts, and the same thread takes memory where it is told to.
    assert_eq!(allocation_counter::measure(|| drop(black_box(vec![0_u8; 99]))).bytes_total, 99);
    drop((writing, let_go));
    pulse.stop();
    let measured = meter.finish();
    assert!(measured.looks >= 2 && measured.phases.iter().any(|phase| phase.name == "train"));
}
