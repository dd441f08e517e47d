//! `fttrain data CONFIG`

use super::SetArgs;
use crate::data::prepare;
use crate::data::tokenizer::Tokenizer;
use crate::error::Result;
use crate::report::json;
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
    super::print(&if args.json { json::to_text(&summary)? } else { format!("{summary}\n") });
    Ok(0)
}
