//! Products of strided matrices.

use super::{close, on_the_path, random, wide};
use fttrain_kernels::cpu::{MatRef, matmul, matmul_new};

/// `start + scale·a·b` of matrices in rows.
fn exact((m, n, k): (usize, usize, usize), a: &[f64], b: &[f64], scale: f64, start: &[f64]) -> Vec<f64> {
    let at = |i: usize, j: usize| {
        start[i * n + j] + scale * (0..k).map(|p| a[i * k + p] * b[p * n + j]).sum::<f64>()
    };
    (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect()
}

fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|j| (0..rows).map(move |i| x[i * columns + j])).collect()
}

#[test]
fn products_of_any_strides_equal_plain_loops() {
    on_the_path();
    for shape in [(1, 1, 1), (1, 5, 3), (7, 1, 2), (3, 17, 33), (33, 65, 129), (130, 3, 7), (65, 129, 200)] {
        let (m, n, k) = shape;
        let (a, b, c) = (random(1, m * k, 1.0), random(2, k * n, 1.0), random(3, m * n, 1.0));
        let (a_t, b_t) = (transposed(&a, m, k), transposed(&b, k, n));
        for (scale, accumulate) in [(1.0, false), (0.5, true)] {
            let start = if accumulate { wide(&c) } else { vec![0.0; m * n] };
            let expected = exact(shape, &wide(&a), &wide(&b), f64::from(scale), &start);
            for (a, b) in [
                (MatRef::rows(&a, k), MatRef::rows(&b, n)),
                (MatRef::rows(&a_t, m).t(), MatRef::rows(&b, n)),
                (MatRef::rows(&a, k), MatRef::rows(&b_t, k).t()),
                (MatRef::rows(&a_t, m).t(), MatRef::rows(&b_t, k).t()),
            ] {
                // What stands there must not be read unless it is added to: it may be uninitialised.
                let mut product = if accumulate { c.clone() } else { vec![f32::NAN; m * n] };
                matmul(shape, a, b, scale, accumulate, &mut product, n);
                close(&format!("{shape:?} scale {scale}"), &product, &expected);
                if !accumulate {
                    let fresh = matmul_new(shape, a, b);
                    assert!(fresh == product, "{shape:?}: the same in a buffer of its own");
                }
            }
        }
    }
}

#[test]
fn a_product_into_wider_rows_leaves_what_stands_between() {
    on_the_path();
    let (a, b) = (random(1, 5 * 3, 1.0), random(2, 3 * 4, 1.0));
    let mut c = vec![9.0; 4 * 7 + 4];
    matmul((5, 4, 3), MatRef::rows(&a, 3), MatRef::rows(&b, 4), 1.0, false, &mut c, 7);
    let expected = exact((5, 4, 3), &wide(&a), &wide(&b), 1.0, &[0.0; 20]);
    for (i, row) in c.chunks(7).enumerate() {
        close("row", &row[..4], &expected[i * 4..][..4]);
        assert!(row[4..].iter().all(|x| x.to_bits() == 9f32.to_bits()), "{row:?}");
    }
}

#[test]
fn nothing_to_multiply_changes_nothing_and_an_empty_sum_is_zero() {
    on_the_path();
    let none = MatRef::rows(&[], 3);
    matmul((0, 4, 3), none, MatRef::rows(&[1.0; 12], 4), 1.0, false, &mut [], 4);
    let mut c = [7.0; 4];
    matmul((2, 2, 0), MatRef::rows(&[], 0), MatRef::rows(&[], 2), 1.0, false, &mut c, 2);
    assert_eq!(c.map(f32::to_bits), [0; 4]);
    assert!(matmul_new((0, 4, 3), none, MatRef::rows(&[1.0; 12], 4)).is_empty());
    // No value of a fresh buffer stays unwritten.
    let zeros = matmul_new((33, 65, 0), MatRef::rows(&[], 0), MatRef::rows(&[], 65));
    assert!(zeros.len() == 33 * 65 && zeros.iter().all(|x| x.to_bits() == 0));
}

#[test]
#[should_panic(expected = "a: 3×4 outside its slice")]
fn a_matrix_outside_its_slice_is_refused() {
    matmul((3, 1, 4), MatRef::rows(&[0.0; 11], 4), MatRef::rows(&[0.0; 4], 1), 1.0, false, &mut [0.0; 3], 1);
}

#[test]
#[should_panic(expected = "c: 3×2 outside its slice")]
fn a_result_outside_its_slice_is_refused() {
    matmul((3, 2, 1), MatRef::rows(&[0.0; 3], 1), MatRef::rows(&[0.0; 2], 2), 1.0, false, &mut [0.0; 5], 2);
}

#[test]
#[should_panic(expected = "outside its slice")]
fn a_size_whose_place_overflows_is_refused() {
    let one = MatRef::rows(&[1.0], usize::MAX / 2 + 1);
    matmul((3, 1, 1), one, MatRef::rows(&[1.0], 1), 1.0, false, &mut [0.0; 3], 1);
}

#[test]
#[should_panic(expected = "c: ")]
fn a_result_whose_size_overflows_is_refused() {
    let none = MatRef::rows(&[], 0);
    matmul_new((usize::MAX / 2 + 1, 4, 0), none, none);
}
