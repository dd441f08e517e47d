//! `fttrain export RUN`: the result in a form that other programs read.

use crate::arch::gguf::Type;
use crate::arch::gguf::Value;
use crate::arch::source::TokenizerSource;
use crate::error::{Error, Kind, Result};
use crate::fs::FileEntry;
use crate::model::adapter::gguf_lora;
use crate::model::merge::Merged;
use crate::model::write;
use crate::train::subject::{Named, Subject};
use clap::Args;
use std::path::{Path, PathBuf};

/// Arguments of `export`.
#[derive(Args)]
pub(super) struct ExportArgs {
    /// A run's id or folder, an adapter's folder, or a model.
    run: String,
    /// The whole model, adapter merged, as one GGUF file.
    #[arg(long, required_unless_present = "gguf_lora")]
    gguf: bool,
    /// The adapter alone, as llama.cpp's `--lora` takes it.
    #[arg(long, conflicts_with = "gguf")]
    gguf_lora: bool,
    /// Type of the whole model's matrices; vectors are f32.
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "gguf_lora", default_value = "bf16", value_parser = ["f16", "bf16", "q8_0", "f32"])]
    kind: String,
    /// The base model of an adapter, where its folder does not say it.
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// The file to write; by default beside what is exported.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &ExportArgs) -> Result<u8> {
    let named = Named { model: &args.run, base: args.base.as_deref(), ..Named::default() };
    let subject = Subject::open(&named, None)?;
    let kind = if args.gguf_lora { "lora" } else { &args.kind };
    let out = args.out.clone().unwrap_or_else(|| beside(&subject.place, kind));
    if args.gguf_lora {
        let Some(adapter) = &subject.adapter else {
            let fact = format!("{}: a model without an adapter", subject.place.display());
            return Err(Error::new(Kind::Usage, fact).hint("write the whole model with `--gguf`"));
        };
        say(&out, &gguf_lora::write(adapter, &subject.arch, &out)?);
        return Ok(0);
    }
    let loader = subject.loader()?;
    let merged = Merged::new(&loader, &subject.arch, subject.adapter.as_ref());
    let kind = match &*args.kind {
        "f32" => Type::F32,
        "f16" => Type::F16,
        "q8_0" => Type::Q8_0,
        _ => Type::BF16,
    };
    let written = write::gguf(&merged, subject.source.name(), kind, vocabulary(&subject)?, &out)?;
    say(&out, &written);
    Ok(0)
}

fn say(out: &Path, written: &FileEntry) {
    super::print(&format!("{} ({})\n", out.display(), crate::units::Bytes(written.size)));
}

/// The tokenizer's keys: those of a GGUF base as they are, else made from tokenizer.json.
fn vocabulary(subject: &Subject) -> Result<Vec<(String, Value)>> {
    if let TokenizerSource::Gguf(header) = subject.source.tokenizer()? {
        let own = header.metadata.into_iter().filter(|(key, _)| key.starts_with("tokenizer."));
        return Ok(own.collect());
    }
    let keys = subject.tokenizer.to_gguf()?.metadata().into_iter();
    Ok(keys.map(|(key, value)| (key.to_owned(), value)).collect())
}

/// `runs/x-bf16.gguf`, a sister of what is exported.
fn beside(place: &Path, kind: &str) -> PathBuf {
    let mut name = place.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{kind}.gguf"));
    place.with_file_name(name)
}
