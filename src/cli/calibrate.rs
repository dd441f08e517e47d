//! `fttrain calibrate [CONFIG…]`

use super::say;
use crate::calibrate;
use crate::error::Result;
use crate::estimate::Counts;
use crate::fs;
use crate::report::json;
use crate::report::profile_table;
use crate::train::ground::{Ground, start_threads};
use crate::train::material::counted;
use crate::train::screen::Screen;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `calibrate`.
#[derive(Args)]
pub(super) struct CalibrateArgs {
    /// Configs whose own shapes are measured too.
    configs: Vec<PathBuf>,
    /// Worker threads; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CalibrateArgs) -> Result<u8> {
    let threads = start_threads(args.threads)?;
    let grounds = args.configs.iter().map(|path| ground(path)).collect::<Result<Vec<_>>>()?;
    let asks: Vec<_> =
        grounds.iter().map(|(ground, counts)| (ground.ask(counts), ground.adapter.as_ref())).collect();
    let mut last = 0;
    let machine = calibrate::calibrate(&asks, threads, &fs::home()?, &mut |done, all| {
        let tenth = 10 * done / all.max(1);
        if tenth > last {
            last = tenth;
            say(&format!("calibrating: {} % of the grid", 10 * tenth));
        }
    })?;
    if args.json {
        super::print(&json::to_text(&machine)?);
    } else {
        super::print(&profile_table::profile_table(&machine, Screen::stdout()));
    }
    Ok(0)
}

fn ground(path: &std::path::Path) -> Result<(Ground, Counts)> {
    let ground = Ground::lay(crate::config::load(path, None, &[])?)?;
    let (counts, _) = counted(&ground)?;
    Ok((ground, counts))
}
