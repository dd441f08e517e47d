//! Eigenvalues and eigenvectors of a symmetric matrix in f64: Householder's reduction to three diagonals, then QL with
//! implicit shifts (Golub & Van Loan, *Matrix Computations*, 8.3), its rotations gathered first and applied panel by
//! panel.

use super::dispatch;
use rayon::prelude::*;

/// Columns that one task rotates: a panel of 2,048 rows fits the second cache.
const PANEL: usize = 16;
/// Shifts that one eigenvalue may take; two are usual.
const MOST_SHIFTS: usize = 60;

/// `t·tᵀ` `[n, n]` for `t` of n rows of `m` values.
pub fn gram(t: &[f64], n: usize, m: usize) -> Vec<f64> {
    let row = |i: usize| &t[i * m..(i + 1) * m];
    let mut product = vec![0.0; n * n];
    product.par_chunks_mut(n.max(1)).enumerate().for_each(|(i, out)| {
        for (j, out) in out.iter_mut().enumerate() {
            *out = dot(row(i), row(j));
        }
    });
    product
}

/// The `count` largest eigenvalues of the symmetric `a` `[n, n]`, largest first, and their unit vectors, a row each.
pub fn top_eigen(mut a: Vec<f64>, n: usize, count: usize) -> (Vec<f64>, Vec<f64>) {
    let mut reduced = reduce(&mut a, n);
    let rotations = diagonalise(&mut reduced.diagonal, &mut reduced.beside);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| reduced.diagonal[j].total_cmp(&reduced.diagonal[i]).then(i.cmp(&j)));
    order.truncate(count);
    let mut vectors = vec![0.0; order.len() * n];
    let starts: Vec<usize> = (0..n).step_by(PANEL).collect();
    let panels: Vec<Vec<f64>> =
        starts.par_iter().map(|&first| vectors_panel(&reduced, &rotations, n, first)).collect();
    for (panel, &first) in panels.iter().zip(&starts) {
        let width = panel.len() / n;
        for (&from, to) in order.iter().zip(vectors.chunks_exact_mut(n)) {
            to[first..first + width].copy_from_slice(&panel[from * width..(from + 1) * width]);
        }
    }
    (order.into_iter().map(|i| reduced.diagonal[i]).collect(), vectors)
}

/// Three diagonals, and the reflections that made them: reflection k has the vector `[k, k+1..n]` of `vectors`.
struct Reduced {
    diagonal: Vec<f64>,
    beside: Vec<f64>,
    vectors: Vec<f64>,
    factors: Vec<f64>,
}

/// Turns rows `at` and `at + 1`.
struct Rotation {
    at: usize,
    cos: f64,
    sin: f64,
}

fn reduce(a: &mut [f64], n: usize) -> Reduced {
    let mut made = Reduced {
        diagonal: vec![0.0; n],
        beside: vec![0.0; n],
        vectors: vec![0.0; n * n],
        factors: vec![0.0; n],
    };
    for k in 0..n.saturating_sub(2) {
        let v = &mut made.vectors[k * n + k + 1..(k + 1) * n];
        v.copy_from_slice(&a[k * n + k + 1..(k + 1) * n]);
        let norm = dot(v, v).sqrt();
        if norm == 0.0 {
            continue;
        }
        let (first, factor) = (v[0], 1.0 / (norm * (norm + v[0].abs())));
        made.beside[k] = -norm.copysign(first);
        made.factors[k] = factor;
        v[0] -= made.beside[k];
        reflect(&mut a[(k + 1) * n..], n, k + 1, v, factor);
    }
    for (i, diagonal) in made.diagonal.iter_mut().enumerate() {
        *diagonal = a[i * n + i];
    }
    if n > 1 {
        made.beside[n - 2] = a[(n - 2) * n + n - 1];
    }
    made
}

/// `(1 − f·v·vᵀ)·a·(1 − f·v·vᵀ)` in place, on the columns from `from` of the rows given.
fn reflect(rows: &mut [f64], n: usize, from: usize, v: &[f64], factor: f64) {
    let mut w: Vec<f64> = rows.par_chunks(n).map(|row| factor * dot(&row[from..], v)).collect();
    let along = 0.5 * factor * dot(&w, v);
    w.iter_mut().zip(v).for_each(|(w, v)| *w -= along * v);
    rows.par_chunks_mut(n).zip(v.par_iter().zip(&w)).for_each(|(row, (&vi, &wi))| {
        subtract_two(&mut row[from..], vi, &w, wi, v);
    });
}

/// QL on the diagonals: what is left on the diagonal are the eigenvalues.
fn diagonalise(d: &mut [f64], e: &mut [f64]) -> Vec<Rotation> {
    let (n, mut rotations) = (d.len(), Vec::new());
    for l in 0..n {
        for _ in 0..MOST_SHIFTS {
            let small = |m: &usize| e[*m].abs() <= f64::EPSILON * (d[*m].abs() + d[*m + 1].abs());
            let m = (l..n - 1).find(small).unwrap_or(n - 1);
            if m == l {
                break;
            }
            sweep(d, e, l, m, &mut rotations);
        }
    }
    rotations
}

/// One shifted sweep over the block `l..=m`.
fn sweep(d: &mut [f64], e: &mut [f64], l: usize, m: usize, rotations: &mut Vec<Rotation>) {
    let half = (d[l + 1] - d[l]) / (2.0 * e[l]);
    let mut g = d[m] - d[l] + e[l] / (half + half.hypot(1.0).copysign(half));
    let (mut sin, mut cos, mut p) = (1.0, 1.0, 0.0);
    for i in (l..m).rev() {
        let (f, b) = (sin * e[i], cos * e[i]);
        let r = f.hypot(g);
        e[i + 1] = r;
        if r == 0.0 {
            // The block has come apart by itself.
            d[i + 1] -= p;
            e[m] = 0.0;
            return;
        }
        (sin, cos) = (f / r, g / r);
        let rest = d[i + 1] - p;
        let t = (d[i] - rest) * sin + 2.0 * cos * b;
        p = sin * t;
        d[i + 1] = rest + p;
        g = cos * t - b;
        rotations.push(Rotation { at: i, cos, sin });
    }
    d[l] -= p;
    e[l] = g;
    e[m] = 0.0;
}

/// Columns from `first` of the matrix whose rows are the eigenvectors.
fn vectors_panel(reduced: &Reduced, rotations: &[Rotation], n: usize, first: usize) -> Vec<f64> {
    let width = PANEL.min(n - first);
    let mut panel = vec![0.0; n * width];
    for column in 0..width {
        panel[(first + column) * width + column] = 1.0;
    }
    for (k, &factor) in reduced.factors.iter().enumerate().filter(|(_, f)| **f != 0.0) {
        reflect_panel(
            &mut panel[(k + 1) * width..],
            width,
            &reduced.vectors[k * n + k + 1..(k + 1) * n],
            factor,
        );
    }
    for Rotation { at, cos, sin } in rotations {
        let (above, below) = panel[at * width..(at + 2) * width].split_at_mut(width);
        rotate(above, below, *cos, *sin);
    }
    panel
}

fn reflect_panel(panel: &mut [f64], width: usize, v: &[f64], factor: f64) {
    let mut along = vec![0.0; width];
    for (row, v) in panel.chunks_exact(width).zip(v) {
        along.iter_mut().zip(row).for_each(|(sum, x)| *sum += v * x);
    }
    for (row, v) in panel.chunks_exact_mut(width).zip(v) {
        row.iter_mut().zip(&along).for_each(|(x, sum)| *x -= factor * v * sum);
    }
}

dispatch! {
    fn rotate(above: &mut [f64], below: &mut [f64], cos: f64, sin: f64) {
        for (a, b) in above.iter_mut().zip(below) {
            (*a, *b) = (cos * *a - sin * *b, sin * *a + cos * *b);
        }
    }
}

dispatch! {
    fn subtract_two(row: &mut [f64], vi: f64, w: &[f64], wi: f64, v: &[f64]) {
        for ((x, w), v) in row.iter_mut().zip(w).zip(v) {
            *x -= vi * w + wi * v;
        }
    }
}

dispatch! {
    /// Σ a·b of two slices of one length, in sixteen sums.
    pub fn dot(a: &[f64], b: &[f64]) -> f64 {
        let mut sums = [0f64; 16];
        let (a, b) = (a.chunks_exact(16), b.chunks_exact(16));
        let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
        for (a, b) in a.zip(b) {
            for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                *sum += a * b;
            }
        }
        sums.into_iter().sum::<f64>() + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A symmetric matrix of small integers, with a repeated row so that it has no full rank.
    fn symmetric(n: usize) -> Vec<f64> {
        let t: Vec<f64> = (0..n * 3).map(|i| ((i * 7919 + 13) % 23) as f64 - 11.0).collect();
        gram(&t, n, 3)
    }

    #[test]
    fn vectors_are_orthonormal_and_the_matrix_only_stretches_them() {
        for n in [1, 2, 3, 5, 17, 40] {
            let a = symmetric(n);
            let (values, vectors) = top_eigen(a.clone(), n, n);
            let scale = values[0].abs().max(1.0);
            assert!(values.windows(2).all(|w| w[0] >= w[1]), "{values:?}");
            let trace: f64 = (0..n).map(|i| a[i * n + i]).sum();
            assert!((values.iter().sum::<f64>() - trace).abs() < 1e-11 * scale * n as f64);
            for (i, v) in vectors.chunks(n).enumerate() {
                for (j, w) in vectors.chunks(n).enumerate() {
                    assert!((dot(v, w) - f64::from(u8::from(i == j))).abs() < 1e-12, "{n}: {i} {j}");
                }
                for (row, x) in a.chunks(n).zip(v) {
                    assert!((dot(row, v) - values[i] * x).abs() < 1e-11 * scale, "{n}: {i}");
                }
            }
        }
    }

    #[test]
    fn fewer_vectors_are_the_largest_ones() {
        let (all, vectors) = top_eigen(symmetric(9), 9, 9);
        let (some, first) = top_eigen(symmetric(9), 9, 2);
        assert_eq!((&all[..2], &vectors[..18]), (&some[..], &first[..]));
    }
}
