//! `fttrain calibrate [CONFIG…]`

use super::{say, warn};
use crate::calibrate::{self, Computer};
use crate::config::Device;
use crate::error::Result;
use crate::estimate::machine::Kind;
use crate::estimate::{Counts, Machine};
use crate::fs;
use crate::ops::device;
use crate::report::json;
use crate::report::profile_table;
use crate::train::ground::{Ground, start_threads};
use crate::train::material::counted;
use crate::train::screen::Screen;
use clap::Args;
use fttrain_kernels::sys::cuda::{Card, card};
use std::path::PathBuf;

/// Arguments of `calibrate`.
#[derive(Args)]
pub(super) struct CalibrateArgs {
    /// Configs whose own shapes are measured too.
    configs: Vec<PathBuf>,
    /// Measure only this: cpu, cuda or cuda:N; by default the CPU, and a GPU where there is one.
    #[arg(long)]
    device: Option<Device>,
    /// Worker threads; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
    /// Print JSON: a profile, of a CPU and a GPU a list of both.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CalibrateArgs) -> Result<u8> {
    // Before anything is measured: it may not be there, or not open.
    let wanted = device::chosen(args.device.unwrap_or(Device::Auto), 0)?;
    let gpu = match wanted.map(open).transpose() {
        Err(error) if args.device.is_none() => {
            say(&format!("warning: {error}; only the CPU is measured"));
            None
        }
        opened => opened?,
    };
    let threads = start_threads(args.threads)?;
    let grounds = args.configs.iter().map(|path| ground(path)).collect::<Result<Vec<_>>>()?;
    let mut machines = Vec::new();
    // First: the host's figures are a GPU's, too.
    if gpu.is_none() || args.device.is_none() {
        machines.push(one(&Computer::cores(threads), Kind::Cpu, &grounds)?);
    }
    if let Some((nth, card, opened)) = gpu {
        machines.push(one(&Computer::gpu(nth, card, &opened, threads), Kind::Accelerator, &grounds)?);
    }
    if args.json {
        super::print(&match &machines[..] {
            [machine] => json::to_text(machine)?,
            all => json::to_text(&all)?,
        });
    } else {
        let tables = machines.iter().map(|machine| profile_table::profile_table(machine, Screen::stdout()));
        super::print(&tables.collect::<Vec<_>>().join("\n"));
    }
    Ok(0)
}

fn open(nth: usize) -> Result<(usize, Card, candle_core::Device), device::Error> {
    let opened = device::open(Some(nth))?;
    let card = card(nth).ok_or_else(|| device::Error::Refused { wanted: nth, cause: UNKNOWN.into() })?;
    Ok((nth, card, opened))
}

const UNKNOWN: &str = "the driver does not say what it is";

fn one(computer: &Computer, kind: Kind, grounds: &[(Ground, Counts)]) -> Result<Machine> {
    let asks: Vec<_> =
        grounds.iter().map(|(ground, counts)| (ground.ask(counts, kind), ground.adapter.as_ref())).collect();
    let what = if kind == Kind::Cpu { "the CPU" } else { "the GPU" };
    let mut last = 0;
    calibrate::calibrate(&asks, computer, &fs::home()?, &mut |done, all| {
        let tenth = 10 * done / all.max(1);
        if tenth > last {
            last = tenth;
            say(&format!("calibrating {what}: {} % of the grid", 10 * tenth));
        }
    })
}

fn ground(path: &std::path::Path) -> Result<(Ground, Counts)> {
    let resolved = crate::config::load(path, None, &[])?;
    warn(&resolved.warnings);
    let ground = Ground::lay(resolved)?;
    let (counts, _) = counted(&ground)?;
    Ok((ground, counts))
}
