//! What another program's processes take, all of them: the children of this process and whatever they start. Processes
//! that end between two looks are counted through their parents, who wait for them.

use super::probe::{Closing, Probe, Reading};
use super::process::{Surroundings, Used, thread_cpu_s};
use super::procfs::{self, Kept, Newest, Stat};
use nix::sys::resource::UsageWho;
use nix::unistd::{SysconfVar, sysconf};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Between two searches for new processes where none seems to have been started.
const SEARCH: Duration = Duration::from_secs(1);
/// Share of a core that searches may take: what is not found is not metered.
const SEARCHING: f64 = 0.002;
/// Share of a core that dear figures may take.
const DEAR: f64 = 0.001;
/// A rise of the memory that is worth another look at the dear figures.
const RISE: f64 = 1.03;

/// Probe of the processes that this one has started, and of theirs.
pub struct TreeProbe {
    surroundings: Surroundings,
    known: HashMap<u32, Process>,
    search: Pace,
    /// The process that the system started last, and which it was at the last search.
    newest: Newest,
    newest_searched: Option<u32>,
    /// How this process was called.
    own_call: Option<Vec<u8>>,
    dear: Pace,
    rss_at_dear: u64,
    most: u64,
    left: usize,
    largest: Option<u64>,
    before: Option<Used>,
    page_bytes: u64,
    ticks_per_s: f64,
}

struct Process {
    stat: Kept,
    /// Threads at the last look.
    threads: u64,
    /// Bytes read from and written to disks, when it was last asked.
    disk: (u64, u64),
}

/// When something was done last, and from when its cost allows it again.
struct Pace {
    /// Of a core, in the mean.
    share: f64,
    last: Option<Instant>,
    free_from: Instant,
}

impl Pace {
    fn new(share: f64) -> Self {
        Self { share, last: None, free_from: Instant::now() }
    }

    fn is_due(&self, is_wanted: bool) -> bool {
        let has_waited = self.last.is_none_or(|at| at.elapsed() >= SEARCH);
        (is_wanted || has_waited) && Instant::now() >= self.free_from
    }

    fn done(&mut self, cpu_before_s: Option<f64>) {
        let cost_s = thread_cpu_s().zip(cpu_before_s).map_or(0.0, |(now, before)| now - before);
        let now = Instant::now();
        self.last = Some(now);
        self.free_from = now + Duration::from_secs_f64((cost_s / self.share).clamp(0.0, 60.0));
    }
}

impl TreeProbe {
    /// Of processes that are yet to be started; asked every `interval`.
    pub fn new(interval: Duration) -> Self {
        let system = |what, otherwise: i64| sysconf(what).ok().flatten().unwrap_or(otherwise);
        let newest = Newest::open();
        Self {
            surroundings: Surroundings::open(interval),
            known: HashMap::new(),
            // Nothing is there to be found yet, and a search that finds nothing would delay the one that does.
            search: Pace { last: Some(Instant::now()), ..Pace::new(SEARCHING) },
            newest_searched: newest.read(),
            newest,
            own_call: procfs::call(std::process::id()),
            dear: Pace::new(DEAR),
            rss_at_dear: 0,
            most: 0,
            left: 0,
            largest: None,
            before: Used::of(UsageWho::RUSAGE_CHILDREN),
            page_bytes: u64::try_from(system(SysconfVar::PAGE_SIZE, 4096)).unwrap_or(4096),
            ticks_per_s: system(SysconfVar::CLK_TCK, 100) as f64,
        }
    }

    /// Looks for processes that are not known yet: soon where the system has started any.
    fn search(&mut self) {
        let newest = self.newest.read();
        if !self.search.is_due(newest.is_none() || newest != self.newest_searched) {
            return;
        }
        let cpu_before_s = thread_cpu_s();
        self.newest_searched = newest;
        let here = procfs::children(std::process::id(), None);
        let parents = if here.is_some() { None } else { Some(procfs::all_parents()) };
        let of = |pid: u32, threads: Option<u64>| match &parents {
            None => procfs::children(pid, threads).unwrap_or_default(),
            Some(all) => all.iter().filter(|(_, parent)| *parent == pid).map(|(pid, _)| *pid).collect(),
        };
        let mut open = here.unwrap_or_else(|| of(std::process::id(), None));
        while let Some(pid) = open.pop() {
            if !self.known.contains_key(&pid) && self.own_call.is_some() && procfs::call(pid) == self.own_call
            {
                // It has not become its program yet, and its memory is still this process's: look again soon.
                self.newest_searched = None;
            } else if !self.known.contains_key(&pid)
                && let Some(stat) = procfs::stat_file(pid)
            {
                let threads = stat.read(Stat::parse).map_or(0, |stat| stat.threads);
                self.known.insert(pid, Process { stat, threads, disk: (0, 0) });
            }
            // A process is nobody's child twice, so this ends.
            open.extend(of(pid, self.known.get(&pid).map(|process| process.threads)));
        }
        self.search.done(cpu_before_s);
    }

    /// The processes that live, as they are now.
    fn living(&mut self) -> Vec<(u32, Stat)> {
        let mut living: Vec<(u32, Stat)> = Vec::with_capacity(self.known.len());
        self.known.retain(|pid, process| {
            let Some(stat) = process.stat.read(Stat::parse) else { return false };
            process.threads = stat.threads;
            living.push((*pid, stat));
            true
        });
        self.left = living.len();
        self.most = self.most.max(u64::try_from(living.len()).unwrap_or(u64::MAX));
        living
    }

    /// Figures that take more than a number from a file, some of them a walk through page tables: once a second, and
    /// where memory rises.
    fn dear(&mut self, living: &[(u32, Stat)], rss_bytes: u64) -> Option<u64> {
        if !self.dear.is_due(rss_bytes as f64 > RISE * self.rss_at_dear as f64) {
            return None;
        }
        let cpu_before_s = thread_cpu_s();
        for (pid, process) in &mut self.known {
            self.largest = self.largest.max(procfs::peak_rss(*pid));
            process.disk = procfs::disk_bytes(*pid).unwrap_or(process.disk);
        }
        let pss = (living.len() > 1).then(|| living.iter().map(|(pid, _)| procfs::pss(*pid)).sum()).flatten();
        self.rss_at_dear = rss_bytes;
        self.dear.done(cpu_before_s);
        pss
    }
}

impl Probe for TreeProbe {
    fn sample(&mut self) -> Reading {
        self.search();
        let living = self.living();
        let pages: u64 = living.iter().map(|(_, s)| s.rss_pages).sum();
        let rss_bytes = pages.saturating_mul(self.page_bytes);
        let pss_bytes = self.dear(&living, rss_bytes);
        let ended = Used::of(UsageWho::RUSAGE_CHILDREN).zip(self.before);
        let ticks: u64 = living.iter().map(|(_, s)| s.ticks).sum();
        let faults: u64 = living.iter().map(|(_, s)| s.major_faults).sum();
        let disk =
            self.known.values().fold((0, 0), |sum: (u64, u64), p| (sum.0 + p.disk.0, sum.1 + p.disk.1));
        // A child begins as this process, whose peak until then is none of its own; the peak never falls.
        let own = Used::of(UsageWho::RUSAGE_SELF).map_or(u64::MAX, |own| own.peak_rss_bytes);
        let waited = ended.map(|(now, _)| now.peak_rss_bytes).filter(|&peak| peak > own);
        self.largest = self.largest.max(waited);
        let mut reading = Reading {
            cpu_s: ended.map(|(now, before)| now.cpu_s - before.cpu_s + ticks as f64 / self.ticks_per_s),
            major_faults: ended.map(|(now, before)| now.major_faults - before.major_faults + faults),
            read_bytes: ended.map(|(now, before)| now.read_bytes - before.read_bytes + disk.0),
            write_bytes: ended.map(|(now, before)| now.write_bytes - before.write_bytes + disk.1),
            rss_bytes: Some(rss_bytes),
            peak_rss_bytes: self.largest,
            pss_bytes,
            ..Reading::default()
        };
        let own: Vec<u32> = living.iter().map(|(pid, _)| *pid).collect();
        self.surroundings.read(&own, &mut reading);
        reading
    }

    fn close(&mut self) -> Closing {
        let mut closing = self.surroundings.close(self.most);
        if self.left > 0 {
            let left = self.left;
            closing.warnings.push(format!(
                "{left} processes of the command go on: what they take from here is not metered"
            ));
        }
        closing
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::meter::{Measured, Meter, Phase};
    use std::process::Command;

    /// Meters a shell script in a process of its own, for the children of a test program are those of all its tests.
    fn meter(script: &str) -> Measured {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "meter::tree::tests::case_in_a_process_of_its_own", "--nocapture"])
            .env("FTTRAIN_TREE_CASE", script)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let json =
            text.lines().find_map(|l| l.strip_prefix("measured: ")).unwrap_or_else(|| panic!("{text}"));
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn case_in_a_process_of_its_own() {
        let Ok(script) = std::env::var("FTTRAIN_TREE_CASE") else {
            return;
        };
        let probe = TreeProbe::new(Meter::INTERVAL);
        let meter = Meter::start(Box::new(probe), Duration::from_millis(20), Phase::Command);
        // What an estimate of the command leaves in this process.
        let ballast = std::hint::black_box(vec![1u8; 100_000_000]);
        drop(ballast);
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
        println!("\nmeasured: {}", serde_json::to_string(&meter.finish()).unwrap());
    }

    /// Fills a shell variable with so many million bytes, and keeps it for a while.
    fn hold(millions: u32, seconds: &str) -> String {
        format!("x=$(head -c {millions}000000 /dev/zero | tr '\\0' a); sleep {seconds}; test -n \"$x\"")
    }

    #[test]
    fn a_tree_is_metered_with_children_that_came_and_went() {
        // Eight loops of their own, each shorter than a look may be.
        let measured = meter(
            "for i in 1 2 3 4 5 6 7 8; do sh -c 'i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done'; done",
        );
        let cpu = measured.cpu_s.unwrap();
        assert!(cpu > 0.05 && cpu <= measured.wall_s * 1.5, "{cpu} of {}", measured.wall_s);
        let phases: Vec<&str> = measured.phases.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(phases, ["command"]);
    }

    #[test]
    fn what_this_process_holds_is_not_its_childrens() {
        let largest = meter("sleep 0.3").largest_process_bytes.unwrap();
        assert!(largest < 50_000_000, "{largest}");
    }

    #[test]
    fn the_memory_of_two_processes_is_their_sum() {
        let one = hold(20, "2");
        let both = meter(&format!("sh -c '{one}' & sh -c '{one}'; wait", one = one.replace('\'', "'\\''")));
        assert!(both.processes >= 3, "{}", both.processes);
        let sum = both.peak_tree_bytes.unwrap();
        assert!((40_000_000..120_000_000).contains(&sum), "{sum}");
        assert_eq!(both.peak_rss_bytes, Some(sum));
    }
}
