//! The three products of a linear layer. A bf16 or quantised weight is widened panel by panel: no f32 copy of it is
//! ever whole.

use super::Operand;
use super::host::{self, read};
use crate::error::Result;
use candle_core::{CpuStorage, DType, Storage, Tensor};
use fttrain_kernels::cpu::{MatRef, matmul, matmul_new, widen_bf16};
use rayon::prelude::*;

/// Values of a widened panel: 4 MiB of f32, which the last level of cache holds.
const PANEL: usize = 1 << 20;

/// `x·Wᵀ`: x `[N, in]`, W `[out, in]` → `[N, out]`.
pub fn nt<'w>(x: &Tensor, w: impl Into<Operand<'w>>) -> Result<Tensor> {
    let w = w.into();
    let ((n, inputs), outputs) = (x.dims2()?, w.shape()?.0);
    if let Operand::Dense(w) = w
        && w.dtype() == DType::F32
    {
        let (x, w) = (read(x)?, read(w)?);
        let y = matmul_new((n, outputs, inputs), MatRef::rows(&x, inputs), MatRef::rows(&w, inputs).t());
        return host::tensor(y, (n, outputs));
    }
    let y = host::zeros((n, outputs))?;
    nt_into(&y, x, w, 1.0, false)?;
    Ok(y)
}

/// `y += scale·x·Wᵀ`.
pub fn nt_add<'w>(y: &Tensor, x: &Tensor, w: impl Into<Operand<'w>>, scale: f32) -> Result<()> {
    nt_into(y, x, w.into(), scale, true)
}

fn nt_into(y: &Tensor, x: &Tensor, w: Operand, scale: f32, accumulate: bool) -> Result<()> {
    let (n, inputs) = x.dims2()?;
    let outputs = w.shape()?.0;
    let x = read(x)?;
    host::edit(y, |y| {
        panels(w, |first, rows, panel| {
            let shape = (n, rows, inputs);
            let (x, w) = (MatRef::rows(&x, inputs), MatRef::rows(panel, inputs).t());
            matmul(shape, x, w, scale, accumulate, &mut y[first..], outputs);
        })
    })?
}

/// `dy·W`: dy `[N, out]`, W `[out, in]` → `[N, in]`.
pub fn nn<'w>(dy: &Tensor, w: impl Into<Operand<'w>>) -> Result<Tensor> {
    let w = w.into();
    let ((n, outputs), inputs) = (dy.dims2()?, w.shape()?.1);
    if let Operand::Dense(w) = w
        && w.dtype() == DType::F32
    {
        let (dy, w) = (read(dy)?, read(w)?);
        let dx = matmul_new((n, inputs, outputs), MatRef::rows(&dy, outputs), MatRef::rows(&w, inputs));
        return host::tensor(dx, (n, inputs));
    }
    let dx = host::zeros((n, inputs))?;
    nn_add(&dx, dy, w, 1.0)?;
    Ok(dx)
}

/// `dx += scale·dy·W`.
pub fn nn_add<'w>(dx: &Tensor, dy: &Tensor, w: impl Into<Operand<'w>>, scale: f32) -> Result<()> {
    let w = w.into();
    let ((n, outputs), inputs) = (dy.dims2()?, w.shape()?.1);
    let dy = read(dy)?;
    host::edit(dx, |dx| {
        panels(w, |first, rows, panel| {
            let shape = (n, inputs, rows);
            let dy = MatRef::rows(&dy[first..], outputs);
            matmul(shape, dy, MatRef::rows(panel, inputs), scale, true, dx, inputs);
        })
    })?
}

/// `scale·aᵀ·b`: a `[N, p]`, b `[N, q]` → `[p, q]`, stored in `sum` or added to what is there.
pub fn tn(sum: &mut Option<Tensor>, a: &Tensor, b: &Tensor, scale: f32) -> Result<()> {
    let ((n, p), q) = (a.dims2()?, b.dim(1)?);
    let accumulate = sum.is_some();
    let sum = match sum {
        Some(sum) => sum,
        None => sum.insert(host::zeros((p, q))?),
    };
    let (a, b) = (read(a)?, read(b)?);
    host::edit(sum, |sum| {
        let shape = (p, q, n);
        matmul(shape, MatRef::rows(&a, p).t(), MatRef::rows(&b, q), scale, accumulate, sum, q);
    })
}

/// Hands the rows of `w` to `work` as f32: `(first row, rows, values)`; an f32 weight whole, another in panels.
fn panels(w: Operand, mut work: impl FnMut(usize, usize, &[f32])) -> Result<()> {
    let (rows, width) = w.shape()?;
    let step = (PANEL / width.max(1)).max(1);
    let w = match w {
        Operand::Dense(w) => w,
        Operand::Quantised(blocks) => {
            let mut panel = vec![0f32; step.min(rows) * width];
            for first in (0..rows).step_by(step) {
                let count = step.min(rows - first);
                let panel = &mut panel[..count * width];
                panel.par_chunks_mut(width.max(1)).enumerate().for_each(|(row, out)| {
                    blocks.dequantise(first + row, 0..width, out);
                });
                work(first, count, panel);
            }
            return Ok(());
        }
    };
    if w.dtype() == DType::F32 {
        work(0, rows, &read(w)?);
        return Ok(());
    }
    let (storage, layout) = w.storage_and_layout();
    let (Storage::Cpu(CpuStorage::BF16(values)), Some((start, end))) =
        (&*storage, layout.contiguous_offsets())
    else {
        return read(w).map(drop);
    };
    let mut panel = vec![0f32; step.min(rows) * width];
    for (i, from) in values[start..end].chunks(step * width).enumerate() {
        let panel = &mut panel[..from.len()];
        widen_bf16(from, panel);
        work(i * step, from.len() / width, panel);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn random(rows: usize, columns: usize) -> Tensor {
        Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu).unwrap()
    }

    fn distance(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
    }

    #[test]
    fn products_equal_candles_on_odd_shapes() {
        for (n, inputs, outputs) in [(1, 3, 5), (7, 33, 17), (64, 96, 130)] {
            let (x, w, dy) = (random(n, inputs), random(outputs, inputs), random(n, outputs));
            assert!(distance(&nt(&x, &w).unwrap(), &x.matmul(&w.t().unwrap()).unwrap()) < 1e-4);
            assert!(distance(&nn(&dy, &w).unwrap(), &dy.matmul(&w).unwrap()) < 1e-4);
            let mut dw = None;
            tn(&mut dw, &dy, &x, 2.0).unwrap();
            let once = (dy.t().unwrap().matmul(&x).unwrap() * 2.0).unwrap();
            assert!(distance(dw.as_ref().unwrap(), &once) < 1e-3);
            tn(&mut dw, &dy, &x, 2.0).unwrap();
            assert!(distance(dw.as_ref().unwrap(), &(once * 2.0).unwrap()) < 1e-3);
        }
    }

    #[test]
    fn a_bf16_weight_gives_what_its_widened_copy_gives() {
        // Three panels, the last one short.
        let (inputs, outputs) = (1000, 2500);
        let (x, dy) = (random(5, inputs), random(5, outputs));
        let w = random(outputs, inputs).to_dtype(DType::BF16).unwrap();
        let wide = w.to_dtype(DType::F32).unwrap();
        assert!(distance(&nt(&x, &w).unwrap(), &nt(&x, &wide).unwrap()) < 1e-4);
        let sum = |w: &Tensor| {
            let dx = x.affine(1.0, 0.0).unwrap();
            nn_add(&dx, &dy, w, 0.5).unwrap();
            dx
        };
        assert!(distance(&sum(&w), &sum(&wide)) < 1e-3);
    }
}
