//! Kernels over single values: gate, sums, conversions, dropout, optimizer, NF4.

use super::{Array, close, every_way, random};
use fttrain_kernels::cpu::optimizer::{AdamW, Values};
use fttrain_kernels::cpu::{self, Ggml, GgmlKind, Nf4, Quantised};
use fttrain_kernels::cuda::{Address, adamw, dropout, gate, ggml, nf4, values};
use half::bf16;

const LENGTHS: [usize; 4] = [1, 31, 257, 9000];

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn gates_and_their_gradients_equal_the_cpus() {
    for n in LENGTHS {
        for largest in [1.0, 100.0] {
            let (gate, up, d_act) = (random(1, n, largest), random(2, n, 1.0), random(3, n, 1.0));
            let act = cpu::gate_forward(&gate, &up);
            let mut d_gate = d_act.clone();
            let d_up = cpu::gate_backward(&gate, &up, &mut d_gate);
            let inputs = [Array::new(&gate), Array::new(&up), Array::new(&d_act)];
            let [g, u, d] = inputs;
            let outputs = [0; 3].map(|_| Array::unwritten(n));
            let [a, dg, du] = outputs;
            for ours in every_way([g, u, d, a, dg, du], |[g, u, d, a, dg, du]| {
                let (both, grads) = ((g.address(), u.address()), (dg.address(), du.address()));
                vec![
                    gate::forward(g.address(), u.address(), n, a.address(), false),
                    gate::backward(both, d.address(), n, grads, false),
                ]
            }) {
                close("act", &ours[3].f32(), &act);
                close("d_gate", &ours[4].f32(), &d_gate);
                close("d_up", &ours[5].f32(), &d_up);
            }
        }
    }
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn gates_that_are_kept_in_bf16_equal_the_cpus() {
    for n in LENGTHS {
        let rounded = |seed| random(seed, n, 8.0).into_iter().map(bf16::from_f32).collect::<Vec<_>>();
        let (gate, up, d_act) = (rounded(1), rounded(2), random(3, n, 1.0));
        let act: Vec<f32> = cpu::gate_forward_bf16(&gate, &up).iter().map(|x| x.to_f32()).collect();
        let mut d_gate = d_act.clone();
        let d_up = cpu::gate_backward_bf16(&gate, &up, &mut d_gate);
        let inputs = [Array::new(&gate), Array::new(&up), Array::new(&d_act)];
        let [g, u, d] = inputs;
        let [a, dg, du] = [0; 3].map(|_| Array::new(&vec![bf16::NAN; n]));
        for ours in every_way([g, u, d, a, dg, du], |[g, u, d, a, dg, du]| {
            let (both, grads) = ((g.address(), u.address()), (dg.address(), du.address()));
            vec![
                gate::forward(g.address(), u.address(), n, a.address(), true),
                gate::backward(both, d.address(), n, grads, true),
            ]
        }) {
            for (what, ours, cpu) in
                [("act", &ours[3], &act), ("d_gate", &ours[4], &d_gate), ("d_up", &ours[5], &d_up)]
            {
                one_step_apart(what, ours, cpu);
            }
        }
    }
}

/// Values of bf16 beside the CPU's: one of bf16's steps, where what is rounded differs in its last bits, and what is left
/// where terms cancel.
pub(super) fn one_step_apart(what: &str, ours: &Array, cpu: &[f32]) {
    let ours: Vec<f32> = ours.u16().into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect();
    assert_eq!(ours.len(), cpu.len(), "{what}");
    for (ours, cpu) in ours.iter().zip(cpu) {
        assert!((ours - cpu).abs() <= 2f32.powi(-7) * cpu.abs() + 1e-6, "{what}: {ours} and {cpu}");
    }
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn sums_equal_plain_loops() {
    for (n, width) in [(1, 1), (5, 33), (40, 300)] {
        let (to, x, bias) = (random(1, n * width, 1.0), random(2, n * width, 1.0), random(3, width, 1.0));
        let exact: Vec<f32> = (0..n * width).map(|i| to[i] + x[i] + bias[i % width]).collect();
        for ours in every_way([Array::new(&to), Array::new(&x), Array::new(&bias)], |[to, x, bias]| {
            vec![
                values::add(to.address(), x.address(), n * width),
                values::add_to_rows(to.address(), bias.address(), (n, width)),
            ]
        }) {
            assert_eq!(ours[0].f32(), exact);
        }
    }
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn conversions_equal_the_cpus_bit_for_bit() {
    let mut wide = random(1, 5002, 1e3);
    wide.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-42, f32::NAN]);
    // Halfway between two neighbours of 1: to the even one.
    wide.extend([1.0 + 0.5 / 128.0, 1.0 + 1.5 / 128.0]);
    let n = wide.len();
    let narrow = cpu::narrowed(&wide);
    let arrays = [Array::new(&wide), Array::new(&vec![0u16; n]), Array::unwritten(n)];
    for [_, narrowed, widened] in every_way(arrays, |[x, y, z]| {
        vec![
            values::narrow_bf16(x.address(), n, y.address()),
            values::widen_bf16(y.address(), n, z.address()),
        ]
    }) {
        for (ours, theirs) in narrowed.u16().into_iter().zip(&narrow) {
            let ours = bf16::from_bits(ours);
            assert!(
                ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(),
                "{ours}, {theirs}"
            );
        }
        for (ours, theirs) in widened.f32().into_iter().zip(&narrow) {
            assert!(ours.to_bits() == theirs.to_f32().to_bits() || ours.is_nan() && theirs.is_nan());
        }
    }
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn a_mask_drops_its_share_and_belongs_to_rows_not_to_launches() {
    for width in [101, 100] {
        let n = 40;
        let x = vec![1.0f32; n * width];
        let masked = |first: u64, rows: usize| {
            let arrays = [Array::new(&x[..rows * width]), Array::unwritten(rows * width)];
            let narrow = [bf16::ONE, bf16::NAN].map(|value| Array::new(&vec![value; rows * width]));
            let ways = every_way(arrays, |[x, y]| {
                let share = (1 << 30, 4.0 / 3.0);
                vec![dropout::apply(x.address(), (rows, width), (99, first), share, y.address(), false)]
            });
            let [by_vectors, plainly] = ways.map(|[_, y]| y.f32());
            assert_eq!(by_vectors, plainly);
            for [_, y] in every_way(narrow, |[x, y]| {
                let share = (1 << 30, 4.0 / 3.0);
                vec![dropout::apply(x.address(), (rows, width), (99, first), share, y.address(), true)]
            }) {
                one_step_apart("in bf16", &y, &plainly);
            }
            plainly
        };
        let whole = masked(7, n);
        assert_eq!(whole[13 * width..], masked(20, n - 13));
        a_quarter_is_dropped(&whole);
    }
}

fn a_quarter_is_dropped(whole: &[f32]) {
    let dropped = whole.iter().filter(|&&x| x == 0.0).count() as f64 / whole.len() as f64;
    assert!((dropped - 0.25).abs() < 0.03, "{dropped}");
    let either = [0.0, 4.0 / 3.0].map(f32::to_bits);
    assert!(whole.iter().all(|x| either.contains(&x.to_bits())));
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn one_launch_updates_all_tensors_as_the_cpu_does() {
    let lengths = [1usize, 70, 4096, 9001, 9000];
    let of = |seed: u64, largest: f32| lengths.map(|n| random(seed + n as u64, n, largest));
    let (params, ms, grads) = (of(1, 1.0), of(2, 0.1), of(3, 3.0));
    let vs = of(4, 0.1).map(|v| v.iter().map(|x| x.abs()).collect::<Vec<f32>>());
    let pieces = adamw::pieces(lengths.map(|n| n as u64));
    assert_eq!(pieces.len(), 1 + 1 + 1 + 3 + 3);
    let step = AdamW {
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-6,
        weight_decay: 0.0,
        correction1: 0.271,
        correction2_sqrt: 0.054,
        grad_scale: 0.5,
    };
    let arrays: Vec<[Array; 4]> = (0..lengths.len())
        .map(|i| [&params[i], &ms[i], &vs[i], &grads[i]].map(|values| Array::new(values)))
        // One whose count would let vectors be taken, but not its addresses.
        .map(|of| if of[0].f32().len() == 4096 { of.map(|array| array.beside()) } else { of })
        .collect();
    let decay = |i: usize| if i == 1 { 0.0 } else { 0.3 };
    let table: Vec<adamw::Tensor> = arrays
        .iter()
        .enumerate()
        .map(|(i, of)| {
            let [param, m, v, grad] = of.each_ref().map(|array| array.address().0);
            adamw::Tensor { param, m, v, grad, count: lengths[i] as u64, lr: 0.01, weight_decay: decay(i) }
        })
        .collect();
    let words: Vec<u32> = table.iter().flat_map(adamw::Tensor::words).collect();
    let piece_words: Vec<u32> = pieces.iter().flat_map(|piece| piece.words()).collect();
    let (table, on_device) = (Array::new(&words), Array::new(&piece_words));
    let parts = Array::new(&vec![f64::NAN; pieces.len()]);
    let count = pieces.len();
    super::run(&adamw::norm_parts(table.address(), on_device.address(), count, parts.address()), false);
    let squares: f64 = parts.f64().iter().sum();
    let exact: f64 = grads.iter().map(|g| cpu::sum_of_squares(g)).sum();
    assert!((squares - exact).abs() <= 1e-12 * exact, "{squares}, on the CPU {exact}");
    super::run(&adamw::update(table.address(), on_device.address(), count, &step), true);
    for (i, ours) in arrays.iter().enumerate() {
        let (mut param, mut m, mut v) = (params[i].clone(), ms[i].clone(), vs[i].clone());
        let how = AdamW { weight_decay: decay(i), ..step };
        cpu::optimizer::adamw(Values::F32(&mut param), &mut m, &mut v, &grads[i], &how);
        close("parameter", &ours[0].f32(), &param);
        close("first moment", &ours[1].f32(), &m);
        close("second moment", &ours[2].f32(), &v);
        assert_eq!(ours[3].f32(), grads[i]);
    }
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn a_gradient_that_is_not_finite_shows_in_its_part() {
    let mut grad = random(1, 9000, 1.0);
    grad[8999] = f32::NAN;
    let grad = Array::new(&grad);
    let tensor = adamw::Tensor {
        param: 0,
        m: 0,
        v: 0,
        grad: grad.address().0,
        count: 9000,
        lr: 0.0,
        weight_decay: 0.0,
    };
    let pieces: Vec<u32> = adamw::pieces([9000]).iter().flat_map(|piece| piece.words()).collect();
    let (table, pieces) = (Array::new(&tensor.words()), Array::new(&pieces));
    let parts = Array::new(&[0f64; 3]);
    super::run(&adamw::norm_parts(table.address(), pieces.address(), 3, parts.address()), false);
    assert_eq!(parts.f64().iter().map(|x| x.is_finite()).collect::<Vec<_>>(), [true, true, false]);
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn nf4_is_dequantised_to_the_cpus_values_in_f32_and_in_bf16() {
    for (rows, width) in [(1, 1), (3, 5), (9, 64), (33, 576), (300, 70)] {
        for double_quant in [false, true] {
            let numbers = random(1, rows * width, 0.05);
            let matrix = Nf4::encode((rows, width), double_quant, |range, out| {
                out.copy_from_slice(&numbers[range]);
            });
            let mut exact = vec![0f32; rows * width];
            for (row, out) in exact.chunks_exact_mut(width).enumerate() {
                matrix.dequantise(row, 0..width, out);
            }
            let what = format!("{rows}×{width}, double {double_quant}");
            let rounded: Vec<u16> = cpu::narrowed(&exact).iter().map(|x| x.to_bits()).collect();
            for (wide, narrow) in on_the_device(&matrix, false).iter().zip(on_the_device(&matrix, true)) {
                assert_eq!(wide.f32(), exact, "{what}");
                assert_eq!(narrow.u16(), rounded, "{what}");
            }
        }
    }
}

/// All values of a matrix, in bf16 or in f32.
fn on_the_device(matrix: &Nf4, is_bf16: bool) -> [Array; 2] {
    let ((rows, width), parts) = (matrix.shape(), matrix.parts());
    let (codes, table) = (Array::new(parts.codes), Array::new(&cpu::NF4_VALUES));
    let y = if is_bf16 { Array::new(&vec![0u16; rows * width]) } else { Array::unwritten(rows * width) };
    let launch = |codes: &Array, table: &Array, scales: nf4::Scales, y: &Array| {
        let to = (y.address(), is_bf16);
        vec![nf4::dequantise(codes.address(), table.address(), scales, rows * width, to)]
    };
    match parts.scales {
        cpu::Nf4Scales::Plain(scales) => {
            let arrays = [codes, table, Array::new(scales), y];
            every_way(arrays, |[codes, table, scales, y]| {
                launch(codes, table, nf4::Scales::Plain(scales.address()), y)
            })
            .map(|[.., y]| y)
        }
        cpu::Nf4Scales::Double { code, mean } => {
            let map = Array::new(&cpu::dynamic_map(true));
            let (places, largest) = (Array::new(&code.codes), Array::new(&code.absmax));
            let arrays = [codes, table, places, map, largest, y];
            every_way(arrays, |[codes, table, places, map, largest, y]| {
                let [places, map, largest] = [places, map, largest].map(Array::address);
                launch(codes, table, nf4::Scales::Double { codes: places, map, largest, mean }, y)
            })
            .map(|[.., y]| y)
        }
    }
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn a_files_own_types_are_dequantised_to_the_cpus_bits() {
    for kind in GgmlKind::ALL {
        let (values, bytes) = kind.block();
        let (rows, width) = (5, 4 * values);
        let mut blocks: Vec<u8> =
            random(7, rows * 4 * bytes, 256.0).iter().map(|x| x.to_le_bytes()[1]).collect();
        for block in blocks.chunks_exact_mut(bytes) {
            let mut out = vec![0f32; values];
            Ggml::new(kind, (1, values), block.to_vec()).unwrap().dequantise(0, 0..values, &mut out);
            if !out.iter().all(|x| x.is_finite()) {
                // No half of such bytes is an infinity or NaN.
                for byte in block {
                    *byte &= 0xbb;
                }
            }
        }
        let matrix = Ggml::new(kind, (rows, width), blocks).unwrap();
        let exact = |rows: &[usize]| -> Vec<f32> {
            let mut all = vec![0f32; rows.len() * width];
            for (row, out) in rows.iter().zip(all.chunks_exact_mut(width)) {
                matrix.dequantise(*row, 0..width, out);
            }
            all
        };
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        let on_the_device = |ids: &[u32], is_bf16: bool| {
            let count = if ids.is_empty() { rows } else { ids.len() };
            let y = if is_bf16 {
                Array::new(&vec![0u16; count * width])
            } else {
                Array::unwritten(count * width)
            };
            every_way([Array::new(matrix.parts().1), Array::new(ids), y], |[blocks, at, y]| {
                let at: Address = at.address();
                let rows = if ids.is_empty() { ggml::Rows::All(rows) } else { ggml::Rows::Some(at, count) };
                vec![ggml::dequantise(kind, blocks.address(), rows, width, (y.address(), is_bf16))]
            })
            .map(|[.., y]| y)
        };
        let whole = exact(&[0, 1, 2, 3, 4]);
        assert!(whole.iter().all(|x| x.is_finite()) && whole.iter().any(|x| *x != 0.0), "{kind:?}");
        let rounded: Vec<u16> = cpu::narrowed(&whole).iter().map(|x| x.to_bits()).collect();
        for all in on_the_device(&[], false) {
            assert_eq!(bits(&all.f32()), bits(&whole), "{kind:?}");
        }
        for some in on_the_device(&[3, 0, 3], false) {
            assert_eq!(bits(&some.f32()), bits(&exact(&[3, 0, 3])), "{kind:?}, some rows");
        }
        for narrow in on_the_device(&[], true) {
            assert_eq!(narrow.u16(), rounded, "{kind:?}, bf16");
        }
    }
}
