//! `fttrain pilot CONFIG`

use super::{MethodArgs, SetArgs, say};
use crate::error::Result;
use crate::fs;
use crate::report::json;
use crate::report::pilot_table::{Foretold, pilot_table};
use crate::report::words;
use crate::study::pilot::{Asked, Pilot, pilot};
use crate::train::screen::Screen;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `pilot`.
#[derive(Args)]
pub(super) struct PilotArgs {
    /// The whole run's config.
    config: PathBuf,
    /// Pilot a smaller model of the same family, and carry its efficiencies over.
    #[arg(long, value_name = "SMALLER")]
    model: Option<String>,
    /// Steps of the pilot; by default a twentieth of the run, twelve at least.
    #[arg(long)]
    steps: Option<u64>,
    /// The folder of the pilot; a new one in the home folder by default.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    set: SetArgs,
}

pub(super) fn run(args: &PilotArgs) -> Result<u8> {
    let home = fs::home()?;
    let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let folder = args.out.clone().unwrap_or_else(|| home.join("pilots").join(stamp));
    let asked = Asked {
        config: &args.config,
        method: args.method.flag(),
        overrides: &args.set.pairs()?,
        model: args.model.as_deref(),
        steps: args.steps,
        folder: &folder,
        home: &home,
    };
    let found = pilot(&asked, &mut |line| say(line))?;
    let text = json::to_text(&found)?;
    fs::write_durable(&folder.join("pilot.json"), text.as_bytes())?;
    super::print(&if args.json { text } else { pilot_table(&foretold(&found), Screen::stdout()) });
    Ok(0)
}

fn foretold(found: &Pilot) -> Foretold {
    let ran = &found.pilot;
    let mut facts = vec![
        ("run", format!("{}, in {}", ran.run_id, ran.output_dir.display())),
        ("model", ran.model.clone()),
        (
            "data",
            format!("{} rows, judged by {} others, {} of the run's tokens", ran.rows, ran.held_out_rows, {
                words::share(ran.share_of_tokens)
            }),
        ),
    ];
    let took = ran.measured.wall_s.map(words::seconds);
    let cost = ran.measured.cost_usd.map(words::money);
    let took: Vec<String> = took.into_iter().chain(cost).collect();
    facts.push(("took", format!("{} steps, {}", ran.steps, took.join(", "))));
    let errors = [("step time", "step_s"), ("peak memory", "peak_memory_bytes")];
    let errors = errors.into_iter().filter_map(|(title, key)| {
        Some(format!("{title} {}", words::percent_error(ran.error_pct[key].as_f64()?)))
    });
    facts.push(("foretold", errors.collect::<Vec<_>>().join(", ")));
    Foretold {
        ran: facts,
        cold: found.cold,
        predicted: found.predicted,
        eval_loss: found.eval_loss,
        interval: super::train::ranges(&found.interval),
        price: super::train::price(&found.prediction.price),
        warnings: found.warnings.clone(),
    }
}
