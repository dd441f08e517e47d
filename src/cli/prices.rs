//! `fttrain prices`

use crate::error::{Error, Kind, Result};
use crate::estimate::prices::{Filter, Row, Table};
use crate::report::prices;
use crate::train::screen::Screen;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `prices`.
#[derive(Args)]
pub(super) struct PricesArgs {
    /// Only this accelerator: H100, A100, …
    #[arg(long)]
    gpu: Option<String>,
    /// Only providers with this in their name.
    #[arg(long)]
    provider: Option<String>,
    /// Only up to this price of an hour, USD.
    #[arg(long, value_name = "USD")]
    max_usd: Option<f64>,
    /// Spot prices, of the rows that have one.
    #[arg(long)]
    spot: bool,
    /// A price table of your own, whose rows win.
    #[arg(long, value_name = "CSV")]
    price_file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &PricesArgs) -> Result<u8> {
    let today = jiff::Zoned::now().date();
    let table = Table::with_own(args.price_file.as_deref())?;
    let filter = Filter {
        gpu: args.gpu.clone(),
        provider: args.provider.clone(),
        max_usd: args.max_usd,
        spot: args.spot,
    };
    let rows: Vec<&Row> = table.select(&filter);
    if rows.is_empty() && !args.json {
        return Err(Error::new(Kind::Usage, "no row of the price table is so")
            .hint("`fttrain prices` without a filter lists all of them"));
    }
    super::print(&if args.json {
        prices::json(&rows, today)?
    } else {
        prices::terminal(&rows, args.spot, today, Screen::stdout())
    });
    Ok(0)
}
