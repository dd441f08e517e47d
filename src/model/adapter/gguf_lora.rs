//! An adapter as llama.cpp reads it: a GGUF file of type `adapter` with `NAME.lora_a` and `NAME.lora_b` for each adapted
//! weight, where NAME is the base file's own name of it.

use super::Adapter;
use crate::arch::gguf::{self, NewTensor, Type, Value};
use crate::arch::{Arch, Linear};
use crate::error::{Fault, Kind, Result};
use crate::fs::FileEntry;
use crate::model::weights::{gguf_name, interleave, interleaved_heads};
use crate::ops::host;
use candle_core::Tensor;
use std::io::{self, Write};
use std::path::Path;

/// Why an adapter has no such form.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The form knows low-rank pairs alone.
    #[error("a GGUF LoRA holds no module that is trained whole: {}", .0.join(", "))]
    Whole(Vec<String>),
    /// The form knows no trained lengths.
    #[error("a GGUF LoRA holds no DoRA lengths")]
    Lengths,
    /// A pair without values: the adapter was not read from a folder.
    #[error("the adapter has no values of `{0}`")]
    NoValues(String),
    /// llama.cpp has no name for a tensor.
    #[error("`{0}` has no name in GGUF")]
    NoName(String),
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Whole(_) | Self::Lengths => Kind::Usage,
            Self::NoValues(_) | Self::NoName(_) => Kind::Model,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::Whole(_) | Self::Lengths => "write the merged model with `fttrain export --gguf`",
                Self::NoValues(_) => "name an adapter's folder, or a run that has finished",
                Self::NoName(_) => "write the adapter for PEFT; that is how a run leaves it",
            }
            .into(),
        )
    }
}

/// A tensor of the file, and what writes it.
struct Piece {
    tensor: NewTensor,
    values: Tensor,
    /// What they are multiplied with on the way.
    factor: f32,
    /// Rows are to be interleaved by this many heads, as the base file's are.
    heads: Option<usize>,
}

/// Writes the adapter durably, in f32. α is chosen so that llama.cpp's α / R is the scale of the first pair, rsLoRA or
/// not; where another pair's is not α / R, its B takes the difference.
///
/// # Errors
/// Something in it has no place in such a file, or no values (2, 4); the disk fails (5).
pub fn write(adapter: &Adapter, arch: &Arch, out: &Path) -> Result<FileEntry> {
    if !adapter.modules_to_save.is_empty() {
        return Err(Error::Whole(adapter.modules_to_save.iter().cloned().collect()).into());
    }
    if adapter.spec.dora {
        return Err(Error::Lengths.into());
    }
    let Some(architecture) = arch.gguf_architecture() else {
        return Err(Error::NoName(format!("{:?}", arch.family)).into());
    };
    let linears: Vec<_> = arch.linears().filter(|linear| adapter.adapts(&linear.name)).collect();
    let own_alpha = |linear: &Linear| {
        f64::from(adapter.spec.scale(&linear.name)) * adapter.spec.rank(&linear.name) as f64
    };
    let alpha = linears.first().map_or(1.0, own_alpha);
    let mut pieces = Vec::new();
    for linear in &linears {
        pieces.extend(pair(adapter, arch, linear, own_alpha(linear) / alpha)?);
    }
    let metadata = [
        ("general.type", Value::Text("adapter".into())),
        ("general.architecture", Value::Text(architecture.into())),
        ("general.quantization_version", Value::Unsigned(2)),
        ("adapter.type", Value::Text("lora".into())),
        ("adapter.lora.alpha", Value::Float(alpha)),
    ];
    let tensors: Vec<NewTensor> = pieces.iter().map(|piece| piece.tensor.clone()).collect();
    gguf::write(out, &metadata, &tensors, &mut |i, out| match pieces.get(i) {
        Some(piece) => piece.write(out),
        None => Ok(()),
    })
}

/// The two tensors of a linear; B is multiplied with `factor`.
fn pair(adapter: &Adapter, arch: &Arch, linear: &Linear, factor: f64) -> Result<[Piece; 2]> {
    let weight = format!("{}.weight", linear.name);
    let name = gguf_name(&weight).ok_or(Error::NoName(weight))?;
    let piece = |side: &str, factor, heads| {
        let tensor = format!("base_model.model.{}.lora_{side}.weight", linear.name);
        let values = adapter.start(&tensor)?.ok_or(Error::NoValues(tensor))?;
        let (rows, width) = values.dims2()?;
        let name = format!("{name}.lora_{}", side.to_lowercase());
        let tensor = NewTensor { name, dims: vec![width, rows], kind: Type::F32 };
        Ok::<_, crate::error::Error>(Piece { tensor, values, factor, heads })
    };
    #[allow(clippy::cast_possible_truncation)] // Values are f32.
    let factor = factor as f32;
    // The rows of B are the rows of the weight.
    Ok([piece("A", 1.0, None)?, piece("B", factor, interleaved_heads(&name, arch))?])
}

impl Piece {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let values = host::read(&self.values).map_err(|e| io::Error::other(e.to_string()))?;
        let bytes: Vec<u8> = values.iter().flat_map(|x| (self.factor * x).to_le_bytes()).collect();
        match self.heads {
            Some(heads) => out.write_all(&interleave(&bytes, self.values.dims()[0], heads)),
            None => out.write_all(&bytes),
        }
    }
}
