//! `fttrain merge RUN`: base and adapter as one model, and how alike the two are.

use super::say;
use crate::arch::source::WeightFiles;
use crate::error::{Error, Kind, Result};
use crate::model::Frozen;
use crate::model::likeness::{Likeness, Logits};
use crate::model::merge::Merged;
use crate::model::write;
use crate::train::subject::{Named, Subject};
use candle_core::DType;
use clap::Args;
use serde_json::json;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Arguments of `merge`.
#[derive(Args)]
pub(super) struct MergeArgs {
    /// A run's id or folder, or an adapter's folder.
    run: String,
    /// The base model; by default the one that the run was trained on.
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Where the merged model goes: a new folder, or a new .gguf file for a GGUF base. By default beside the adapter.
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Type of the merged weights; by default the base's own.
    #[arg(long, value_name = "TYPE", value_parser = ["bf16", "f16", "f32"])]
    dtype: Option<String>,
    /// Do not load both models to compare them.
    #[arg(long)]
    no_check: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What people write to a model; each is a few dozen tokens.
const TEXTS: [&str; 3] = [
    "The capital of France is Paris. It lies on the river Seine and has been the largest city of the country for a \
     thousand years.",
    "Question: A train leaves at 9:40 and arrives at 12:05. How long does the journey take?\nAnswer: 2 hours and 25 \
     minutes.",
    "def mean(values):\n    \"\"\"Return the arithmetic mean.\"\"\"\n    return sum(values) / len(values)\n",
];

pub(super) fn run(args: &MergeArgs) -> Result<u8> {
    let named = Named { model: &args.run, base: args.base.as_deref(), ..Named::default() };
    let subject = Subject::open(&named, None)?;
    if subject.adapter.is_none() {
        let fact = format!("{}: there is no adapter to merge", subject.place.display());
        return Err(Error::new(Kind::Usage, fact)
            .hint("name the folder of a LoRA run; a full fine-tune is a whole model already"));
    }
    let files = subject.source.weights()?;
    let is_gguf =
        matches!(files, WeightFiles::Gguf(_)) && args.dtype.is_none() && !is_folder(args.out.as_deref());
    let out = args.out.clone().unwrap_or_else(|| beside(&subject.place, is_gguf));
    if let WeightFiles::Gguf(base) = &files
        && is_gguf
        && base.tensors.iter().any(|tensor| tensor.kind.block() > 1)
    {
        say(
            "warning: the base is quantised: its types keep only part of what was learned; the loss below says how \
             much. `--dtype bf16` makes a 16-bit model of it instead",
        );
    }
    if out.symlink_metadata().is_ok() {
        return Err(write::Refused::Taken(out).into());
    }
    let texts = probes(&subject)?;
    let before = if args.no_check { None } else { Some(logits(&subject, true, &texts)?) };
    let bytes = write_merged(&subject, &files, args.dtype.as_deref(), is_gguf, &out)?;
    let likeness = match before {
        Some(before) => Some(compare(&before, &out, &texts)?),
        None => None,
    };
    let text = if args.json {
        format!("{:#}\n", json!({"out": out, "weights_bytes": bytes, "likeness": likeness}))
    } else {
        shown(&out, bytes, likeness.as_ref())
    };
    super::print(&text);
    Ok(0)
}

fn is_folder(out: Option<&Path>) -> bool {
    out.is_some_and(|out| out.extension().is_none_or(|e| !e.eq_ignore_ascii_case("gguf")))
}

/// `runs/x-merged`, a sister of the adapter's folder.
fn beside(adapter: &Path, is_gguf: bool) -> PathBuf {
    let mut name = adapter.file_name().unwrap_or_default().to_owned();
    name.push(if is_gguf { "-merged.gguf" } else { "-merged" });
    adapter.with_file_name(name)
}

fn probes(subject: &Subject) -> Result<Vec<Vec<u32>>> {
    let encode = |text: &&str| {
        let mut ids = subject.tokenizer.prefix().to_vec();
        let fault = |fault: crate::data::RowFault| Error::new(Kind::Model, fault.to_string());
        ids.extend(subject.tokenizer.encode(text).map_err(fault)?);
        ids.truncate(subject.arch.max_position);
        Ok(ids)
    };
    TEXTS.iter().map(encode).collect()
}

fn logits(subject: &Subject, adapted: bool, texts: &[Vec<u32>]) -> Result<Logits> {
    let longest = texts.iter().map(Vec::len).max().unwrap_or(1);
    Logits::of(&subject.decoder(adapted, Frozen::Dense(DType::F32), longest)?, texts)
}

fn write_merged(
    subject: &Subject,
    files: &WeightFiles,
    dtype: Option<&str>,
    is_gguf: bool,
    out: &Path,
) -> Result<u64> {
    let loader = subject.loader()?;
    let merged = Merged::new(&loader, &subject.arch, subject.adapter.as_ref());
    if let (WeightFiles::Gguf(header), true) = (files, is_gguf) {
        return Ok(write::gguf_like(&merged, header, out)?.size);
    }
    let kind = match dtype {
        Some("f16") => write::Kind::F16,
        Some("f32") => write::Kind::F32,
        Some(_) => write::Kind::Bf16,
        None => write::Kind::of(files),
    };
    let own = match subject.source.config_json()? {
        Some(path) => {
            let bytes = crate::fs::read_at_most(&path, 16 << 20)?;
            Some((path, bytes))
        }
        None => None,
    };
    let mut small =
        vec![("config.json".to_owned(), write::config_json(own, merged.arch(), kind)?.into_bytes())];
    small.extend(subject.tokenizer.save().iter().cloned());
    write::folder(&merged, files, kind, &small, out)
}

/// What was written, opened again, against base and adapter.
fn compare(before: &Logits, out: &Path, texts: &[Vec<u32>]) -> Result<Likeness> {
    let path = out.to_string_lossy();
    let written = Subject::open(&Named { model: &path, ..Named::default() }, None)?;
    Ok(before.likeness(&logits(&written, false, texts)?))
}

fn shown(out: &Path, bytes: u64, likeness: Option<&Likeness>) -> String {
    let mut text = format!("merged model: {} ({})\n", out.display(), crate::units::Bytes(bytes));
    if let Some(l) = likeness {
        let _ = writeln!(
            text,
            "against base + adapter, {} positions of {} texts: largest difference of a logit {:.3e}, KL {:.3e} nats, \
             same likeliest token {:.1} %, loss {:.4} -> {:.4}",
            l.positions,
            TEXTS.len(),
            l.max_abs,
            l.kl,
            100.0 * l.same_top,
            l.loss_before,
            l.loss_after,
        );
    }
    text
}
