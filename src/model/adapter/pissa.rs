//! Where `PiSSA` starts (Meng et al., 2024): A and B hold the principal singular values and vectors of a weight, which
//! the frozen part then lacks: `W = W_res + s·B·A`, `A = √(Σ/s)·Vᵀ`, `B = U·√(Σ/s)`. The sign of a singular pair is
//! free: here the largest entry of each row of A is positive.

use crate::data::rng::Rng;
use crate::error::Result;
use crate::ops::host;
use candle_core::Tensor;
use fttrain_kernels::cpu::eigen::{dot, gram, top_eigen};
use rayon::prelude::*;

/// A matrix in f64, by rows.
struct Rows {
    values: Vec<f64>,
    width: usize,
}

/// What is decomposed, and how.
#[derive(Debug, Clone, Copy)]
pub struct How<'a> {
    /// R; at most the smaller side of the weight.
    pub rank: usize,
    /// s.
    pub scale: f32,
    /// Rounds of subspace iteration (Halko et al., 2011, without oversampling, as `torch.svd_lowrank` does it for
    /// PEFT); `None` decomposes exactly.
    pub rounds: Option<usize>,
    /// Noise of the first subspace follows from it,
    pub seed: u64,
    /// and from the module's name.
    pub module: &'a str,
}

/// A `[R, in]` and B `[out, R]` of the weight `[out, in]`, and what is left of it, in f32.
pub fn start(weight: &Tensor, how: &How<'_>) -> Result<(Tensor, Tensor, Tensor)> {
    let (outputs, inputs) = weight.dims2()?;
    let values = host::read(weight)?;
    let is_wide = outputs <= inputs;
    let short = if is_wide { rows(&values, inputs) } else { columns(&values, inputs) };
    let (sizes, on_short, on_long) = match how.rounds {
        None => exact(&short, how.rank),
        Some(rounds) => iterated(&short, rounds, how),
    };
    let (mut left, mut right) = if is_wide { (on_short, on_long) } else { (on_long, on_short) };
    for ((u, v), size) in left.rows_mut().zip(right.rows_mut()).zip(&sizes) {
        let largest = v.iter().copied().fold(0.0, |m: f64, x| if x.abs() > m.abs() { x } else { m });
        let factor = (size / f64::from(how.scale)).sqrt();
        let factor = if largest < 0.0 { -factor } else { factor };
        scale(u, factor);
        scale(v, factor);
    }
    let a = host::tensor(narrow(&right.values), (how.rank, inputs))?;
    let b = host::tensor(narrow(&columns_of(&left).values), (outputs, how.rank))?;
    drop(values);
    let rest = (weight - (b.matmul(&a)? * f64::from(how.scale))?)?;
    Ok((a, b, rest))
}

/// Singular values and the vectors on the short and on the long side, from the eigenvectors of the short side's
/// products.
fn exact(short: &Rows, rank: usize) -> (Vec<f64>, Rows, Rows) {
    let n = short.count();
    let (squares, vectors) = top_eigen(gram(&short.values, n, short.width), n, rank);
    let on_short = Rows { values: vectors, width: n };
    let sizes: Vec<f64> = squares.into_iter().map(|x| x.max(0.0).sqrt()).collect();
    let mut on_long = on_short.times(short);
    shorten(&mut on_long, &sizes);
    (sizes, on_short, on_long)
}

fn iterated(short: &Rows, rounds: usize, how: &How<'_>) -> (Vec<f64>, Rows, Rows) {
    let mut noise = Rng::new(how.seed, how.module, 0, 0);
    let values = (0..how.rank * short.width).map(|_| noise.normal()).collect();
    let first = Rows { values, width: short.width };
    let mut basis = first.against(short).orthonormal();
    for _ in 0..rounds {
        let other = basis.times(short).orthonormal();
        basis = other.against(short).orthonormal();
    }
    let (sizes, inside, on_long) = exact(&basis.times(short), how.rank);
    (sizes, inside.times(&basis), on_long)
}

/// Divides each row by its singular value; one of zero has no direction, and none is needed.
fn shorten(rows: &mut Rows, sizes: &[f64]) {
    for (row, size) in rows.rows_mut().zip(sizes) {
        let factor = if *size > 0.0 { 1.0 / size } else { 0.0 };
        scale(row, factor);
    }
}

fn scale(row: &mut [f64], factor: f64) {
    for x in row {
        *x *= factor;
    }
}

impl Rows {
    fn count(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.width.max(1))
    }

    fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f64]> {
        self.values.chunks_exact_mut(self.width.max(1))
    }

    /// `self·m`.
    fn times(&self, m: &Self) -> Self {
        let mut values = vec![0.0; self.count() * m.width];
        values.par_chunks_exact_mut(m.width.max(1)).enumerate().for_each(|(i, out)| {
            let weights = &self.values[i * self.width..(i + 1) * self.width];
            for (weight, row) in weights.iter().zip(m.rows()) {
                out.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
            }
        });
        Self { values, width: m.width }
    }

    /// `self·mᵀ`.
    fn against(&self, m: &Self) -> Self {
        let width = m.count();
        let rows: Vec<f64> = self
            .values
            .par_chunks_exact(self.width.max(1))
            .flat_map_iter(|x| m.rows().map(move |row| dot(x, row)))
            .collect();
        Self { values: rows, width }
    }

    /// The same span in unit vectors at right angles: Gram and Schmidt, twice over, which is enough.
    fn orthonormal(mut self) -> Self {
        let width = self.width;
        for i in 0..self.count() {
            let (before, rest) = self.values.split_at_mut(i * width);
            let row = &mut rest[..width];
            for _ in 0..2 {
                for other in before.chunks_exact(width) {
                    let along = dot(row, other);
                    row.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
                }
            }
            let norm = dot(row, row).sqrt();
            let factor = if norm > 0.0 { 1.0 / norm } else { 0.0 };
            scale(row, factor);
        }
        self
    }
}

fn rows(values: &[f32], width: usize) -> Rows {
    Rows { values: values.iter().copied().map(f64::from).collect(), width }
}

fn columns(values: &[f32], width: usize) -> Rows {
    columns_of(&rows(values, width))
}

fn columns_of(m: &Rows) -> Rows {
    let mut values = Vec::with_capacity(m.values.len());
    for column in 0..m.width {
        values.extend(m.rows().map(|row| row[column]));
    }
    Rows { values, width: m.count() }
}

#[allow(clippy::cast_possible_truncation)] // Rounding is meant.
fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|x| *x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(outputs: usize, inputs: usize) -> Tensor {
        let mut noise = Rng::new(7, "weight", 0, 0);
        let values = narrow(&(0..outputs * inputs).map(|_| noise.normal()).collect::<Vec<_>>());
        host::tensor(values, (outputs, inputs)).unwrap()
    }

    fn how(rank: usize, rounds: Option<usize>) -> How<'static> {
        How { rank, scale: 2.0, rounds, seed: 3, module: "q" }
    }

    fn squares(t: &Tensor) -> f64 {
        host::read(t).unwrap().iter().map(|x| f64::from(*x).powi(2)).sum()
    }

    #[test]
    fn the_parts_make_the_weight_and_the_whole_rank_leaves_nothing() {
        for (outputs, inputs) in [(6, 11), (11, 6), (5, 5)] {
            let w = weight(outputs, inputs);
            let (a, b, rest) = start(&w, &how(3, None)).unwrap();
            let again = (&rest + (b.matmul(&a).unwrap() * 2.0).unwrap()).unwrap();
            assert!(squares(&(&again - &w).unwrap()) < 1e-10);
            let taken = squares(&w) - squares(&rest);
            // What is taken lies at right angles to what is left: squares add up.
            assert!((taken - squares(&(b.matmul(&a).unwrap() * 2.0).unwrap())).abs() < 1e-4);
            let (_, _, rest) = start(&w, &how(outputs.min(inputs), None)).unwrap();
            assert!(squares(&rest) < 1e-9, "{outputs} {inputs}");
        }
    }

    #[test]
    fn rounds_come_close_to_the_whole_decomposition() {
        let w = weight(40, 24);
        let left = |rounds| squares(&start(&w, &how(6, rounds)).unwrap().2);
        let exact = left(None);
        assert!(left(Some(1)) < 1.3 * exact && left(Some(1)) > exact);
        assert!((left(Some(200)) - exact).abs() < 1e-3 * exact);
    }
}
