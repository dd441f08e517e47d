//! Kernels over rows: norm, rope, cross-entropy, embedding.

use super::values::one_step_apart;
use super::{Array, close, every_way, random};
use fttrain_kernels::cpu;
use fttrain_kernels::cuda::head::Slopes;
use fttrain_kernels::cuda::{Address, embedding, head, norm, rope};
use half::bf16;

/// The last ones have sums of several parts.
const SHAPES: [(usize, usize); 9] =
    [(1, 1), (3, 7), (2, 31), (5, 64), (33, 96), (3, 577), (70, 5), (200, 132), (2, 2052)];

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn norms_and_their_gradients_equal_the_cpus() {
    for (n, d) in SHAPES {
        let (x, w, dy, eps) = (random(1, n * d, 2.0), random(2, d, 1.0), random(3, n * d, 1.0), 1e-5);
        let (mut y, mut rstd) = (vec![0.0; n * d], vec![0.0; n]);
        cpu::norm_forward(&x, &w, eps, &mut y, &mut rstd);
        let arrays = [Array::new(&x), Array::new(&w), Array::unwritten(n * d), Array::unwritten(n)];
        for [_, _, ours, scales] in every_way(arrays, |[x, w, y, rstd]| {
            vec![norm::forward(x.address(), w.address(), eps, (n, d), (y.address(), false), rstd.address())]
        }) {
            close("y", &ours.f32(), &y);
            close("rstd", &scales.f32(), &rstd);
        }
        let arrays =
            [Array::new(&x), Array::new(&w), Array::new(&vec![bf16::NAN; n * d]), Array::unwritten(n)];
        for [_, _, ours, scales] in every_way(arrays, |[x, w, y, rstd]| {
            vec![norm::forward(x.address(), w.address(), eps, (n, d), (y.address(), true), rstd.address())]
        }) {
            one_step_apart("y in bf16", &ours, &y);
            close("rstd", &scales.f32(), &rstd);
        }
        for adds in [false, true] {
            let (mut dx, mut dw) = (random(4, n * d, 1.0), random(5, d, 1.0));
            let room = if adds { Array::new(&dx) } else { Array::unwritten(n * d) };
            let inputs = [Array::new(&x), Array::new(&w), Array::new(&rstd), Array::new(&dy)];
            let [x_, w_, rstd_, dy_] = inputs;
            let arrays = [x_, w_, rstd_, dy_, room, Array::new(&dw), Array::unwritten(norm::parts(n) * d)];
            let ways = every_way(arrays, |[x, w, rstd, dy, dx, dw, parts]| {
                let saved = (x.address(), w.address(), rstd.address());
                let of = Some((x.address(), rstd.address()));
                let mut launches = vec![norm::backward(saved, dy.address(), (n, d), adds, dx.address())];
                launches.extend(norm::column_sums(dy.address(), of, (n, d), dw.address(), room_of(n, parts)));
                launches
            });
            cpu::norm_backward(&x, &w, &rstd, &dy, adds, &mut dx, Some(&mut dw));
            for ours in ways {
                close("dx", &ours[4].f32(), &dx);
                close("dw", &ours[5].f32(), &dw);
            }
        }
    }
}

/// For the parts of a sum over n rows, where there are several.
fn room_of(n: usize, parts: &Array) -> Option<Address> {
    (norm::parts(n) > 1).then(|| parts.address())
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn sums_of_columns_equal_plain_loops() {
    // With more rows than the most parts have at their least, the last part is shorter.
    for (n, d) in SHAPES.into_iter().chain([(20_000, 4)]) {
        let (dy, start) = (random(1, n * d, 1.0), random(2, d, 1.0));
        let mut exact = start.clone();
        for row in dy.chunks(d) {
            exact.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        let arrays = [Array::new(&dy), Array::new(&start), Array::unwritten(norm::parts(n) * d)];
        for [_, ours, _] in every_way(arrays, |[dy, sum, parts]| {
            norm::column_sums(dy.address(), None, (n, d), sum.address(), room_of(n, parts))
        }) {
            close("sums", &ours.f32(), &exact);
        }
    }
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn turns_of_q_and_k_at_once_equal_the_cpus() {
    for (n, heads, kv_heads, d) in
        [(1_u32, 1, 1, 2), (5, 4, 2, 6), (9, 6, 1, 64), (3, 9, 3, 96), (2, 24, 8, 64)]
    {
        let (cos, sin) = (random(1, 20 * d / 2, 1.0), random(2, 20 * d / 2, 1.0));
        let positions: Vec<u32> = (0..n).map(|i| i * 7 % 20).collect();
        let n = n as usize;
        for inverse in [false, true] {
            let (mut q, mut k) = (random(3, n * heads * d, 1.0), random(4, n * kv_heads * d, 1.0));
            let inputs =
                [Array::new(&q), Array::new(&k), Array::new(&positions), Array::new(&cos), Array::new(&sin)];
            cpu::rope(&mut q, heads * d, d, &positions, &cos, &sin, inverse);
            cpu::rope(&mut k, kv_heads * d, d, &positions, &cos, &sin, inverse);
            for ours in every_way(inputs, |[q, k, positions, cos, sin]| {
                let tables = (cos.address(), sin.address());
                let both = (q.address(), k.address());
                vec![rope::turn(both, positions.address(), tables, n, (heads, kv_heads, d), inverse)]
            }) {
                close("q", &ours[0].f32(), &q);
                close("k", &ours[1].f32(), &k);
            }
        }
    }
}

/// Gradient in the logits' place, losses and their sum, by vectors and plainly.
fn cross_entropy(logits: &[f32], targets: &[u32], scale: Option<f32>) -> [(Vec<f32>, Vec<f32>, f64); 2] {
    let (rows, v) = (targets.len(), logits.len() / targets.len());
    let arrays = [Array::new(logits), Array::new(targets), Array::unwritten(rows), Array::new(&[0.5f64])];
    let ways = every_way(arrays, |[logits, targets, losses, sum]| {
        let slopes = scale.map(|scale| Slopes { to: logits.address(), is_bf16: false, scale });
        vec![
            head::cross_entropy(logits.address(), targets.address(), (rows, v), slopes, losses.address()),
            head::sum_losses(losses.address(), rows, sum.address()),
        ]
    });
    ways.map(|ours| (ours[0].f32(), ours[2].f32(), ours[3].f64()[0] - 0.5))
}

/// Gradient in bf16 at a scale of 0.25, and losses.
fn narrow_slopes(logits: &[f32], targets: &[u32]) -> [(Array, Array); 2] {
    let (rows, v) = (targets.len(), logits.len() / targets.len());
    let room = Array::new(&vec![bf16::NAN; logits.len()]);
    let arrays = [Array::new(logits), Array::new(targets), room, Array::unwritten(rows)];
    every_way(arrays, |[logits, targets, slopes, losses]| {
        let slopes = Slopes { to: slopes.address(), is_bf16: true, scale: 0.25 };
        let shape = (rows, v);
        vec![head::cross_entropy(logits.address(), targets.address(), shape, Some(slopes), losses.address())]
    })
    .map(|[_, _, slopes, losses]| (slopes, losses))
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn losses_and_gradients_of_logits_equal_the_cpus() {
    for (rows, v) in [(1_u32, 1_u32), (3, 7), (4, 513), (2, 3001), (6, 33), (3, 8), (2, 5000)] {
        for largest in [1.0, 80.0] {
            let targets: Vec<u32> = (0..rows).map(|i| i * 31 % v).collect();
            let (rows, v) = (rows as usize, v as usize);
            let mut logits = random(1, rows * v, largest);
            let (trained, read) =
                (cross_entropy(&logits, &targets, Some(0.25)), cross_entropy(&logits, &targets, None));
            let before = logits.clone();
            let narrow = narrow_slopes(&logits, &targets);
            let theirs = cpu::cross_entropy_rows(&mut logits, v, &targets, Some(&vec![0.25; rows]));
            for (slopes, ours) in narrow {
                one_step_apart("gradient in bf16", &slopes, &logits);
                close("losses", &ours.f32(), &theirs);
            }
            for ((gradient, losses, sum), (untouched, same, _)) in trained.into_iter().zip(read) {
                assert_eq!((&untouched, &same), (&before, &losses));
                close("losses", &losses, &theirs);
                close("gradient", &gradient, &logits);
                let exact: f64 = losses.iter().map(|&x| f64::from(x)).sum();
                assert!((sum - exact).abs() <= 1e-9 * exact.abs().max(1.0), "{sum}, exactly {exact}");
            }
        }
    }
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn more_losses_than_threads_are_summed() {
    let losses = random(1, 700, 5.0);
    for [_, sum] in every_way([Array::new(&losses), Array::new(&[0.5f64])], |[losses, sum]| {
        vec![head::sum_losses(losses.address(), 700, sum.address())]
    }) {
        let exact: f64 = losses.iter().map(|&x| f64::from(x)).sum();
        assert!((sum.f64()[0] - 0.5 - exact).abs() <= 1e-9, "{}, exactly {exact}", sum.f64()[0]);
    }
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn a_logit_that_is_not_finite_gives_a_loss_that_is_not() {
    for bad in [f32::NAN, f32::INFINITY] {
        for at in [0, 700] {
            let mut logits = random(1, 1000, 1.0);
            logits[at] = bad;
            for (_, losses, _) in cross_entropy(&logits, &[3], Some(1.0)) {
                assert!(!losses[0].is_finite(), "{bad} at {at}");
            }
        }
    }
    let mut logits = random(1, 1000, 1.0);
    logits[5] = f32::NEG_INFINITY;
    assert!(cross_entropy(&logits, &[3], Some(1.0)).iter().all(|(_, losses, _)| losses[0].is_finite()));
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn rows_are_gathered_and_added_back_by_token() {
    gathered_and_added_back(70);
    gathered_and_added_back(72);
    gathered_and_added_back(1028);
}

fn gathered_and_added_back(width: usize) {
    let (v, ids) = (9, [3u32, 0, 3, 8, 3, 0, 5]);
    let table: Vec<u16> = (0..9 * width).map(|i| 0x3f00 + u16::try_from(i % 200).unwrap()).collect();
    let widened: Vec<f32> = table.iter().map(|&bits| f32::from_bits(u32::from(bits) << 16)).collect();
    let exact: Vec<f32> =
        ids.iter().flat_map(|&id| &widened[id as usize * width..][..width]).copied().collect();
    let is_bf16 = [true, false];
    for (table, is_bf16) in [Array::new(&table), Array::new(&widened)].into_iter().zip(is_bf16) {
        let arrays = [table, Array::new(&ids), Array::unwritten(ids.len() * width)];
        for [_, _, rows] in every_way(arrays, |[table, on_device, y]| {
            let shape = (ids.len(), width);
            vec![embedding::gather(table.address(), is_bf16, on_device.address(), shape, y.address())]
        }) {
            assert_eq!(rows.f32(), exact);
        }
    }
    let sorted = embedding::Sorted::new(&ids);
    assert_eq!((&sorted.ids[..], &sorted.starts[..]), (&[0, 3, 5, 8][..], &[0, 2, 5, 6, 7][..]));
    let (dy, mut sum) = (random(1, ids.len() * width, 1.0), random(2, v * width, 1.0));
    let arrays = [
        Array::new(&dy),
        Array::new(&sorted.ids),
        Array::new(&sorted.starts),
        Array::new(&sorted.order),
        Array::new(&sum),
    ];
    let ways = every_way(arrays, |[dy, ids, starts, order, sum]| {
        let tables = [ids, starts, order].map(Array::address);
        let shape = (sorted.ids.len(), width);
        vec![embedding::scatter(dy.address(), tables.into(), shape, sum.address())]
    });
    for (&id, row) in ids.iter().zip(dy.chunks(width)) {
        sum[id as usize * width..].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    for ours in ways {
        close("sum", &ours[4].f32(), &sum);
    }
}
