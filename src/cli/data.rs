//! `fttrain data CONFIG`

use super::SetArgs;
use crate::data::prepare;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Kind, Result};
use crate::train::ground::Ground;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `data`.
#[derive(Args)]
pub(super) struct DataArgs {
    /// The run's config.
    config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    set: SetArgs,
}

pub(super) fn run(args: &DataArgs) -> Result<u8> {
    let resolved = crate::config::load(&args.config, None, &args.set.pairs()?)?;
    let ground = Ground::lay(resolved)?;
    let config = &ground.resolved.config;
    let tokenizer =
        Tokenizer::open(&ground.source.tokenizer()?, &ground.arch, config.data.chat_template.as_deref())?;
    let summary = prepare(config, &tokenizer, None)?.summary;
    let json = || serde_json::to_string_pretty(&summary).map_err(|e| Error::new(Kind::Bug, e.to_string()));
    super::print(&format!("{}\n", if args.json { json()? } else { summary.to_string() }));
    Ok(0)
}
