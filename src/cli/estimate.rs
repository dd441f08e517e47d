//! `fttrain estimate CONFIG`

use super::SetArgs;
use super::train::{plan_of, verdict};
use crate::calibrate::Profiles;
use crate::error::Result;
use crate::estimate::Counts;
use crate::estimate::machines::{Candidate, Market};
use crate::fs;
use crate::ops::device;
use crate::report::estimate_table;
use crate::report::json;
use crate::report::machines_table::{self, MachineRow};
use crate::train::ground::{Ground, Spot};
use crate::train::material::counted;
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
    /// Predict for other machines: rows of the price table, accelerators, measured profiles, `here`, or `all`.
    #[arg(long, value_name = "MACHINE", num_args = 1.., value_delimiter = ',')]
    on: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    set: SetArgs,
}

pub(super) fn run(args: &EstimateArgs) -> Result<u8> {
    let resolved = crate::config::load(&args.config, None, &args.set.pairs()?)?;
    let mut ground = Ground::lay(resolved)?;
    let (counts, data) = if let (Some(rows), Some(tokens)) = (args.rows, args.tokens_per_row) {
        (Counts::uniform(rows, tokens, &ground.resolved.config), None)
    } else {
        let (counts, summary) = counted(&ground)?;
        (counts, Some(summary))
    };
    if !args.on.is_empty() {
        return elsewhere(&ground, &counts, args);
    }
    let gpu = device::chosen(ground.resolved.config.train.device, 0);
    let wanted = gpu.as_ref().ok().copied().flatten();
    let (machine, limits, warning) = ground.computer(&counts, wanted)?;
    ground.limits = limits;
    // The run will be another process, which finds the machine measured.
    let spot = Spot { machine: &machine, limits: &ground.limits, price: &ground.price };
    let mut prediction = ground.predict_on(&counts, spot, &ground.learned(&machine));
    prediction.warnings.extend(warning);
    prediction.warnings.extend(gpu.err().map(|error| error.to_string()));
    if args.json {
        super::print(&json::to_text(&prediction)?);
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

/// Where this machine is meant by a name that needs no profile.
const HERE: &str = "here";

/// The same run on the machines that were asked for.
fn elsewhere(ground: &Ground, counts: &Counts, args: &EstimateArgs) -> Result<u8> {
    let (profiles, warning) = Profiles::load(&fs::home()?.join(Profiles::FILE));
    let measured = profiles.machines().iter().map(|m| (m.clone(), ground.limits.clone())).collect();
    let market = Market::open(measured, jiff::Zoned::now().date())?;
    let mut rows: Vec<MachineRow> = Vec::new();
    for name in &args.on {
        let found = if name == HERE { vec![here(ground, counts)?] } else { market.find(name)? };
        for Candidate { name, machine, limits, price, note } in found {
            let spot = Spot { machine: &machine, limits: &limits, price: &price };
            let prediction = ground.predict_on(counts, spot, &ground.learned(&machine));
            rows.push(MachineRow::new(name, note, prediction));
        }
    }
    machines_table::rank(&mut rows);
    if let Some(warning) = warning {
        super::say(&format!("warning: {warning}"));
    }
    super::print(&if args.json {
        machines_table::json(&rows)?
    } else {
        machines_table::machines_table(&rows, Screen::stdout())
    });
    Ok(0)
}

/// This machine, at the price that the config states.
fn here(ground: &Ground, counts: &Counts) -> Result<Candidate> {
    Ok(Candidate {
        name: HERE.into(),
        machine: ground.machine(counts)?.0,
        limits: ground.limits.clone(),
        price: ground.price.clone(),
        note: None,
    })
}
