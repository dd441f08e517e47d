//! The same ops on a GPU: held against the CPU's, which the other files hold against f64.

use super::references::{Input, values};
use candle_core::{DType, Device, Tensor};
use fttrain::arch::{Rope, RopeScaling};
use fttrain::config;
use fttrain::estimate::work::Site;
use fttrain::ops::attention::{self, Shape, Span};
use fttrain::ops::device::Gpu;
use fttrain::ops::dropout::Noise;
use fttrain::ops::gpu::blocks::Blocks;
use fttrain::ops::gpu::{self, Placed};
use fttrain::ops::head::Head;
use fttrain::ops::linear::{self, Linear, Lora};
use fttrain::ops::matmul::Precision;
use fttrain::ops::norm::Norm;
use fttrain::ops::optimizer::{self, Settings, Step, Update};
use fttrain::ops::rope::Table;
use fttrain::ops::{Grads, Matrix, ParamId, Weight, embedding, gate, narrow};
use fttrain_kernels::cpu::Nf4;
use std::sync::Arc;

/// What the ops gave, by name.
type Given = Vec<(String, Vec<f32>)>;

struct Bench<'a> {
    device: &'a Device,
    precision: Precision,
    given: Given,
}

const NOISE: Noise = Noise { seed: 3, step: 1, first_token: 5 };
/// Rows: two segments of odd lengths.
const SEGMENTS: [std::ops::Range<usize>; 2] = [0..33, 33..70];
const ROWS: usize = 70;

impl Bench<'_> {
    fn put(&self, name: &str, shape: &[usize]) -> Tensor {
        Input::random(name, shape).tensor().to_device(self.device).unwrap()
    }

    fn trained(&self, name: &str, shape: &[usize], param: usize) -> Weight {
        Weight { value: self.put(name, shape), param: Some(ParamId(param)) }
    }

    fn keep(&self, site: Site, x: &Tensor) -> Tensor {
        narrow::kept(site, x.clone(), self.precision).unwrap()
    }

    fn note(&mut self, what: &str, tensor: &Tensor) {
        self.given.push((what.to_owned(), values(&narrow::wide(tensor).unwrap())));
    }

    fn note_grads(&mut self, what: &str, grads: &Grads, count: usize) {
        for param in 0..count {
            if let Some(grad) = grads.get(ParamId(param)) {
                self.note(&format!("{what}, gradient {param}"), grad);
            }
        }
    }

    fn norm(&mut self) {
        let norm = Norm { weight: self.trained("norm", &[96], 0), eps: 1e-5, reader: self.precision };
        let (x, dy) = (self.put("x", &[ROWS, 96]), self.put("dy", &[ROWS, 96]));
        let (y, saved) = norm.forward(&x).unwrap();
        self.note("norm", &y);
        let mut grads = Grads::new(1);
        let dx = norm.backward(&saved, &dy, Some(self.put("residual", &[ROWS, 96])), &mut grads).unwrap();
        self.note("norm, backward", &dx);
        self.note_grads("norm", &grads, 1);
    }

    fn lora(&self, (out, inputs): (usize, usize), dropout: f32) -> Lora {
        Lora {
            a: self.trained("a", &[8, inputs], 1),
            b: self.trained("b", &[out, 8], 2),
            scale: 2.0,
            dropout,
            site: 3,
            dora: None,
        }
    }

    fn linear(&mut self, what: &str, weight: Weight<Matrix>, shape: (usize, usize)) {
        let (out, inputs) = shape;
        let lora = self.lora(shape, 0.2);
        let bias = Some(self.trained("bias", &[out], 3));
        let layer = Linear { weight, bias, lora: Some(lora), precision: self.precision };
        let (x, dy) = (self.put("x", &[ROWS, inputs]), self.put("dy", &[ROWS, out]));
        let (y, saved) = layer.forward(&x, Some(NOISE)).unwrap();
        self.note(what, &y);
        let mut grads = Grads::new(4);
        let dx = layer.backward(&x, &saved, &dy, true, Some(NOISE), &mut grads).unwrap();
        self.note(&format!("{what}, backward"), &dx.unwrap());
        self.note_grads(what, &grads, 4);
    }

    fn linears(&mut self) {
        let shape = (136, 64);
        let trained = self.trained("w", &[136, 64], 0);
        self.linear("linear, trained", trained.into(), shape);
        let narrow = self.precision == Precision::Bf16;
        let dtype = if narrow { DType::BF16 } else { DType::F32 };
        let frozen: Weight<Matrix> = Weight::frozen(self.put("w", &[136, 64]).to_dtype(dtype).unwrap());
        self.linear("linear, frozen", frozen, shape);
        let dense = Input::random("w", &[136, 64]).values;
        let blocks = Nf4::encode(shape, true, |range, out| out.copy_from_slice(&dense[range]));
        let value = match Gpu::new(self.device) {
            Some(gpu) => Matrix::OnGpu(Arc::new(Blocks::of_nf4(&gpu, &blocks).unwrap())),
            None => Matrix::Quantised(Arc::new(blocks)),
        };
        self.linear("linear, NF4", Weight { value, param: None }, shape);
        self.shared();
    }

    /// What the gate reads, as it keeps it.
    fn shared(&mut self) {
        let frozen = |name: &str| Linear {
            weight: Weight::frozen(self.put(name, &[136, 64])),
            bias: None,
            lora: Some(self.lora((136, 64), 0.0)),
            precision: self.precision,
        };
        let (gate, up) = (frozen("w"), frozen("w2"));
        let x = self.keep(Site::Norm, &self.put("x", &[ROWS, 64]));
        let [(gate_out, saved_gate), (up_out, saved_up)] =
            linear::forward([&gate, &up], &x, None, self.precision).unwrap();
        let [gate_out, up_out] = [gate_out, up_out].map(|y| self.keep(Site::Gate, &y));
        self.note("gate's linear", &gate_out);
        self.note("up's linear", &up_out);
        let (d_gate, d_up) = gate::backward(&gate_out, &up_out, self.put("dy", &[ROWS, 136])).unwrap();
        let mut grads = Grads::new(4);
        let layers = [(&gate, &saved_gate, &d_gate), (&up, &saved_up, &d_up)];
        let dx = linear::backward(&layers, &x, true, None, &mut grads).unwrap();
        self.note("gate and up, backward", &dx.unwrap());
        self.note_grads("gate and up", &grads, 4);
    }

    fn gate(&mut self) {
        let [gate, up] = ["gate", "up"].map(|name| self.keep(Site::Gate, &self.put(name, &[ROWS, 136])));
        self.note("gate", &gate::forward(&gate, &up).unwrap());
        let (d_gate, d_up) = gate::backward(&gate, &up, self.put("dy", &[ROWS, 136])).unwrap();
        self.note("gate, backward", &d_gate);
        self.note("gate's other side, backward", &d_up);
    }

    fn attention(&mut self, what: &str, head_dim: usize, window: Option<usize>, softcap: Option<f32>) {
        let (heads, kv_heads) = (4, 2);
        let shape = Shape { heads, kv_heads, head_dim, scale: 0.125, softcap, window };
        let spans = SEGMENTS.map(|rows| Span { q: rows.clone(), k: rows });
        let positions: Vec<u32> = (0..33).chain(0..37).collect();
        let placed = Placed::new(self.device, &positions, &spans).unwrap();
        let rope = Rope { theta: 1e4, scaling: RopeScaling::None };
        let table = Table::new(&rope, head_dim, 64).on(self.device).unwrap();
        let q = self.put("q", &[ROWS, heads * head_dim]);
        let [k, v] = ["k", "v"].map(|name| self.put(name, &[ROWS, kv_heads * head_dim]));
        table.turn_both((&q, &k), &positions, placed.as_ref(), false).unwrap();
        self.note(&format!("{what}: rope on q"), &q);
        self.note(&format!("{what}: rope on k"), &k);
        let [q, k, v] = [q, k, v].map(|x| self.keep(Site::Attention, &x));
        let d_out = self.put("dy", &[ROWS, heads * head_dim]);
        let (out, grads) = if let Some(placed) = &placed {
            let (out, saved) = gpu::attention::forward(placed, &shape, &q, &k, &v).unwrap();
            (out, gpu::attention::backward(placed, &shape, &saved, &d_out).unwrap())
        } else {
            let (out, saved) = attention::forward(&shape, &spans, &q, &k, &v).unwrap();
            (out, attention::backward(&shape, &spans, &saved, &d_out).unwrap())
        };
        self.note(what, &out);
        table.turn_both((&grads.q, &grads.k), &positions, placed.as_ref(), true).unwrap();
        for (name, grad) in [("q", &grads.q), ("k", &grads.k), ("v", &grads.v)] {
            self.note(&format!("{what}, gradient of {name}"), grad);
        }
    }

    fn head(&mut self) {
        let weight = self.trained("vocabulary", &[1000, 64], 0).into();
        let head = Head { weight, precision: self.precision };
        let targets: Vec<u32> = (0..70).map(|i| i * 13 % 1000).collect();
        let mut grads = Grads::new(1);
        let hidden = self.put("hidden", &[ROWS, 64]);
        let (sum, dx) = head.loss_and_backward(&hidden, &targets, 0.01, &mut grads).unwrap();
        self.given.push(("loss".into(), vec![sum.value().unwrap() as f32]));
        self.note("head, backward", &dx);
        self.note_grads("head", &grads, 1);
    }

    fn embedding(&mut self) {
        let table = self.trained("table", &[50, 64], 0).into();
        let ids: Vec<u32> = (0..70).map(|i| i * 7 % 50).collect();
        self.note("embedding", &embedding::forward(&table, &ids).unwrap());
        let mut grads = Grads::new(1);
        embedding::backward(&table, &ids, &self.put("dy", &[ROWS, 64]), &mut grads).unwrap();
        self.note_grads("embedding", &grads, 1);
    }

    fn optimizer(&mut self) {
        let settings = Settings {
            optimizer: config::Optimizer::Adamw,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            momentum: 0.0,
        };
        let values = ["one", "two"].map(|name| self.put(name, &[33, 129]));
        let grads = ["its", "other"].map(|name| self.put(name, &[33, 129]));
        let mut rules = [0, 1].map(|i| optimizer::rule(&settings, &values[i]).unwrap());
        for count in 1..=3 {
            let step = Step { count, lr: 1e-2, weight_decay: 0.1, grad_scale: 0.5, rounding: 0 };
            let all = rules.iter_mut().zip(&values).zip(&grads);
            let all = all.map(|((rule, value), grad)| Update { rule: &mut **rule, value, grad, step });
            optimizer::update(all.collect()).unwrap();
        }
        let squares = optimizer::sums_of_squares(&[&grads[0], &grads[1]]).unwrap();
        self.given.push(("norms".into(), squares.into_iter().map(|s| s as f32).collect()));
        self.note("AdamW", &values[0]);
        self.note("AdamW's second tensor", &values[1]);
    }
}

fn everything(device: &Device, precision: Precision) -> Given {
    let mut bench = Bench { device, precision, given: Vec::new() };
    bench.norm();
    bench.linears();
    bench.gate();
    bench.attention("attention", 64, None, None);
    bench.attention("attention of wide heads", 128, None, None);
    bench.attention("attention through a window", 64, Some(16), None);
    bench.attention("attention with a soft cap", 32, None, Some(20.0));
    bench.head();
    bench.embedding();
    bench.optimizer();
    bench.given
}

fn assert_close(ours: &Given, theirs: &Given, tolerance: f32) {
    assert_eq!(ours.len(), theirs.len());
    for ((what, ours), (_, theirs)) in ours.iter().zip(theirs) {
        let largest = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(largest > 0.0 && ours.len() == theirs.len(), "{what}");
        let off = ours.iter().zip(theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(off <= tolerance * largest, "{what}: off by {off} of {largest}");
    }
}

#[test]
#[ignore = "needs FTTRAIN_GPU, the GPU to compute on (cuda:0), and the feature cuda"]
fn ops_on_a_gpu_give_what_they_give_on_the_cpu() {
    let gpu = std::env::var("FTTRAIN_GPU").expect("FTTRAIN_GPU is not set: give the GPU, like cuda:0");
    let nth = gpu.trim_start_matches("cuda:").parse().expect("FTTRAIN_GPU is like cuda:0");
    let device = Device::new_cuda(nth).unwrap();
    // Another order of sums in f32; what bf16 rounds otherwise.
    for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::Bf16, 2e-2)] {
        assert_close(&everything(&device, precision), &everything(&Device::Cpu, precision), tolerance);
    }
}

/// What is held against each other above, and by how much it may differ: bf16 is off by more than f32's tolerance.
#[test]
fn what_a_gpu_is_held_against_tells_f32_from_bf16() {
    let [exact, narrow] = [Precision::F32, Precision::Bf16].map(|p| everything(&Device::Cpu, p));
    assert_close(&everything(&Device::Cpu, Precision::F32), &exact, 0.0);
    assert_close(&narrow, &exact, 2e-2);
    let is_off = std::panic::catch_unwind(|| assert_close(&narrow, &exact, 1e-4));
    assert!(is_off.is_err());
}
