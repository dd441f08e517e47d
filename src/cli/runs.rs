//! `fttrain runs`

use crate::error::Result;
use crate::fs;
use crate::ledger::Ledger;
use crate::report::runs::{self, Row};
use crate::train::screen::Screen;

pub(super) fn run(json: bool) -> Result<u8> {
    let rows: Vec<Row> = Ledger::open(&fs::home()?)?.runs()?.into_iter().map(row).collect();
    super::print(&if json { runs::json(&rows)? } else { runs::terminal(&rows, Screen::stdout()) });
    Ok(0)
}

fn row(run: crate::ledger::RunRow) -> Row {
    Row {
        run_id: run.run_id,
        status: run.status.as_str().into(),
        wall_s: run.wall_s,
        cost_usd: run.cost_usd,
        loss: run.loss,
        output_dir: run.output_dir,
        started_at: run.started_at,
    }
}
