//! A linear layer with an optional low-rank adapter (Hu et al., 2021): `y = x·Wᵀ + bias + s·drop(x)·Aᵀ·Bᵀ`.
//!
//! Backward, small side first: `dx = dy·W + drop(s·(dy·B)·A)`, `dA = s·(dy·B)ᵀ·drop(x)`, `dB = s·dyᵀ·(drop(x)·Aᵀ)`;
//! a frozen W gets no gradient, a trained one `dW = dyᵀ·x`.

use super::device::Gpu;
use super::dora::Dora;
use super::dropout::{self, Noise};
use super::matmul::{self, Held, Precision};
use super::{Grads, Matrix, ParamId, Weight, gpu, host, narrow, residual};
use crate::error::{Error, Kind, Result};
use candle_core::{DType, Tensor};
use fttrain_kernels::cpu::{Out, Packed, Product, Start, Term, product_new, products};

/// The layer's weights.
#[derive(Debug, Clone)]
pub struct Linear {
    /// W `[out, in]`.
    pub weight: Weight<Matrix>,
    /// `[out]`.
    pub bias: Option<Weight>,
    /// The adapter.
    pub lora: Option<Lora>,
    /// What its products are rounded to.
    pub precision: Precision,
}

/// A low-rank adapter.
#[derive(Debug, Clone)]
pub struct Lora {
    /// A `[R, in]`.
    pub a: Weight,
    /// B `[out, R]`.
    pub b: Weight,
    /// s = α/R, or α/√R with rsLoRA.
    pub scale: f32,
    /// Drop probability on the input of A.
    pub dropout: f32,
    /// The layer's own stream of noise.
    pub site: u64,
    /// Trained lengths of the rows of W + s·B·A.
    pub dora: Option<Dora>,
}

/// What the backward pass needs beside the input, which its maker keeps or makes again.
pub struct Saved {
    /// drop(x)·Aᵀ `[N, R]`.
    pub(super) xa: Option<Tensor>,
    /// ‖W + s·B·A‖ `[out]` where lengths are trained.
    pub(super) norms: Vec<f32>,
}

impl Linear {
    /// x `[N, in]` → `[N, out]`; `noise` is `None` outside training.
    pub fn forward(&self, x: &Tensor, noise: Option<Noise>) -> Result<(Tensor, Saved)> {
        let [made] = forward([self], x, noise, Precision::F32)?;
        Ok(made)
    }

    /// dy `[N, out]` → the gradient of x `[N, in]`; `None` when not `wanted`.
    pub fn backward(
        &self,
        x: &Tensor,
        saved: &Saved,
        dy: &Tensor,
        wanted: bool,
        noise: Option<Noise>,
        grads: &mut Grads,
    ) -> Result<Option<Tensor>> {
        backward(&[(self, saved, dy)], x, wanted, noise, grads)
    }

    /// `W + s·B·A` `[out, in]`, its rows of their trained lengths, in place of an f32 W that nothing else uses.
    pub fn merged(self) -> Result<Tensor> {
        let weight = match self.weight.value {
            Matrix::Dense(weight) if weight.dtype() == DType::F32 => weight,
            other => other.to_f32()?,
        };
        if let Some(lora) = self.lora {
            matmul::nn_add(&weight, &lora.b.value, &lora.a.value, lora.scale)?;
            if let Some(dora) = lora.dora {
                dora.set_lengths(&weight)?;
            }
        }
        Ok(weight)
    }

    fn dora(&self) -> Option<(&Lora, &Dora)> {
        let lora = self.lora.as_ref()?;
        Some((lora, lora.dora.as_ref()?))
    }

    /// Whether anything in it is trained.
    pub fn is_trained(&self) -> bool {
        self.trained().next().is_some()
    }

    /// Its trained parameters.
    pub fn trained(&self) -> impl Iterator<Item = ParamId> {
        let lora =
            self.lora.iter().flat_map(|l| [Some(&l.a), Some(&l.b), l.dora.as_ref().map(|d| &d.magnitude)]);
        let vectors = lora.flatten().chain(&self.bias).filter_map(|w| w.param);
        self.weight.param.into_iter().chain(vectors)
    }
}

/// Layers that share their input x `[N, in]`, f32 or bf16, which is packed once, → `[N, out]` of each in f32; on a GPU as
/// ops of the precision `reader` keep it.
pub fn forward<const L: usize>(
    layers: [&Linear; L],
    x: &Tensor,
    noise: Option<Noise>,
    reader: Precision,
) -> Result<[(Tensor, Saved); L]> {
    if Gpu::of(x).is_some() || layers.iter().any(|layer| layer.dora().is_some()) {
        return each_forward(layers, x, noise, reader);
    }
    let rows = x.dim(0)?;
    let held = Held::new(x)?;
    let packed = Packed::new(held.side(), layers[0].precision);
    let mut parts = Vec::with_capacity(L);
    for layer in layers {
        let low =
            layer.lora.as_ref().map(|lora| lora.forward(x, &packed, layer.precision, noise)).transpose()?;
        parts.push((Sides::of(layer)?, low, Vec::new()));
    }
    let all = parts.iter_mut().map(|(sides, low, y)| one_forward(rows, &packed, sides, low.as_ref(), y));
    products(all.collect())?;
    let made = parts.into_iter().map(|(sides, low, y)| {
        let y = host::tensor(y, (rows, sides.weight.side().lines()))?;
        Ok((y, Saved { xa: low.map(|low| low.xa), norms: Vec::new() }))
    });
    let made = made.collect::<Result<Vec<_>>>()?;
    made.try_into().map_err(|_| Error::new(Kind::Bug, "not as many outputs as layers"))
}

/// The same on a GPU, or where a layer has trained lengths: one after the other.
fn each_forward<const L: usize>(
    layers: [&Linear; L],
    x: &Tensor,
    noise: Option<Noise>,
    reader: Precision,
) -> Result<[(Tensor, Saved); L]> {
    let on_gpu =
        Gpu::of(x).map(|gpu| Ok::<_, Error>((gpu::linear::input(&gpu, layers[0], x)?, gpu))).transpose()?;
    let mut made = Vec::with_capacity(L);
    for layer in layers {
        made.push(match (&on_gpu, layer.dora()) {
            (Some((input, gpu)), _) => gpu::linear::forward(gpu, layer, (x, input), noise, reader)?,
            (None, Some((lora, dora))) => dora.forward(layer, lora, x, noise)?,
            (None, None) => layer.forward(x, noise)?,
        });
    }
    made.try_into().map_err(|_| Error::new(Kind::Bug, "not as many outputs as layers"))
}

fn one_forward<'a>(
    rows: usize,
    x: &'a Packed,
    sides: &'a Sides<'_>,
    low: Option<&'a Low>,
    y: &'a mut Vec<f32>,
) -> Product<'a> {
    let weight = sides.weight.side();
    let mut terms = vec![Term { left: x, right: weight }];
    if let (Some(low), Some((_, b))) = (low, &sides.lora) {
        terms.push(Term { left: &low.packed, right: b.side() });
    }
    let start = sides.bias.as_deref().map_or(Start::Nothing, Start::Row);
    Product { shape: (rows, weight.lines()), terms, start, out: Out::Fresh(y) }
}

/// Layers that share their input x `[N, in]`, each with the gradient of its output → the gradient of x, in one sum
/// over all of them; `None` when not `wanted`. Gradients of what is trained are added to `grads`.
pub fn backward(
    layers: &[(&Linear, &Saved, &Tensor)],
    x: &Tensor,
    wanted: bool,
    noise: Option<Noise>,
    grads: &mut Grads,
) -> Result<Option<Tensor>> {
    if let Some(gpu) = Gpu::of(x) {
        let mut dx = None;
        let Some((first, ..)) = layers.first() else { return Ok(dx) };
        let input = gpu::linear::input(&gpu, first, x)?;
        for &layer in layers {
            gpu::linear::backward(&gpu, layer, (x, &input), &mut dx, wanted, noise, grads)?;
        }
        return Ok(dx);
    }
    if layers.iter().any(|(layer, ..)| layer.dora().is_some()) {
        return each_backward(layers, x, wanted, noise, grads);
    }
    let mut parts = Vec::with_capacity(layers.len());
    for &(layer, saved, dy) in layers {
        layer.own_gradients(x, dy, grads)?;
        if !wanted && layer.lora.is_none() {
            continue;
        }
        let packed = Packed::new(Held::new(dy)?.side(), layer.precision);
        let low = match (&layer.lora, &saved.xa) {
            (Some(lora), Some(xa)) => {
                Some(lora.backward(x, xa, dy, &packed, layer.precision, noise, grads)?)
            }
            _ => None,
        };
        parts.push((layer, Sides::of(layer)?, packed, low));
    }
    if !wanted {
        return Ok(None);
    }
    let mut terms = Vec::with_capacity(2 * parts.len());
    for (layer, sides, dy, low) in &parts {
        terms.push(Term { left: dy, right: sides.weight.side().t() });
        if let (Some(low), Some((a, _)), false) = (low, &sides.lora, layer.drops(noise)) {
            terms.push(Term { left: low, right: a.side().t() });
        }
    }
    let shape = x.dims2()?;
    let mut dx = Vec::new();
    products(vec![Product { shape, terms, start: Start::Nothing, out: Out::Fresh(&mut dx) }])?;
    let dx = host::tensor(dx, shape)?;
    for (layer, sides, _, low) in &parts {
        if let (Some(lora), Some(low), Some((a, _)), true) =
            (&layer.lora, low, &sides.lora, layer.drops(noise))
        {
            let through = host::tensor(product_new(low, a.side().t())?, shape)?;
            residual::add(&dx, &lora.dropped(&through, noise)?)?;
        }
    }
    Ok(Some(dx))
}

/// The same where a layer has trained lengths: one after the other.
fn each_backward(
    layers: &[(&Linear, &Saved, &Tensor)],
    x: &Tensor,
    wanted: bool,
    noise: Option<Noise>,
    grads: &mut Grads,
) -> Result<Option<Tensor>> {
    let mut sum: Option<Tensor> = None;
    for &(layer, saved, dy) in layers {
        let own = match layer.dora() {
            Some((lora, dora)) => {
                layer.own_gradients(x, dy, grads)?;
                dora.backward(layer, lora, x, saved, dy, wanted, noise, grads)?
            }
            None => layer.backward(x, saved, dy, wanted, noise, grads)?,
        };
        sum = match (sum, own) {
            (Some(sum), Some(own)) => {
                residual::add(&sum, &own)?;
                Some(sum)
            }
            (sum, own) => sum.or(own),
        };
    }
    Ok(sum)
}

/// A layer's weights, held for reading.
struct Sides<'a> {
    weight: Held<'a>,
    bias: Option<Vec<f32>>,
    /// A and B.
    lora: Option<(Held<'a>, Held<'a>)>,
}

impl<'a> Sides<'a> {
    fn of(layer: &'a Linear) -> Result<Self> {
        let bias = match &layer.bias {
            Some(bias) => Some(host::read(&bias.value.to_dtype(DType::F32)?)?.to_vec()),
            None => None,
        };
        let lora = match &layer.lora {
            Some(lora) => Some((Held::new(&lora.a.value)?, Held::new(&lora.b.value)?)),
            None => None,
        };
        Ok(Self { weight: Held::new(&layer.weight.value)?, bias, lora })
    }
}

impl Linear {
    fn drops(&self, noise: Option<Noise>) -> bool {
        self.lora.as_ref().is_some_and(|lora| lora.drops(noise))
    }

    /// Gradients of W and of the bias, where they are trained.
    fn own_gradients(&self, x: &Tensor, dy: &Tensor, grads: &mut Grads) -> Result<()> {
        if let Some(id) = self.weight.param {
            matmul::tn(grads.slot(id), dy, x, 1.0, self.precision)?;
        }
        if let Some(id) = self.bias.as_ref().and_then(|bias| bias.param) {
            add_column_sums(grads.slot(id), dy)?;
        }
        Ok(())
    }
}

impl Saved {
    /// Of a layer without trained lengths.
    pub(super) fn new(xa: Option<Tensor>) -> Self {
        Self { xa, norms: Vec::new() }
    }

    /// Bytes kept.
    pub fn bytes(&self) -> u64 {
        self.xa.as_ref().map_or(0, |xa| 4 * xa.elem_count() as u64) + 4 * self.norms.len() as u64
    }
}

/// The small side of an adapter's forward pass.
struct Low {
    /// drop(x)·Aᵀ `[N, R]`.
    xa: Tensor,
    /// The same times s.
    packed: Packed,
}

impl Lora {
    /// Whether dropout has a part in this pass.
    pub(super) fn drops(&self, noise: Option<Noise>) -> bool {
        noise.is_some() && self.dropout > 0.0
    }

    pub(super) fn dropped(&self, x: &Tensor, noise: Option<Noise>) -> Result<Tensor> {
        match noise {
            Some(noise) if self.drops(Some(noise)) => {
                let x = if Gpu::of(x).is_some() { x.clone() } else { narrow::wide(x)? };
                dropout::apply(&x, self.dropout, self.site, noise)
            }
            _ => Ok(x.clone()),
        }
    }

    fn forward(
        &self,
        x: &Tensor,
        packed: &Packed,
        precision: Precision,
        noise: Option<Noise>,
    ) -> Result<Low> {
        let a = Held::new(&self.a.value)?;
        let xa = if self.drops(noise) {
            product_new(&Packed::new(Held::new(&self.dropped(x, noise)?)?.side(), precision), a.side())?
        } else {
            product_new(packed, a.side())?
        };
        let xa = host::tensor(xa, (packed.lines(), a.side().lines()))?;
        let scaled = Packed::new(Held::new(&xa)?.side().scaled(self.scale), precision);
        Ok(Low { xa, packed: scaled })
    }

    /// Adds to the gradients of A and B → s·dy·B `[N, R]`.
    fn backward(
        &self,
        x: &Tensor,
        xa: &Tensor,
        dy: &Tensor,
        packed: &Packed,
        precision: Precision,
        noise: Option<Noise>,
        grads: &mut Grads,
    ) -> Result<Packed> {
        if let Some(id) = self.b.param {
            matmul::tn(grads.slot(id), dy, xa, self.scale, precision)?;
        }
        let b = Held::new(&self.b.value)?;
        let dy_b = host::tensor(product_new(packed, b.side().t())?, xa.shape())?;
        if let Some(id) = self.a.param {
            matmul::tn(grads.slot(id), &dy_b, &self.dropped(x, noise)?, self.scale, precision)?;
        }
        Ok(Packed::new(Held::new(&dy_b)?.side().scaled(self.scale), precision))
    }
}

/// Adds `bias` `[out]` to each row of `y` `[N, out]`.
pub(super) fn add_to_rows(y: &Tensor, bias: &Tensor) -> Result<()> {
    let wide = bias.to_dtype(DType::F32)?;
    let bias = host::read(&wide)?;
    host::edit(y, |y| {
        for row in y.chunks_exact_mut(bias.len()) {
            for (y, b) in row.iter_mut().zip(bias.iter()) {
                *y += b;
            }
        }
    })
}

/// Adds the sum of the rows of `dy` `[N, out]`, in their order.
fn add_column_sums(sum: &mut Option<Tensor>, dy: &Tensor) -> Result<()> {
    let width = dy.dim(1)?;
    let sum = match sum {
        Some(sum) => sum,
        None => sum.insert(host::zeros(width)?),
    };
    let dy = host::read(dy)?;
    host::edit(sum, |sum| {
        for row in dy.chunks_exact(width) {
            for (s, x) in sum.iter_mut().zip(row) {
                *s += x;
            }
        }
    })
}
