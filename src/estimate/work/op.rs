//! One op: its shape, and the FLOPs and bytes of all its calls.

use super::super::trained::Update;
use super::{Class, Pass, Site, Stored, Way, f};
use crate::arch::Arch;

/// All calls of one op over a phase, with the shape of one call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Op {
    /// Its class.
    pub class: Class,
    /// What it is done for.
    pub way: Way,
    /// Its place in the model.
    pub site: Site,
    /// Its way through it.
    pub pass: Pass,
    /// Rows of a call: tokens of a mean micro-batch.
    pub m: f64,
    /// Output features.
    pub n: f64,
    /// Input features.
    pub k: f64,
    /// Rank of the adapter on it; 0 = none.
    pub rank: f64,
    /// FLOPs of all calls; 0 for what only moves bytes.
    pub flops: f64,
    /// Of them, the adapter's.
    pub adapter_flops: f64,
    /// Bytes of all calls that memory must move; 0 for products.
    pub bytes: f64,
    /// Calls.
    pub calls: f64,
    /// How the values that it reads are kept, where not as the frozen base.
    pub stored: Option<Stored>,
}

const F32: f64 = 4.0;
/// Backward of attention against its forward: the scores are made again, then four products in place of two
/// (Dao et al. 2022).
const ATTENTION_BACKWARD: f64 = 2.5;
/// Element-wise traffic backward against forward: each op reads its saved input beside the gradient.
const ELEMENTWISE_BACKWARD: f64 = 2.0;

impl Op {
    /// An op that does nothing yet.
    pub fn nothing(class: Class, way: Way) -> Self {
        let (site, pass) = match class {
            Class::Linear => (Site::Down, Pass::Backward),
            Class::Attention => (Site::Attention, Pass::Backward),
            // The head makes its gradient on the way forward.
            Class::Head => (Site::Head, Pass::Forward),
            Class::Elementwise => (Site::Norm, Pass::Backward),
            Class::Optimizer | Class::Adamw8bit | Class::Adafactor | Class::Lion | Class::Sgd => {
                (Site::Update, Pass::Update)
            }
        };
        Self {
            class,
            way,
            site,
            pass: if way == Way::Forward { Pass::Forward } else { pass },
            m: 1.0,
            n: 1.0,
            k: 1.0,
            rank: 0.0,
            flops: 0.0,
            adapter_flops: 0.0,
            bytes: 0.0,
            calls: 0.0,
            stored: None,
        }
    }

    /// `calls` passes of `m` rows through a linear `[n, k]` with an adapter of `rank`.
    pub fn linear(way: Way, (m, n, k): (f64, f64, f64), rank: f64, rows: f64, calls: f64) -> Self {
        let adapter_flops = way.adapter_products() * 2.0 * rows * rank * (n + k);
        let flops = way.products() * 2.0 * rows * n * k + adapter_flops;
        Self { m, n, k, rank, flops, adapter_flops, calls, ..Self::nothing(Class::Linear, way) }
    }

    /// `rows` counted rows, `m` at a time, through the head `[n, k]`: loss, and unless forward its gradient.
    pub fn head(way: Way, (m, n, k): (f64, f64, f64), rows: f64, calls: f64) -> Self {
        let products = match way {
            Way::Forward => 1.0,
            Way::Backward => 2.0,
            Way::Trained => 3.0,
        };
        Self { m, n, k, flops: products * 2.0 * rows * n * k, calls, ..Self::nothing(Class::Head, way) }
    }

    /// Attention over `pairs` query-key pairs of `width` = heads · head size, in segments of `length`.
    pub fn attention(way: Way, length: f64, head_dim: f64, width: f64, pairs: f64, calls: f64) -> Self {
        let times = if way == Way::Forward { 1.0 } else { ATTENTION_BACKWARD };
        let flops = times * 4.0 * width * pairs;
        Self { m: length, n: length, k: head_dim, flops, calls, ..Self::nothing(Class::Attention, way) }
    }

    /// Element-wise work of `tokens` tokens in one block, `m` at a time.
    pub fn elementwise(way: Way, arch: &Arch, m: f64, tokens: f64, calls: f64) -> [Self; 4] {
        let times = if way == Way::Forward { 1.0 } else { ELEMENTWISE_BACKWARD };
        let (n, k) = (f(arch.intermediate_size), f(arch.hidden_size));
        elementwise_floats(arch).map(|(site, floats)| {
            let bytes = times * F32 * floats * tokens;
            Self { site, m, n, k, bytes, calls, ..Self::nothing(Class::Elementwise, way) }
        })
    }

    /// The same op at a place in the model.
    pub(super) fn at(self, site: Site, pass: Pass) -> Self {
        Self { site, pass, ..self }
    }

    /// `updates` updates of `values` trained values that lie in tensors of `each`.
    pub fn optimizer(update: Update, values: f64, each: f64, updates: f64) -> Self {
        Self::over_values(update, update.bytes_per_value(), values, each, updates)
    }

    /// The squares of `samples` gradients of these values, added to what there is of them.
    pub fn squares(update: Update, values: f64, each: f64, samples: f64) -> Self {
        Self::over_values(update, 3.0 * F32, values, each, samples)
    }

    /// What moves `bytes` of every trained value, at the rate of updates.
    fn over_values(update: Update, bytes: f64, values: f64, each: f64, times: f64) -> Self {
        let bytes = bytes * values * times;
        let calls = values / each.max(1.0) * times;
        let stored = Some(if update.is_narrow { Stored::Bf16 } else { Stored::F32 });
        Self { n: each, bytes, calls, stored, ..Self::nothing(Class::of(update.optimizer), Way::Backward) }
    }
}

/// Floats that one layer's element-wise ops read and write for a token, forward.
fn elementwise_floats(a: &Arch) -> [(Site, f64); 4] {
    let heads = f(a.heads + a.kv_heads) * f(a.head_dim);
    let qk_norm = if a.qk_norm { 2.0 * heads } else { 0.0 };
    [
        (Site::Norm, 4.0 * f(a.hidden_size) + qk_norm),
        (Site::Residual, 6.0 * f(a.hidden_size)),
        (Site::Rope, 2.0 * heads),
        (Site::Gate, 3.0 * f(a.intermediate_size)),
    ]
}
