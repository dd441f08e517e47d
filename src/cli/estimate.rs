//! `fttrain estimate CONFIG`

use super::train::{plan_of, verdict};
use super::{MethodArgs, SetArgs};
use crate::calibrate::Profiles;
use crate::error::Result;
use crate::estimate::machine::Kind;
use crate::estimate::machines::{self, Candidate, Market};
use crate::estimate::{Counts, Limits, Machine};
use crate::fs;
use crate::report::estimate_table;
use crate::report::json;
use crate::report::machines_table::{self, MachineRow};
use crate::train::ground::{Ground, Spot};
use crate::train::material::counted;
use crate::train::screen::Screen;
use clap::Args;
use fttrain_kernels::sys::cuda::{card, gpus};
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
    method: MethodArgs,
    #[command(flatten)]
    set: SetArgs,
}

pub(super) fn run(args: &EstimateArgs) -> Result<u8> {
    let resolved = crate::config::load(&args.config, args.method.flag(), &args.set.pairs()?)?;
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
    let (machine, limits, notes) = ground.ahead(&counts)?;
    ground.limits = limits;
    // The run will be another process, which finds the machine measured.
    let spot = Spot { machine: &machine, limits: &ground.limits, price: &ground.price };
    let mut prediction = ground.predict_on(&counts, spot, &ground.learned(&machine));
    prediction.warnings.extend(notes);
    prediction.warnings.extend(ground.resolved.warnings.iter().cloned());
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
    let measured: Vec<_> = profiles
        .machines()
        .iter()
        .filter_map(|machine| Some(limits_of(machine, ground).transpose()?.map(|l| (machine.clone(), l))))
        .collect::<Result<_>>()?;
    let config = &ground.resolved.config;
    let market = Market::open(&config.cost, measured, jiff::Zoned::now().date())?;
    let mut rows: Vec<MachineRow> = Vec::new();
    for name in &args.on {
        let found = if name == HERE { vec![here(ground, counts)?] } else { market.find(name)? };
        for Candidate { name, machine, limits, price, note, lacks } in found {
            let spot = Spot { machine: &machine, limits: &limits, price: &price };
            let prediction = ground.predict_on(counts, spot, &ground.learned(&machine));
            let is_gpu = machine.kind == Kind::Accelerator;
            let beyond = ground.beyond_gpus().filter(|_| is_gpu);
            let lacks = lacks.or_else(|| beyond.map(|what| format!("{what} does not run on a GPU yet")));
            rows.push(MachineRow::new(name, note, lacks, prediction));
        }
    }
    machines_table::rank(&mut rows);
    super::warn(warning.iter().chain(&ground.resolved.warnings));
    super::print(&if args.json {
        machines_table::json(&rows)?
    } else {
        machines_table::machines_table(&rows, Screen::stdout())
    });
    Ok(0)
}

/// What a run may take of a machine that was measured here; `None` of a card that is gone, and whose memory no sheet states.
fn limits_of(machine: &Machine, ground: &Ground) -> Result<Option<Limits>> {
    if machine.kind == Kind::Cpu {
        return Ok(Some(ground.limits.clone()));
    }
    let mut cards = (0..gpus().unwrap_or(0)).filter_map(card);
    let bytes = match cards.find(|card| card.name == machine.name) {
        Some(card) => Some(card.bytes),
        None => machines::bytes_of_card(&machine.name)?,
    };
    bytes.map(|bytes| machines::limits_of_card(&machine.name, bytes)).transpose()
}

/// This machine with the GPU that the config chooses, at the price that the config states.
fn here(ground: &Ground, counts: &Counts) -> Result<Candidate> {
    let (machine, limits, notes) = ground.ahead(counts)?;
    let note = (!notes.is_empty()).then(|| notes.join("; "));
    Ok(Candidate { name: HERE.into(), machine, limits, price: ground.price.clone(), note, lacks: None })
}
