//! Where the time of training goes: spans around ops, recorded on the thread that opens them between [`start`] and
//! [`finish`]. Off, a span is one relaxed load. What the ops compute is counted by the estimate, not here.

mod trace;

pub use crate::estimate::work::{Pass, Site};
pub use trace::write as write_trace;

use crate::data::Batch;
use crate::estimate::time::ClassTime;
use crate::estimate::work::{Class, Volume};
use candle_core::Device;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Spans that a trace holds: some 30 MB of JSON, and minutes of training; the sums go on beyond.
const MOST_EVENTS: usize = 1 << 18;

/// Threads that record; none in an ordinary run.
static RECORDING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// What a span is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// An op.
    Op(Site, Pass),
    /// A block of the decoder, by its index.
    Block(Pass, usize),
    /// Anything larger: `step`, `evaluate`.
    Stretch(&'static str),
}

/// A finished span; times in ns since [`start`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Of what.
    pub label: Label,
    /// When it began.
    pub start_ns: u64,
    /// How long it took.
    pub duration_ns: u64,
}

/// All spans of one op in one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Total {
    /// How many.
    pub calls: u64,
    /// Time in them, ns, less that in spans inside them.
    pub own_ns: u64,
}

/// What was recorded.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Profile {
    /// Ops inside optimizer steps.
    pub totals: BTreeMap<(Site, Pass), Total>,
    /// Those of the first step alone, which touches memory that nobody touched before.
    pub first: BTreeMap<(Site, Pass), Total>,
    /// Optimizer steps, and their time, ns.
    pub steps: Total,
    /// What went through the model in them.
    pub volume: Volume,
    /// The first spans, in the order in which they ended.
    pub events: Vec<Event>,
    /// Spans beyond those.
    pub events_left_out: u64,
}

/// Name of the stretch whose ops are summed.
const STEP: &str = "step";

impl Profile {
    /// Time by op class, over the steps that were recorded; the first counts only while there is no other.
    pub fn classes(&self) -> Vec<ClassTime> {
        let is_alone = self.steps.calls <= 1;
        let mut all: BTreeMap<Class, u64> = BTreeMap::new();
        for (key, total) in &self.totals {
            let first = self.first.get(key).filter(|_| !is_alone).map_or(0, |first| first.own_ns);
            *all.entry(key.0.class()).or_default() += total.own_ns - first;
        }
        let steps = if is_alone { self.steps.calls } else { self.steps.calls - 1 };
        all.into_iter().map(|(class, ns)| ClassTime { class, steps, measured_s: ns as f64 / 1e9 }).collect()
    }
}

struct Recorder {
    began: Instant,
    /// An op is over when this is done with it.
    device: Device,
    /// `None` outside optimizer steps and passes: evaluation and generation are in the trace alone.
    pass: Option<Pass>,
    open: Vec<Open>,
    profile: Profile,
}

struct Open {
    label: Label,
    start_ns: u64,
    inner_ns: u64,
    pass_outside: Option<Pass>,
}

/// Open until it is dropped, on the thread that opened it.
#[must_use = "the span ends when this is dropped"]
pub struct Span {
    recorded: bool,
    thread: PhantomData<*const ()>,
}

/// Begins to record this thread's spans. A GPU is waited for at the end of each op, which makes the run slower: it works
/// behind the calls that queue its work.
pub fn start(device: &Device) {
    let recorder = Recorder {
        began: Instant::now(),
        device: device.clone(),
        pass: None,
        open: Vec::new(),
        profile: Profile::default(),
    };
    let before = RECORDER.with_borrow_mut(|slot| slot.replace(recorder));
    if before.is_none() {
        RECORDING.fetch_add(1, Ordering::Relaxed);
    }
}

/// Ends it; `None` where nothing was started.
pub fn finish() -> Option<Profile> {
    let recorder = RECORDER.with_borrow_mut(Option::take)?;
    RECORDING.fetch_sub(1, Ordering::Relaxed);
    Some(recorder.profile)
}

/// An op in the pass that is going on.
pub fn op(site: Site) -> Span {
    open(|pass| (Label::Op(site, pass.unwrap_or(Pass::Forward)), pass))
}

/// The gradient norm or the update of the weights.
pub fn update() -> Span {
    open(|_| (Label::Op(Site::Update, Pass::Update), Some(Pass::Update)))
}

/// A whole pass; ops inside belong to it.
pub fn pass(pass: Pass) -> Span {
    open(|_| (Label::Stretch(pass.name()), Some(pass)))
}

/// A block of the decoder in a pass; ops inside belong to it.
pub fn block(pass: Pass, index: usize) -> Span {
    open(|_| (Label::Block(pass, index), Some(pass)))
}

/// An optimizer step: what happens in it is summed.
pub fn step() -> Span {
    stretch(STEP)
}

/// Anything else that shall be seen in the trace.
pub fn stretch(name: &'static str) -> Span {
    open(|pass| (Label::Stretch(name), pass))
}

/// A micro-batch goes through the model.
pub fn count(batch: &Batch) {
    if RECORDING.load(Ordering::Relaxed) == 0 {
        return;
    }
    RECORDER.with_borrow_mut(|slot| {
        if let Some(recorder) = slot {
            let volume = &mut recorder.profile.volume;
            volume.tokens += batch.tokens() as f64;
            volume.targets += batch.targets.len() as f64;
            volume.squares += batch.segments.iter().map(|s| (s.len() as f64).powi(2)).sum::<f64>();
            volume.calls += 1.0;
        }
    });
}

fn open(label: impl FnOnce(Option<Pass>) -> (Label, Option<Pass>)) -> Span {
    let mut recorded = false;
    if RECORDING.load(Ordering::Relaxed) > 0 {
        RECORDER.with_borrow_mut(|slot| {
            let Some(recorder) = slot else { return };
            let (label, pass) = label(recorder.pass);
            let start_ns = recorder.now();
            let pass_outside = std::mem::replace(&mut recorder.pass, pass);
            recorder.open.push(Open { label, start_ns, inner_ns: 0, pass_outside });
            recorded = true;
        });
    }
    Span { recorded, thread: PhantomData }
}

impl Drop for Span {
    fn drop(&mut self) {
        if self.recorded {
            RECORDER.with_borrow_mut(|slot| {
                if let Some(recorder) = slot {
                    recorder.close();
                }
            });
        }
    }
}

impl Recorder {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn close(&mut self) {
        let Some(open) = self.open.pop() else { return };
        if matches!(open.label, Label::Op(..)) {
            // What a GPU fails in is said where its values are read.
            let _ = self.device.synchronize();
        }
        let end_ns = self.now();
        let duration_ns = end_ns.saturating_sub(open.start_ns);
        if let Some(outer) = self.open.last_mut() {
            outer.inner_ns += duration_ns;
        }
        self.pass = open.pass_outside;
        let in_step = || self.open.iter().any(|o| o.label == Label::Stretch(STEP));
        let own_ns = duration_ns.saturating_sub(open.inner_ns);
        match open.label {
            Label::Op(site, pass) if in_step() => {
                let total = self.profile.totals.entry((site, pass)).or_default();
                total.calls += 1;
                total.own_ns += own_ns;
            }
            Label::Stretch(STEP) => {
                self.profile.steps.calls += 1;
                self.profile.steps.own_ns += duration_ns;
                if self.profile.steps.calls == 1 {
                    self.profile.first.clone_from(&self.profile.totals);
                }
            }
            _ => {}
        }
        if self.profile.events.len() < MOST_EVENTS {
            self.profile.events.push(Event { label: open.label, start_ns: open.start_ns, duration_ns });
        } else {
            self.profile.events_left_out += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;
    use std::time::Duration;

    const MOMENT: Duration = Duration::from_millis(2);

    #[test]
    fn ops_are_summed_by_pass_and_only_inside_steps() {
        start(&Device::Cpu);
        drop(op(Site::Norm));
        {
            let _step = step();
            let _forward = pass(Pass::Forward);
            {
                let _block = block(Pass::Backward, 3);
                let _again = block(Pass::Recompute, 3);
                drop(op(Site::Down));
            }
            drop(op(Site::Down));
            drop(op(Site::Down));
            drop(update());
        }
        let profile = finish().unwrap();
        let calls: Vec<_> = profile.totals.iter().map(|(&(_, pass), total)| (pass, total.calls)).collect();
        assert_eq!(calls, [(Pass::Forward, 2), (Pass::Recompute, 1), (Pass::Update, 1)]);
        assert_eq!((profile.steps.calls, profile.events.len()), (1, 9));
    }

    #[test]
    fn time_inside_an_inner_span_is_not_counted_twice() {
        start(&Device::Cpu);
        {
            let _step = step();
            let _outer = op(Site::Head);
            sleep(MOMENT);
            let _inner = op(Site::Norm);
            sleep(MOMENT);
        }
        let profile = finish().unwrap();
        let own: u64 = profile.totals.values().map(|t| t.own_ns).sum();
        assert!(own <= profile.steps.own_ns, "{own} of {}", profile.steps.own_ns);
        assert!(profile.totals.values().all(|t| t.own_ns >= 2_000_000));
    }

    #[test]
    fn a_class_is_timed_behind_the_first_step() {
        let one = |steps: &[u32]| {
            start(&Device::Cpu);
            for &moments in steps {
                let _step = step();
                let _op = op(Site::Head);
                sleep(moments * MOMENT);
            }
            let profile = finish().unwrap();
            (profile.classes()[0], profile.steps.own_ns as f64 / 1e9)
        };
        let (alone, _) = one(&[1]);
        assert!(alone.steps == 1 && alone.measured_s >= 2e-3, "{alone:?}");
        let (behind, all_s) = one(&[50, 1, 1]);
        assert!(behind.steps == 2 && behind.measured_s >= 4e-3, "{behind:?}");
        assert!(behind.measured_s <= all_s - 0.1, "the first step took 100 ms: {behind:?} of {all_s}");
    }

    #[test]
    fn nothing_is_recorded_on_threads_that_did_not_ask() {
        start(&Device::Cpu);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                drop(step());
                assert_eq!(finish(), None);
            });
        });
        assert_eq!(finish().unwrap().events, []);
        assert_eq!(finish(), None);
    }

    #[test]
    fn what_went_through_the_model_is_counted_by_segments() {
        let sample = |n: usize| crate::data::Sample { ids: vec![1; n], labels: vec![1; n] };
        start(&Device::Cpu);
        count(&Batch::new([&sample(3), &sample(5)], 0));
        let volume = finish().unwrap().volume;
        assert_eq!(volume, Volume { tokens: 8.0, targets: 6.0, squares: 34.0, calls: 1.0 });
    }
}
