//! The three products of a linear layer, on the kernels' driver: a weight is read as it lies in memory, in f32, bf16 or
//! blocks of fewer bits, and no copy of it is ever whole.

use super::Operand;
use super::device::Gpu;
use super::gpu::{product, values::as_dtype};
use super::host;
use crate::error::{Error, Fault, Kind, Result};
use candle_core::{DType, Tensor};
pub use fttrain_kernels::cpu::Precision;
use fttrain_kernels::cpu::{
    self, NoMemory, Out, Packed, Product, Quantised, Source, Start, Term, product_new, products,
};
use half::bf16;
use std::ops::Deref;

/// Columns up to which a gradient is computed turned, so that its larger side need not be packed whole.
const NARROW: usize = 256;

type Values<'a, T> = Box<dyn Deref<Target = [T]> + 'a>;

/// A matrix whose values are held for reading.
pub enum Held<'a> {
    /// Dense.
    F32(Values<'a, f32>, (usize, usize)),
    /// Dense.
    Bf16(Values<'a, bf16>, (usize, usize)),
    /// In blocks.
    Quantised(&'a dyn Quantised),
}

impl<'a> Held<'a> {
    /// Takes hold of the values of `w`.
    ///
    /// # Errors
    /// A tensor that is no contiguous f32 or bf16 matrix on the CPU: a fault of the program.
    pub fn new(w: impl Into<Operand<'a>>) -> Result<Self> {
        Ok(match w.into() {
            Operand::Dense(w) if w.dtype() == DType::BF16 => {
                Self::Bf16(Box::new(host::read_as(w)?), w.dims2()?)
            }
            Operand::Dense(w) => Self::F32(Box::new(host::read(w)?), w.dims2()?),
            Operand::Quantised(blocks) => Self::Quantised(blocks),
            Operand::OnGpu(_) => {
                return Err(Error::new(Kind::Bug, "a product on the CPU of a matrix on a GPU"));
            }
        })
    }

    /// As one side of a product, its rows the lines.
    pub fn side(&self) -> cpu::Operand<'_> {
        match self {
            Self::F32(values, (rows, width)) => cpu::Operand::f32(values, *rows, *width),
            Self::Bf16(values, (rows, width)) => cpu::Operand::new(Source::Bf16(values), *rows, *width),
            Self::Quantised(blocks) => {
                let (rows, width) = blocks.shape();
                cpu::Operand::new(Source::Quantised(*blocks), rows, width)
            }
        }
    }

    /// What products of this weight are made in where nobody says otherwise: a bf16 weight's in bf16.
    fn precision(&self) -> Precision {
        if matches!(self, Self::Bf16(..)) { Precision::Bf16 } else { Precision::F32 }
    }
}

impl Fault for NoMemory {
    fn kind(&self) -> Kind {
        Kind::Resource
    }

    fn hint(&self) -> Option<String> {
        Some("a smaller `micro_batch_size` or `sequence_len` makes every product smaller".into())
    }
}

/// `x·Wᵀ`: x `[N, in]`, W `[out, in]` → `[N, out]`.
pub fn nt<'w>(x: &Tensor, w: impl Into<Operand<'w>>) -> Result<Tensor> {
    let w = w.into();
    if let Some(gpu) = Gpu::of(x) {
        let w = product::dense(w)?;
        let x = as_dtype(&gpu, x, w.dtype())?;
        return product::fresh(&gpu, (&x, false), (w, true), 1.0);
    }
    let (x, w) = (Held::new(x)?, Held::new(w)?);
    fresh(&Packed::new(x.side(), w.precision()), w.side())
}

/// The same, rounded to what is said.
pub fn nt_in<'w>(x: &Tensor, w: impl Into<Operand<'w>>, precision: Precision) -> Result<Tensor> {
    let (x, w) = (Held::new(x)?, Held::new(w)?);
    fresh(&Packed::new(x.side(), precision), w.side())
}

/// `y += scale·x·Wᵀ`.
pub fn nt_add<'w>(y: &Tensor, x: &Tensor, w: impl Into<Operand<'w>>, scale: f32) -> Result<()> {
    let (x, w) = (Held::new(x)?, Held::new(w)?);
    add(y, &Packed::new(x.side().scaled(scale), w.precision()), w.side())
}

/// `dy·W`: dy `[N, out]`, W `[out, in]` → `[N, in]`.
pub fn nn<'w>(dy: &Tensor, w: impl Into<Operand<'w>>) -> Result<Tensor> {
    let (dy, w) = (Held::new(dy)?, Held::new(w)?);
    fresh(&Packed::new(dy.side(), w.precision()), w.side().t())
}

/// The same, rounded to what is said.
pub fn nn_in<'w>(dy: &Tensor, w: impl Into<Operand<'w>>, precision: Precision) -> Result<Tensor> {
    let (dy, w) = (Held::new(dy)?, Held::new(w)?);
    fresh(&Packed::new(dy.side(), precision), w.side().t())
}

/// `dx += scale·dy·W`.
pub fn nn_add<'w>(dx: &Tensor, dy: &Tensor, w: impl Into<Operand<'w>>, scale: f32) -> Result<()> {
    let (dy, w) = (Held::new(dy)?, Held::new(w)?);
    add(dx, &Packed::new(dy.side().scaled(scale), w.precision()), w.side().t())
}

/// `scale·aᵀ·b`: a `[N, p]` in f32, b `[N, q]` → `[p, q]`, stored in `sum` or added to what is there.
pub fn tn(sum: &mut Option<Tensor>, a: &Tensor, b: &Tensor, scale: f32, precision: Precision) -> Result<()> {
    let (p, q) = (a.dim(1)?, b.dim(1)?);
    let (a, b) = (Held::new(a)?, Held::new(b)?);
    if q < p && q <= NARROW {
        let turned = product_new(&Packed::new(b.side().t(), precision), a.side().t().scaled(scale))?;
        return store_turned(sum, &turned, (p, q));
    }
    let left = Packed::new(a.side().t().scaled(scale), precision);
    if let Some(sum) = sum {
        return add(sum, &left, b.side().t());
    }
    *sum = Some(fresh(&left, b.side().t())?);
    Ok(())
}

fn fresh(left: &Packed, right: cpu::Operand<'_>) -> Result<Tensor> {
    let shape = (left.lines(), right.lines());
    host::tensor(product_new(left, right)?, shape)
}

fn add(c: &Tensor, left: &Packed, right: cpu::Operand<'_>) -> Result<()> {
    let shape = c.dims2()?;
    host::edit(c, |c| {
        let (terms, out) = (vec![Term { left, right }], Out::There(c));
        products(vec![Product { shape, terms, start: Start::Standing, out }])
    })??;
    Ok(())
}

/// Stores or adds `turned` `[q, p]` as `[p, q]`.
fn store_turned(sum: &mut Option<Tensor>, turned: &[f32], (p, q): (usize, usize)) -> Result<()> {
    let add = |to: &mut [f32]| {
        for (i, row) in to.chunks_exact_mut(q).enumerate() {
            for (x, turned) in row.iter_mut().zip(turned.chunks_exact(p)) {
                *x += turned[i];
            }
        }
    };
    if let Some(sum) = sum {
        return host::edit(sum, add);
    }
    let mut values = vec![0.0; p * q];
    add(&mut values);
    *sum = Some(host::tensor(values, (p, q))?);
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
            tn(&mut dw, &dy, &x, 2.0, Precision::F32).unwrap();
            let once = (dy.t().unwrap().matmul(&x).unwrap() * 2.0).unwrap();
            assert!(distance(dw.as_ref().unwrap(), &once) < 1e-3);
            tn(&mut dw, &dy, &x, 2.0, Precision::F32).unwrap();
            assert!(distance(dw.as_ref().unwrap(), &(once * 2.0).unwrap()) < 1e-3);
        }
    }

    /// What is rounded to bf16 is off by 2⁻⁹ of itself at most, both sides together by 2⁻⁸: of sums of 1000 terms of
    /// about 1, a few tenths.
    #[test]
    fn a_bf16_weight_gives_what_its_widened_copy_gives() {
        let (inputs, outputs) = (1000, 2500);
        let (x, dy) = (random(5, inputs), random(5, outputs));
        let w = random(outputs, inputs).to_dtype(DType::BF16).unwrap();
        let wide = w.to_dtype(DType::F32).unwrap();
        assert!(distance(&nt(&x, &w).unwrap(), &nt(&x, &wide).unwrap()) < 0.5);
        let rounded = x.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        assert!(distance(&nt(&rounded, &w).unwrap(), &nt(&rounded, &wide).unwrap()) < 1e-3);
        let sum = |w: &Tensor| {
            let dx = x.affine(1.0, 0.0).unwrap();
            nn_add(&dx, &dy, w, 0.5).unwrap();
            dx
        };
        assert!(distance(&sum(&w), &sum(&wide)) < 0.5);
    }
}
