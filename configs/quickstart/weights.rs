//! The base model's weights: pretrained by `fttrain` itself, kept in bf16.

use half::bf16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs `fttrain --full CONFIG` and returns the file of f32 weights that it leaves in `output`.
pub(crate) fn pretrain(config: &str, output: &str) -> Result<PathBuf, Box<dyn Error>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["run", "--release", "--bin", "fttrain", "--", "--full", config, "--overwrite"])
        .args(["--set", &format!("output_dir={output}")])
        .status()?;
    if !status.success() {
        return Err(format!("the pretraining ended with {status}").into());
    }
    Ok(Path::new(output).join("model.safetensors"))
}

/// Writes the same tensors, each value rounded to the nearest bf16.
pub(crate) fn keep_as_bf16(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    let bytes = fs::read(from)?;
    let mut rounded = Vec::new();
    for (name, tensor) in SafeTensors::deserialize(&bytes)?.iter() {
        if tensor.dtype() != Dtype::F32 {
            return Err(format!("{name} is {:?}, not F32", tensor.dtype()).into());
        }
        let (values, _) = tensor.data().as_chunks::<4>();
        let values = values.iter().map(|v| bf16::from_f32(f32::from_le_bytes(*v)));
        let data: Vec<u8> = values.flat_map(bf16::to_le_bytes).collect();
        rounded.push((name.to_owned(), tensor.shape().to_vec(), data));
    }
    let mut views = Vec::new();
    for (name, shape, data) in &rounded {
        views.push((name, TensorView::new(Dtype::BF16, shape.clone(), data)?));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    fs::write(to, safetensors::serialize(views, Some(metadata))?)?;
    println!("{}: {} tensors", to.display(), rounded.len());
    Ok(())
}
