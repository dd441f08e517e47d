//! `fttrain import AXOLOTL_YML`: another trainer's config, as ours.

use super::say;
use crate::config::import::{Instead, import};
use crate::error::{Error, Kind, Result};
use clap::Args;
use std::path::PathBuf;

/// Most bytes of a config; people write a few thousand.
const CONFIG_BYTES: u64 = 1 << 20;

/// Arguments of `import`.
#[derive(Args)]
pub(super) struct ImportArgs {
    /// A YAML file of Axolotl or LLaMA-Factory.
    config: PathBuf,
    /// The file to write; by default the config is printed.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Rows in place of the file's datasets.
    #[arg(long, value_name = "FILE")]
    data: Option<String>,
    /// What these rows are.
    #[arg(long = "type", value_name = "TYPE", requires = "data")]
    kind: Option<String>,
}

pub(super) fn run(args: &ImportArgs) -> Result<u8> {
    let name = args.config.display().to_string();
    if let Some(out) = args.out.as_ref().filter(|out| out.symlink_metadata().is_ok()) {
        let fact = format!("{}: exists already", out.display());
        return Err(Error::new(Kind::Usage, fact).hint("name another file with `--out`: nothing is replaced"));
    }
    let unreadable = |cause: String| Error::new(Kind::Usage, format!("{name}: {cause}"));
    let bytes = crate::fs::read_at_most(&args.config, CONFIG_BYTES)
        .map_err(|error| unreadable(error.problems.into_iter().map(|p| p.message).collect()))?;
    let text = String::from_utf8(bytes).map_err(|_| unreadable("is not UTF-8".into()))?;
    let instead = Instead { path: args.data.as_deref(), kind: args.kind.as_deref() };
    let imported = import(&name, &text, &instead)?;
    for note in imported.notes.iter().chain(&imported.resolved.warnings) {
        say(note);
    }
    match &args.out {
        Some(out) => crate::fs::write_durable(out, imported.toml.as_bytes())?,
        None => super::print(&imported.toml),
    }
    Ok(0)
}
