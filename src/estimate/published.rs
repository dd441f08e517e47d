//! Runs that others published: what an accelerator's efficiency is fitted on, and what the prediction is tested on.
//! No row is used for both.

use super::csv;
use super::error::Error;
use super::machine::{Kind, Machine};
use super::memory::{BaseType, Layout, Load};
use super::rates::Blocks;
use super::trained::{Trained, Update};
use super::work::{Class, Model, Op, Stored, Volume};
use super::{Counts, Parameters, sum, time, wide};
use crate::arch::{Arch, Family, Layer, Linear, Proj, Rope, RopeScaling};
use crate::config::{Lora, Method, Targets};
use crate::error::Result;
use crate::units::BYTES_PER_GIB;

/// The shipped rows; the columns are named in the first line.
const SHIPPED: &str = include_str!("published.csv");
/// Rows of logits that frameworks keep: all of a micro-batch.
const ALL_ROWS: u64 = u64::MAX;

/// What a row is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Share of the peak.
    Fit,
    /// Seconds of a launch: a model so small that nothing else shows.
    Launch,
    /// Judging the prediction.
    Test,
}

/// One published run.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// What it is for.
    pub used: Use,
    /// The model.
    pub model: String,
    /// As the data sheets name it.
    pub accelerator: String,
    /// Full, LoRA or QLoRA.
    pub method: Method,
    /// Shapes of the model.
    pub arch: Arch,
    /// Linears with an adapter.
    pub adapted: Vec<Linear>,
    /// Rows of a micro-batch.
    pub batch: u64,
    /// Tokens of a row.
    pub sequence: u64,
    /// Micro-batches that were timed.
    pub micro_batches: u64,
    /// Optimizer steps that they make.
    pub steps: u64,
    /// Activations were recomputed.
    pub recompute: bool,
    /// Seconds that they took.
    pub seconds: f64,
    /// Peak memory, GiB.
    pub memory_gib: f64,
    /// Where it stands.
    pub source: String,
}

/// Prediction against what was published.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Compared {
    /// Model, method, batch × length, accelerator.
    pub what: String,
    /// `fit` or `test`.
    pub used: &'static str,
    /// Seconds predicted.
    pub predicted_s: f64,
    /// Seconds published.
    pub published_s: f64,
    /// (predicted − published) / published, %.
    pub time_error_pct: f64,
    /// GiB predicted.
    pub predicted_gib: f64,
    /// GiB published.
    pub published_gib: f64,
    /// Likewise, %.
    pub memory_error_pct: f64,
    /// Where it stands.
    pub source: String,
}

/// All shipped rows.
///
/// # Errors
/// None in a released program: a test reads every row.
pub fn shipped() -> Result<Vec<Published>> {
    Ok(csv::read("published runs", SHIPPED, row)?)
}

fn row(fields: &csv::Row<'_>) -> Result<Published, Error> {
    let whole = |column: &str| Ok::<_, Error>(fields.whole(column)?.unwrap_or(0));
    let size = |column: &str| Ok::<_, Error>(usize::try_from(whole(column)?).unwrap_or(usize::MAX));
    let used = match fields.text("use")? {
        "fit" => Use::Fit,
        "launch" => Use::Launch,
        _ => Use::Test,
    };
    let arch = Arch {
        family: Family::Llama,
        vocab_size: size("vocab")?,
        hidden_size: size("hidden")?,
        intermediate_size: size("intermediate")?,
        heads: size("heads")?,
        kv_heads: size("kv_heads")?,
        head_dim: size("head_dim")?,
        norm_eps: 1e-5,
        tie_word_embeddings: whole("tied")? == 1,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        max_position: 8192,
        ropes: vec![Rope { theta: 1e4, scaling: RopeScaling::None }],
        layers: vec![Layer { rope: 0, window: None }; size("layers")?],
        init_std: 0.02,
        bos_ids: Vec::new(),
        eos_ids: Vec::new(),
    };
    let lora = Lora { r: Some(size("rank")?), targets: Some(Targets::AllLinear), ..Lora::default() };
    let method = match fields.text("method")? {
        "lora" => Method::Lora(lora),
        "qlora" => Method::Qlora { lora, double_quant: true },
        _ => Method::Full,
    };
    let only_qv = fields.text("targets")? == "qv";
    let targeted = |l: &Linear| !only_qv || matches!(l.proj, Proj::Q | Proj::V);
    Ok(Published {
        used,
        model: fields.text("model")?.into(),
        accelerator: fields.text("accelerator")?.into(),
        adapted: if method == Method::Full { Vec::new() } else { arch.linears().filter(targeted).collect() },
        method,
        arch,
        batch: whole("batch")?,
        sequence: whole("sequence")?,
        micro_batches: whole("micro_batches")?,
        steps: whole("steps")?,
        recompute: whole("recompute")? == 1,
        seconds: fields.needed("seconds")?,
        memory_gib: fields.needed("memory_gib")?,
        source: fields.text("source")?.into(),
    })
}

impl Published {
    /// Its products, by rows, output and input features.
    pub(crate) fn products(&self) -> Vec<(Class, [u64; 3])> {
        let (tokens, arch) = (self.batch.saturating_mul(self.sequence), &self.arch);
        let linear = |proj| {
            let linear = arch.linear(0, proj);
            (Class::Linear, [tokens, wide(linear.outputs), wide(linear.inputs)])
        };
        let mut all: Vec<_> = Proj::ALL.map(linear).to_vec();
        all.push((Class::Head, [tokens, wide(arch.vocab_size), wide(arch.hidden_size)]));
        all.push((Class::Attention, [self.sequence, self.sequence, wide(arch.head_dim)]));
        all.sort_unstable();
        all.dedup();
        all
    }

    /// How the frozen weights were kept.
    pub(crate) fn stored(&self) -> Stored {
        if matches!(self.method, Method::Qlora { .. }) { Stored::Quantised } else { Stored::Bf16 }
    }

    /// Every position is a target: none of the sources says how many were.
    fn ops(&self) -> Vec<Op> {
        let (batch, sequence) = (self.batch as f64, self.sequence as f64);
        let calls = self.micro_batches as f64;
        let tokens = batch * sequence * calls;
        let volume = Volume { tokens, targets: tokens, squares: tokens * sequence, calls };
        let (arch, method, adapted) = (&self.arch, &self.method, self.adapted.as_slice());
        let model = Model { arch, method, adapted, stored: self.stored(), update: Update::ADAMW };
        model.training(&volume, self.steps as f64, &Parameters::count(arch, method, adapted), self.recompute)
    }

    /// Seconds that a machine is predicted to take.
    pub fn predicted_s(&self, machine: &Machine) -> f64 {
        time::seconds(&self.ops(), machine, &self.blocks())
    }

    fn blocks(&self) -> Blocks {
        Blocks::of(&self.arch, &self.method, self.stored())
    }

    /// Share of its peak that a machine reached, which `ideal` would reach whole; `None` where memory alone would have
    /// taken longer.
    pub(crate) fn share(&self, ideal: &Machine) -> Option<f64> {
        let ops = self.ops();
        let (products, others): (Vec<Op>, Vec<Op>) = ops.into_iter().partition(|op| op.flops > 0.0);
        let of = |ops: &[Op]| time::seconds(ops, ideal, &self.blocks());
        let left = self.seconds - of(&others);
        (left > 0.0).then(|| of(&products) / left)
    }

    /// Seconds of a launch, were there nothing else.
    pub(crate) fn launch_s(&self, ideal: &Machine) -> f64 {
        let mut machine = ideal.clone();
        machine.launch_s = 1.0;
        self.seconds / time::seconds(&self.ops(), &machine, &self.blocks())
    }

    /// What is trained; frameworks keep gradients and moments in the weights' own type, bf16 in every run that trained
    /// them. One had moments of 8 bits besides: it is counted too high.
    fn trained(&self) -> Trained {
        let all = Trained::count(&self.arch, &self.method, &self.adapted, Update::ADAMW);
        if self.method != Method::Full {
            return all;
        }
        Trained {
            values: all.values / 2,
            gradients: all.gradients / 2,
            head_gradients: all.head_gradients / 2,
            block_gradients: all.block_gradients / 2,
            input_gradients: all.input_gradients / 2,
            standing: all.standing / 2,
            state: all.state / 2,
            anchor: 0,
        }
    }

    /// Peak memory that is predicted, bytes.
    pub fn predicted_bytes(&self, machine: &Machine) -> u64 {
        let base = match &self.method {
            Method::Qlora { double_quant, .. } => BaseType::Nf4 { double_quant: *double_quant, others: 2 },
            _ => BaseType::Bf16,
        };
        let layout = Layout {
            arch: &self.arch,
            method: &self.method,
            adapted: &self.adapted,
            parameters: Parameters::count(&self.arch, &self.method, &self.adapted),
            trained: self.trained(),
            base,
            narrow: true,
            multiplies_bf16: true,
            on_device: machine.kind == Kind::Accelerator,
            passes_bf16: true,
            accumulates: false,
            shares: false,
            logits_rows: ALL_ROWS,
            runtime_bytes: machine.baseline_bytes,
            read_value: 2,
        };
        let tokens = self.batch.saturating_mul(self.sequence);
        let load = Load { tokens, targets: tokens };
        sum(&layout.peak(&Counts::default(), load, self.recompute))
    }

    /// Prediction against what was published.
    pub fn compare(&self, machine: &Machine) -> Compared {
        let predicted_s = self.predicted_s(machine);
        let predicted_gib = self.predicted_bytes(machine) as f64 / BYTES_PER_GIB;
        let method = match self.method {
            Method::Full => "full",
            Method::Lora(_) => "LoRA",
            Method::Qlora { .. } => "QLoRA",
        };
        let error = |predicted: f64, published: f64| 100.0 * (predicted - published) / published;
        Compared {
            what: format!("{} {method} {}×{} on {}", self.model, self.batch, self.sequence, self.accelerator),
            used: if self.used == Use::Test { "test" } else { "fit" },
            predicted_s,
            published_s: self.seconds,
            time_error_pct: error(predicted_s, self.seconds),
            predicted_gib,
            published_gib: self.memory_gib,
            memory_error_pct: error(predicted_gib, self.memory_gib),
            source: self.source.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::sheets;

    /// Not a measure of the fit: a generation's rows are drawn together over its cards and shapes, and a row moves towards
    /// the others. One that is further off was misread, or its share went lost on the way to the rates.
    const OFF_PCT: f64 = 60.0;

    #[test]
    fn rows_are_read_and_each_is_for_one_thing() {
        let rows = shipped().unwrap();
        let of = |used| rows.iter().filter(|r| r.used == used).count();
        assert!(of(Use::Fit) >= 5 && of(Use::Test) >= 12 && of(Use::Launch) == 1);
        assert!(rows.iter().all(|r| !r.source.is_empty() && (1..=r.micro_batches).contains(&r.steps)));
    }

    #[test]
    fn a_row_that_was_fitted_on_comes_out_in_its_order_of_magnitude() {
        let (sheets, rows) = (sheets::shipped().unwrap(), shipped().unwrap());
        for row in rows.iter().filter(|r| r.used == Use::Fit && r.stored() != Stored::Quantised) {
            let sheet = sheets::find(&sheets, &row.accelerator).unwrap();
            let compared = row.compare(&sheets::machine(sheet, &sheets, &rows));
            assert!(compared.time_error_pct.abs() < OFF_PCT, "{compared:?}");
        }
    }
}
