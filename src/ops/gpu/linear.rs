//! A linear layer with its adapter on a GPU: the sums of `ops/linear.rs` by cuBLAS, its sides rounded as there.

use super::norm;
use super::product::{Side, dtype, fresh, fresh_as, gradient, multiply, weight};
use super::values::{self, as_dtype};
use crate::error::Result;
use crate::ops::Grads;
use crate::ops::device::Gpu;
use crate::ops::dropout::Noise;
use crate::ops::linear::{Linear, Lora, Saved};
use crate::ops::matmul::Precision;
use candle_core::{DType, Tensor};
use fttrain_kernels::cuda;

/// x as a layer's products read it: once for all layers that share it.
pub fn input(gpu: &Gpu, layer: &Linear, x: &Tensor) -> Result<Tensor> {
    as_dtype(gpu, x, dtype(layer.precision))
}

/// x `[N, in]`, `input` as the layer's products read it → `[N, out]` as `reader` has it: in bf16 the adapter's part is
/// rounded before the weight's is added, and their sum again.
pub fn forward(
    gpu: &Gpu,
    layer: &Linear,
    (x, input): (&Tensor, &Tensor),
    noise: Option<Noise>,
    reader: Precision,
) -> Result<(Tensor, Saved)> {
    let kind = dtype(layer.precision);
    // A bias is added in f32.
    let made = if layer.bias.is_some() || kind == DType::F32 { DType::F32 } else { dtype(reader) };
    // The adapter's product comes first: it is bound by memory, and need not read y then; the weight's waits for its
    // factors.
    let (low, saved) = match &layer.lora {
        None => (None, None),
        Some(lora) => {
            let input = dropped(gpu, lora, x, input, kind, noise)?;
            let (a, b) = (as_dtype(gpu, &lora.a.value, kind)?, as_dtype(gpu, &lora.b.value, kind)?);
            let xa = fresh(gpu, (&input, false), (&a, true), 1.0)?; // [N, R]
            let low = fresh_as(made, gpu, (&as_dtype(gpu, &xa, kind)?, false), (&b, true), lora.scale)?;
            (Some(low), Some(xa))
        }
    };
    let w = weight(gpu, &layer.weight.value, layer.precision)?;
    let y = match low {
        Some(y) => multiply(gpu, (input, false), (&w, true), &y, 1.0, true).map(|()| y)?,
        None => fresh_as(made, gpu, (input, false), (&w, true), 1.0)?,
    };
    if let Some(bias) = &layer.bias {
        let bias = as_dtype(gpu, &bias.value, DType::F32)?;
        gpu.run(&cuda::values::add_to_rows(gpu.address(&y)?, gpu.address(&bias)?, y.dims2()?))?;
    }
    Ok((as_dtype(gpu, &y, dtype(reader))?, Saved::new(saved)))
}

/// Adds this layer's part to the gradient of x, where it is `wanted`, and to those of what is trained.
pub fn backward(
    gpu: &Gpu,
    (layer, saved, dy): (&Linear, &Saved, &Tensor),
    (x, input): (&Tensor, &Tensor),
    dx: &mut Option<Tensor>,
    wanted: bool,
    noise: Option<Noise>,
    grads: &mut Grads,
) -> Result<()> {
    let kind = dtype(layer.precision);
    let d_out = as_dtype(gpu, dy, kind)?;
    if let Some(id) = layer.weight.param {
        gradient(gpu, grads.slot(id), &d_out, input, 1.0)?;
    }
    if let Some(id) = layer.bias.as_ref().and_then(|bias| bias.param) {
        norm::add_column_sums(gpu, grads.slot(id), &as_dtype(gpu, dy, DType::F32)?)?;
    }
    if let (Some(lora), Some(xa)) = (&layer.lora, &saved.xa) {
        if let Some(id) = lora.b.param {
            gradient(gpu, grads.slot(id), &d_out, &as_dtype(gpu, xa, kind)?, lora.scale)?;
        }
        let (a, b) = (as_dtype(gpu, &lora.a.value, kind)?, as_dtype(gpu, &lora.b.value, kind)?);
        let d_low = as_dtype(gpu, &fresh(gpu, (&d_out, false), (&b, false), 1.0)?, kind)?; // [N, R]
        if let Some(id) = lora.a.param {
            let input = dropped(gpu, lora, x, input, kind, noise)?;
            gradient(gpu, grads.slot(id), &d_low, &input, lora.scale)?;
        }
        if wanted && lora.drops(noise) {
            let through = lora.dropped(&fresh(gpu, (&d_low, false), (&a, false), lora.scale)?, noise)?;
            match dx {
                Some(dx) => values::add(gpu, dx, &through)?,
                None => *dx = Some(through),
            }
        } else if wanted {
            *dx = Some(added(gpu, dx.take(), (&d_low, false), (&a, false), lora.scale)?);
        }
    }
    if wanted {
        let w = weight(gpu, &layer.weight.value, layer.precision)?;
        *dx = Some(added(gpu, dx.take(), (&d_out, false), (&w, false), 1.0)?);
    }
    Ok(())
}

/// `scale·left·right` added to a sum, or the first of it.
fn added(gpu: &Gpu, sum: Option<Tensor>, left: Side, right: Side, scale: f32) -> Result<Tensor> {
    match sum {
        Some(sum) => multiply(gpu, left, right, &sum, scale, true).map(|()| sum),
        None => fresh(gpu, left, right, scale),
    }
}

/// What A sees: the input as it was rounded for W, or a part of it dropped.
fn dropped(
    gpu: &Gpu,
    lora: &Lora,
    x: &Tensor,
    input: &Tensor,
    kind: DType,
    noise: Option<Noise>,
) -> Result<Tensor> {
    if lora.drops(noise) { as_dtype(gpu, &lora.dropped(x, noise)?, kind) } else { Ok(input.clone()) }
}
