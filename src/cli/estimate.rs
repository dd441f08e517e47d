//! `fttrain estimate CONFIG`

use super::SetArgs;
use super::train::{plan_of, verdict};
use crate::error::{Error, Kind, Result};
use crate::estimate::Counts;
use crate::report::estimate_table;
use crate::train::plan::{Ground, counted, unavailable};
use crate::train::screen::Screen;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `estimate`.
#[derive(Args)]
pub(super) struct EstimateArgs {
    /// The run's config.
    config: PathBuf,
    /// Rows of a dataset that is not there yet.
    #[arg(long, requires = "tokens_per_row")]
    rows: Option<u64>,
    /// Tokens of each of its rows.
    #[arg(long, requires = "rows")]
    tokens_per_row: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    set: SetArgs,
}

pub(super) fn run(args: &EstimateArgs) -> Result<u8> {
    let resolved = crate::config::load(&args.config, None, &args.set.pairs()?)?;
    let ground = Ground::lay(resolved)?;
    let (counts, data) = if let (Some(rows), Some(tokens)) = (args.rows, args.tokens_per_row) {
        (Counts::uniform(rows, tokens, &ground.resolved.config), None)
    } else {
        let (counts, summary) = counted(&ground)?;
        (counts, Some(summary))
    };
    let (machine, warning) = ground.machine(&counts)?;
    let mut prediction = ground.predict(&counts, &machine, &[]);
    prediction.warnings.extend(warning);
    prediction.warnings.extend(unavailable(&ground.resolved.config).map(|error| error.to_string()));
    if args.json {
        let text =
            serde_json::to_string_pretty(&prediction).map_err(|e| Error::new(Kind::Bug, e.to_string()))?;
        super::print(&format!("{text}\n"));
        return Ok(0);
    }
    let mut plan = plan_of(&ground, &prediction, data.as_ref());
    match verdict(&ground, &prediction) {
        Ok(warnings) => plan.warnings.extend(warnings),
        Err(error) => plan.warnings.push(error.to_string()),
    }
    super::print(&estimate_table(&plan, Screen::stdout()));
    Ok(0)
}
