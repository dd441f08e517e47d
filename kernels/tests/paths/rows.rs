//! Kernels over rows: norm, rope, cross-entropy.

use super::{close, on_the_path, random, wide};
use fttrain_kernels::cpu::{cross_entropy_rows, norm_backward, norm_forward, rope};

/// Rows and width; 65 and 130 cross the rows that share a partial sum, 31 to 33 the running sums of a dot product.
const SHAPES: [(usize, usize); 8] =
    [(1, 1), (1, 7), (2, 31), (33, 32), (65, 33), (130, 6), (3, 577), (64, 64)];

#[test]
fn norms_equal_plain_loops() {
    on_the_path();
    for (n, d) in SHAPES {
        let (x, w, eps) = (random(1, n * d, 2.0), random(2, d, 1.0), 1e-3f32);
        let (mut y, mut rstd) = (vec![0.0; n * d], vec![0.0; n]);
        norm_forward(&x, &w, eps, &mut y, &mut rstd);
        let scale =
            |row: &[f64]| 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / d as f64 + f64::from(eps)).sqrt();
        let scales: Vec<f64> = wide(&x).chunks(d).map(scale).collect();
        close("rstd", &rstd, &scales);
        let of = |(i, x): (usize, f64)| x * scales[i / d] * f64::from(w[i % d]);
        close("y", &y, &wide(&x).into_iter().enumerate().map(of).collect::<Vec<_>>());
    }
}

#[test]
fn gradients_of_norms_equal_plain_loops() {
    on_the_path();
    for (n, d) in SHAPES {
        let (x, w, dy) = (random(1, n * d, 2.0), random(2, d, 1.0), random(3, n * d, 1.0));
        let (mut y, mut rstd) = (vec![0.0; n * d], vec![0.0; n]);
        norm_forward(&x, &w, 1e-3, &mut y, &mut rstd);
        let (mut dx, mut dw) = (vec![0f64; n * d], vec![0f64; d]);
        for row in 0..n {
            let at = |i: usize| (f64::from(x[row * d + i]), f64::from(dy[row * d + i]), f64::from(w[i]));
            let r =
                1.0 / ((0..d).map(|i| at(i).0.powi(2)).sum::<f64>() / d as f64 + f64::from(1e-3f32)).sqrt();
            let along: f64 = (0..d).map(|i| at(i).0 * at(i).1 * at(i).2).sum();
            for i in 0..d {
                let (x, dy, w) = at(i);
                dx[row * d + i] = r * dy * w - x * r.powi(3) * along / d as f64;
                dw[i] += dy * x * r;
            }
        }
        let mut ours = vec![7.0; n * d];
        let mut ours_w = vec![0.0; d];
        norm_backward(&x, &w, &rstd, &dy, false, &mut ours, Some(&mut ours_w));
        close("dx", &ours, &dx);
        close("dw", &ours_w, &dw);
        norm_backward(&x, &w, &rstd, &dy, true, &mut ours, Some(&mut ours_w));
        close("dx added", &ours, &dx.iter().map(|x| 2.0 * x).collect::<Vec<_>>());
        close("dw added", &ours_w, &dw.iter().map(|x| 2.0 * x).collect::<Vec<_>>());
        let mut alone = vec![0.0; n * d];
        norm_backward(&x, &w, &rstd, &dy, false, &mut alone, None);
        close("dx without dw", &alone, &dx);
    }
}

#[test]
fn turns_equal_plain_loops_and_the_inverse_undoes_them() {
    on_the_path();
    for (n, heads, d) in [(1, 1, 2), (1, 3, 6), (15, 1, 10), (17, 2, 64), (33, 5, 34)] {
        let positions: Vec<u32> = (0..n).map(|i| u32::try_from(i * 5 % 19).unwrap()).collect();
        let half = d / 2;
        let angles = random(4, 19 * half, 3.0);
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| a.sin_cos()).unzip();
        let x = random(1, n * heads * d, 1.0);
        let mut exact = wide(&x);
        for (at, head) in exact.chunks_mut(d).enumerate() {
            for i in 0..half {
                let angle = positions[at / heads] as usize * half + i;
                let (c, s) = (f64::from(cos[angle]), f64::from(sin[angle]));
                (head[i], head[i + half]) =
                    (head[i] * c - head[i + half] * s, head[i + half] * c + head[i] * s);
            }
        }
        let mut turned = x.clone();
        rope(&mut turned, heads * d, d, &positions, &cos, &sin, false);
        close("turned", &turned, &exact);
        rope(&mut turned, heads * d, d, &positions, &cos, &sin, true);
        close("turned back", &turned, &wide(&x));
    }
}

/// Loss of a row and its gradient times `scale`.
fn exact_row(row: &[f64], target: usize, scale: f64) -> (f64, Vec<f64>) {
    let top = row.iter().copied().fold(f64::MIN, f64::max);
    let sum: f64 = row.iter().map(|x| (x - top).exp()).sum();
    let mut gradient: Vec<f64> = row.iter().map(|x| scale * (x - top).exp() / sum).collect();
    gradient[target] -= scale;
    (sum.ln() + top - row[target], gradient)
}

#[test]
fn losses_of_rows_and_their_gradients_equal_plain_loops() {
    on_the_path();
    for (n, v) in [(1, 1), (1, 2), (5, 31), (33, 33), (7, 1000), (2, 50_001)] {
        for largest in [1.0, 200.0] {
            let logits = random(1, n * v, largest);
            let targets: Vec<u32> = (0..n).map(|i| u32::try_from((i * 13 + v / 2) % v).unwrap()).collect();
            let rows = wide(&logits);
            // Of either sign, as rewards are; rows of one task must not share theirs.
            let scales: Vec<f32> = (0..n).map(|i| 0.25 - 0.125 * i as f32).collect();
            let exact = rows.chunks(v).zip(&targets).zip(&scales);
            let exact = exact.map(|((row, &t), &scale)| exact_row(row, t as usize, scale.into()));
            let (losses, gradients): (Vec<f64>, Vec<Vec<f64>>) = exact.unzip();
            let mut gradient = logits.clone();
            let ours = cross_entropy_rows(&mut gradient, v, &targets, Some(&scales));
            close("loss", &ours, &losses);
            close("gradient", &gradient, &gradients.concat());
            assert_eq!(cross_entropy_rows(&mut logits.clone(), v, &targets, None), ours);
        }
    }
}

#[test]
fn what_is_not_finite_shows_in_the_loss_wherever_it_stands() {
    on_the_path();
    for at in [0, 31, 32, 99] {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut logits = random(1, 100, 1.0);
            logits[at] = bad;
            for target in [0, 32] {
                let loss = cross_entropy_rows(&mut logits.clone(), 100, &[target], Some(&[1.0]))[0];
                assert!(!loss.is_finite(), "{bad} at {at}: {loss}");
            }
        }
    }
    let mut impossible = random(1, 100, 1.0);
    impossible[40] = f32::NEG_INFINITY;
    assert!(cross_entropy_rows(&mut impossible.clone(), 100, &[3], Some(&[1.0]))[0].is_finite());
    assert!(!cross_entropy_rows(&mut impossible, 100, &[40], Some(&[1.0]))[0].is_finite());
}
