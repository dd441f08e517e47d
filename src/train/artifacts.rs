//! The files that a run leaves: the adapter as PEFT keeps it, or the whole model, with tokenizer and template.

use super::plan::Plan;
use super::{Error, Session};
use crate::arch::config_json;
use crate::data::Batch;
use crate::error::Result;
use crate::estimate::memory::COMPARED;
use crate::fs;
use crate::model::adapter::peft;
use crate::ops::host;
use candle_core::Tensor;
use std::path::Path;

/// Name of the file with the trained tensors.
pub fn weights_name(plan: &Plan) -> &'static str {
    if plan.ground.adapter.is_some() { "adapter_model.safetensors" } else { "model.safetensors" }
}

/// The small JSON file beside the trained tensors, and its name.
pub fn description(plan: &Plan) -> Result<(&'static str, String)> {
    match &plan.ground.adapter {
        Some(adapter) => {
            let revision = plan.config().base.revision.as_deref();
            Ok(("adapter_config.json", peft::config_json(adapter, plan.ground.source.name(), revision)))
        }
        None => Ok(("config.json", model_config(plan)?)),
    }
}

/// The base's own `config.json`, which now says what the weights are kept in; one made from the shapes where the base is
/// a GGUF file.
fn model_config(plan: &Plan) -> Result<String> {
    let stored = if plan.config().train.bf16_weights { "bfloat16" } else { "float32" };
    let Some(path) = plan.ground.source.config_json()? else {
        return Ok(config_json::render(&plan.ground.arch, stored));
    };
    let text = fs::read_at_most(&path, 16 << 20)?;
    let mut config: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| Error::State(format!("{}: {e}", path.display())))?;
    for key in ["torch_dtype", "dtype"] {
        if !config[key].is_null() {
            config[key] = stored.into();
        }
    }
    Ok(format!("{config:#}\n"))
}

/// Writes the result into the run's folder, reopens it, and compares logits.
///
/// # Errors
/// The logits are not finite (7); the disk fails, or what was reopened gives other logits (5).
pub fn save(session: &Session, plan: &Plan) -> Result<()> {
    let (name, text) = description(plan)?;
    let probe = probe(plan);
    let trained = probe.as_ref().map(|probe| session.learner.decoder.logits(probe)).transpose()?;
    if let Some(trained) = &trained
        && host::read(trained)?.iter().any(|logit| !logit.is_finite())
    {
        return Err(Error::Logits.into());
    }
    let weights = plan.out.join(weights_name(plan));
    let size =
        fs::write_durable_with(&weights, &mut |out| peft::write_tensors(&session.learner.params, out))?.size;
    fs::write_durable(&plan.out.join(name), text.as_bytes())?;
    for (name, bytes) in plan.tokenizer.save() {
        fs::write_durable(&plan.out.join(name), bytes)?;
    }
    let (Some(probe), Some(trained)) = (probe, trained) else { return Ok(()) };
    verify(session, &probe, &trained, (&weights, size))
}

/// The beginning of the first sample.
fn probe(plan: &Plan) -> Option<Batch> {
    let mut sample = plan.epochs.samples().first()?.clone();
    sample.ids.truncate(COMPARED);
    sample.labels.truncate(COMPARED);
    Some(Batch::new([&sample], 0))
}

fn verify(session: &Session, probe: &Batch, trained: &Tensor, (weights, size): (&Path, u64)) -> Result<()> {
    let mut file =
        fs::open_regular(weights).map_err(|e| Error::State(format!("{}: {e}", weights.display())))?;
    peft::read_tensors(&session.learner.params, &mut file, size).map_err(Error::State)?;
    let reopened = session.learner.decoder.logits(probe)?;
    let (a, b) = (host::read(trained)?, host::read(&reopened)?);
    let difference = a.iter().zip(b.iter()).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    if difference > 0.0 || a.len() != b.len() {
        return Err(Error::SavedDiffers { path: weights.to_owned(), difference }.into());
    }
    Ok(())
}
