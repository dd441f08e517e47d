//! A linear layer with its adapter on a GPU: the sums of `ops/linear.rs` by cuBLAS, its sides rounded as there.

use super::norm;
use super::product::{dtype, fresh, gradient, multiply, weight};
use super::values::{self, as_dtype};
use crate::error::Result;
use crate::ops::Grads;
use crate::ops::device::Gpu;
use crate::ops::dropout::Noise;
use crate::ops::linear::{Linear, Lora, Saved};
use candle_core::{DType, Tensor};
use fttrain_kernels::cuda;

/// x as a layer's products read it: once for all layers that share it.
pub fn input(gpu: &Gpu, layer: &Linear, x: &Tensor) -> Result<Tensor> {
    as_dtype(gpu, x, dtype(layer.precision))
}

/// x `[N, in]`, `input` as the layer's products read it → `[N, out]`.
pub fn forward(
    gpu: &Gpu,
    layer: &Linear,
    (x, input): (&Tensor, &Tensor),
    noise: Option<Noise>,
) -> Result<(Tensor, Saved)> {
    let kind = dtype(layer.precision);
    let w = weight(gpu, &layer.weight.value, layer.precision)?;
    let y = fresh(gpu, (input, false), (&w, true), 1.0)?;
    if let Some(bias) = &layer.bias {
        let bias = as_dtype(gpu, &bias.value, DType::F32)?;
        gpu.run(&cuda::values::add_to_rows(gpu.address(&y)?, gpu.address(&bias)?, y.dims2()?))?;
    }
    let Some(lora) = &layer.lora else { return Ok((y, Saved::new(None))) };
    let input = dropped(gpu, lora, x, input, kind, noise)?;
    let (a, b) = (as_dtype(gpu, &lora.a.value, kind)?, as_dtype(gpu, &lora.b.value, kind)?);
    let xa = fresh(gpu, (&input, false), (&a, true), 1.0)?; // [N, R]
    multiply(gpu, (&as_dtype(gpu, &xa, kind)?, false), (&b, true), &y, lora.scale, true)?;
    Ok((y, Saved::new(Some(xa))))
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
        norm::add_column_sums(gpu, grads.slot(id), dy)?;
    }
    if wanted {
        let w = weight(gpu, &layer.weight.value, layer.precision)?;
        add_product(gpu, dx, &d_out, &w, 1.0)?;
    }
    let (Some(lora), Some(xa)) = (&layer.lora, &saved.xa) else { return Ok(()) };
    if let Some(id) = lora.b.param {
        gradient(gpu, grads.slot(id), &d_out, &as_dtype(gpu, xa, kind)?, lora.scale)?;
    }
    let (a, b) = (as_dtype(gpu, &lora.a.value, kind)?, as_dtype(gpu, &lora.b.value, kind)?);
    let d_low = as_dtype(gpu, &fresh(gpu, (&d_out, false), (&b, false), 1.0)?, kind)?; // [N, R]
    if let Some(id) = lora.a.param {
        let input = dropped(gpu, lora, x, input, kind, noise)?;
        gradient(gpu, grads.slot(id), &d_low, &input, lora.scale)?;
    }
    match (wanted, lora.drops(noise)) {
        (false, _) => Ok(()),
        (true, false) => add_product(gpu, dx, &d_low, &a, lora.scale),
        (true, true) => {
            let through = lora.dropped(&fresh(gpu, (&d_low, false), (&a, false), lora.scale)?, noise)?;
            if let Some(dx) = dx {
                return values::add(gpu, dx, &through);
            }
            *dx = Some(through);
            Ok(())
        }
    }
}

/// `dx += scale·dy·w`, dx made where there is none.
fn add_product(gpu: &Gpu, dx: &mut Option<Tensor>, dy: &Tensor, w: &Tensor, scale: f32) -> Result<()> {
    if let Some(dx) = dx {
        return multiply(gpu, (dy, false), (w, false), dx, scale, true);
    }
    *dx = Some(fresh(gpu, (dy, false), (w, false), scale)?);
    Ok(())
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
