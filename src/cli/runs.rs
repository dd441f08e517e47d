//! `fttrain runs`: the list, one run, two runs, and where the money went.

use crate::error::Result;
use crate::fs;
use crate::ledger::{Ledger, RunRow};
use crate::report::json;
use crate::report::runs::accuracy::Accuracy;
use crate::report::runs::compare::Comparison;
use crate::report::runs::show::Shown;
use crate::report::runs::spend::Spend;
use crate::report::runs::{self, Filter};
use crate::train::screen::Screen;
use clap::{Args, Subcommand};

/// `fttrain runs`
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct RunsArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// What the estimates were worth: errors by quantity, machine and method, and how they developed.
    #[arg(long)]
    accuracy: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    verb: Option<RunsVerb>,
}

/// Which runs.
#[derive(Args)]
struct FilterArgs {
    /// Only runs that are running, done, stopped, failed, diverged or killed; may be given more than once.
    #[arg(long)]
    status: Vec<String>,
    /// Only runs that started then or later: 2025-11-02, 7d, 12h.
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// Only runs of this project.
    #[arg(long)]
    project: Option<String>,
    /// Only runs of this purpose.
    #[arg(long)]
    purpose: Option<String>,
    /// Only lora, qlora or full.
    #[arg(long)]
    method: Option<String>,
}

#[derive(Subcommand)]
enum RunsVerb {
    /// One run in full, also one that was killed.
    Show {
        /// A run's id or its folder.
        run: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Two runs side by side: settings, cost, losses.
    Compare {
        /// A run's id or its folder.
        a: String,
        /// Another.
        b: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Where the money went: by project, purpose and status, on failures and on repeats.
    Spend {
        #[command(flatten)]
        filter: FilterArgs,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(args: &RunsArgs) -> Result<u8> {
    let ledger = Ledger::open(&fs::home()?)?;
    let screen = Screen::stdout();
    let text = match &args.verb {
        None if args.accuracy => {
            let rows = args.filter.rows(&ledger)?;
            let mut outcomes = ledger.history(u32::MAX)?;
            outcomes.retain(|outcome| rows.iter().any(|row| row.run_id == outcome.run_id));
            let found = Accuracy::of(&outcomes);
            if args.json { json::to_text(&found)? } else { found.terminal(screen) }
        }
        None => {
            let rows = args.filter.rows(&ledger)?;
            if args.json { json::to_text(&rows)? } else { runs::terminal(&rows, screen) }
        }
        Some(RunsVerb::Show { run, json }) => {
            let shown = show(&ledger, run)?;
            if *json { json::to_text(&shown)? } else { shown.terminal(screen) }
        }
        Some(RunsVerb::Compare { a, b, json }) => {
            let found = Comparison::of(&ledger, [show(&ledger, a)?, show(&ledger, b)?])?;
            if *json { json::to_text(&found)? } else { found.terminal(screen) }
        }
        Some(RunsVerb::Spend { filter, json }) => {
            let spend = Spend::of(&filter.rows(&ledger)?);
            if *json { json::to_text(&spend)? } else { spend.terminal(screen) }
        }
    };
    super::print(&text);
    Ok(0)
}

fn show(ledger: &Ledger, run: &str) -> Result<Shown> {
    let row = ledger.find(run)?;
    let details = ledger.details(&row.run_id)?;
    Ok(Shown::new(row, details))
}

impl FilterArgs {
    fn rows(&self, ledger: &Ledger) -> Result<Vec<RunRow>> {
        let now = jiff::Timestamp::now();
        let filter = Filter {
            status: self.status.iter().map(|word| runs::status(word)).collect::<Result<_>>()?,
            since: self.since.as_deref().map(|text| runs::moment(text, now)).transpose()?,
            project: self.project.clone(),
            purpose: self.purpose.clone(),
            method: self.method.clone(),
        };
        let mut rows = ledger.runs()?;
        rows.retain(|run| filter.keeps(run));
        Ok(rows)
    }
}
