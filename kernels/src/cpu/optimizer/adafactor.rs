//! Adafactor (Shazeer & Stern, 2018) as transformers computes it for its `adafactor` choice: a matrix's second moment
//! is kept as the means of its rows and columns, the update is scaled down to a root mean square of 1, the learning
//! rate is the schedule's, and there is no first moment.

use super::super::dispatch;
use super::{CHUNK, Values, sum_of_squares};
use rayon::prelude::*;

/// Added to squares.
const EPS: f32 = 1e-30;
/// Rows whose columns are summed before they are added up.
const ROWS: usize = 64;

/// The step's constants for one tensor.
#[derive(Debug, Clone, Copy)]
pub struct Adafactor {
    /// Learning rate of this step.
    pub lr: f32,
    /// 1 − β₂, which is `t^−0.8` at update t.
    pub new: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Gradients are multiplied by this first.
    pub grad_scale: f32,
}

/// One update of a matrix, `rows` and `columns` the means of its squared gradients.
pub fn adafactor_matrix(
    param: Values<'_>,
    rows: &mut [f32],
    columns: &mut [f32],
    grad: &[f32],
    how: &Adafactor,
) {
    let width = columns.len();
    accumulate(rows, columns, grad, how);
    let mean = rows.iter().map(|&x| f64::from(x)).sum::<f64>() / rows.len() as f64;
    #[allow(clippy::cast_possible_truncation)] // The update runs in f32.
    let by_row: Vec<f32> = rows.iter().map(|row| (f64::from(*row) / mean).sqrt().recip() as f32).collect();
    let by_column: Vec<f32> = columns.iter().map(|column| column.sqrt().recip()).collect();
    let scaled = |row: usize, g: &[f32], out: &mut [f32]| {
        scale_row(g, &by_column, by_row[row] * how.grad_scale, out);
    };
    let squares: f64 = grad
        .par_chunks(width)
        .enumerate()
        .map(|(row, g)| {
            let mut u = vec![0f32; width];
            scaled(row, g, &mut u);
            sum_of_squares(&u)
        })
        .collect::<Vec<_>>()
        .into_iter()
        .sum();
    let lr = shortened(how.lr, squares, grad.len());
    let keep = 1.0 - how.lr * how.weight_decay;
    // Whole rows, so that a part knows its factors; a multiple of 4 rows, so that draws do not depend on the width.
    let part_rows = (CHUNK / width.max(1)).max(1).next_multiple_of(4);
    let parts = param.parts(part_rows * width).into_par_iter().enumerate();
    parts.zip(grad.par_chunks(part_rows * width)).for_each(|((part, param), grad)| {
        param.update(|param| {
            let mut u = vec![0f32; width];
            for (i, (p, g)) in param.chunks_mut(width).zip(grad.chunks(width)).enumerate() {
                scaled(part * part_rows + i, g, &mut u);
                descend(p, &u, keep, lr);
            }
        });
    });
}

/// One update of a vector, `v` the mean of its squared gradients.
pub fn adafactor(param: Values<'_>, v: &mut [f32], grad: &[f32], how: &Adafactor) {
    let old = 1.0 - how.new;
    let mut u = Vec::with_capacity(grad.len());
    for (v, g) in v.iter_mut().zip(grad) {
        let g = g * how.grad_scale;
        *v = *v * old + (g * g + EPS) * how.new;
        u.push(g / v.sqrt());
    }
    let lr = shortened(how.lr, sum_of_squares(&u), u.len());
    let keep = 1.0 - how.lr * how.weight_decay;
    for (param, u) in param.parts(CHUNK).into_iter().zip(u.chunks(CHUNK)) {
        param.update(|param| descend(param, u, keep, lr));
    }
}

/// The rate for an update whose squares have this sum.
#[allow(clippy::cast_possible_truncation)] // The update runs in f32.
fn shortened(lr: f32, squares: f64, count: usize) -> f32 {
    let rms = (squares / count.max(1) as f64).sqrt();
    (f64::from(lr) / rms.max(1.0)) as f32
}

/// Moves the means towards those of this gradient.
fn accumulate(rows: &mut [f32], columns: &mut [f32], grad: &[f32], how: &Adafactor) {
    let (width, height, old) = (columns.len(), rows.len(), 1.0 - how.new);
    let sums: Vec<Vec<f32>> = grad
        .par_chunks(width * ROWS)
        .zip(rows.par_chunks_mut(ROWS))
        .map(|(grad, rows)| {
            let mut sums = vec![0f32; width];
            for (row, g) in rows.iter_mut().zip(grad.chunks(width)) {
                let sum = add_squares(g, how.grad_scale, &mut sums);
                *row = *row * old + how.new * (sum / width as f32);
            }
            sums
        })
        .collect();
    columns.par_iter_mut().enumerate().for_each(|(i, column)| {
        let sum: f32 = sums.iter().map(|sums| sums[i]).sum();
        *column = *column * old + how.new * (sum / height as f32);
    });
}

dispatch! {
    /// Adds the squares of a row to the sums of the columns; returns their sum.
    fn add_squares(g: &[f32], scale: f32, sums: &mut [f32]) -> f32 {
        let mut total = [0f32; 16];
        for (g, sums) in g.chunks(16).zip(sums.chunks_mut(16)) {
            for ((g, sum), total) in g.iter().zip(sums).zip(&mut total) {
                let g = g * scale;
                let square = g * g + EPS;
                *sum += square;
                *total += square;
            }
        }
        total.into_iter().sum()
    }
}

dispatch! {
    fn scale_row(g: &[f32], by_column: &[f32], by_row: f32, out: &mut [f32]) {
        for ((out, g), c) in out.iter_mut().zip(g).zip(by_column) {
            *out = g * by_row * c;
        }
    }
}

dispatch! {
    fn descend(p: &mut [f32], u: &[f32], keep: f32, lr: f32) {
        for (p, u) in p.iter_mut().zip(u) {
            *p = *p * keep - lr * u;
        }
    }
}
