//! The nearest settings with which a run fits or costs less, and the three methods side by side: each with the peak,
//! the time and the money that it leads to.

use super::fit::{self, FullBatch};
use super::memory::Load;
use super::prediction::{Inputs, Outline, outline};
use super::{Counts, wide};
use crate::arch::Linear;
use crate::config::{Config, ExcessLength, Format, Lora, Method, Source, Targets};
use crate::units::{Bytes, Seconds, Usd};
use serde::{Deserialize, Serialize};

/// A setting with what it leads to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lever {
    /// As it is written in a config: `micro_batch_size = 2`.
    pub setting: String,
    /// Predicted peak with it, bytes.
    pub peak_memory_bytes: u64,
    /// Whether that is within the limit.
    pub fits: bool,
    /// Values that are trained with it.
    pub trainable: u64,
    /// Predicted seconds of one optimizer step.
    pub step_s: f64,
    /// Predicted seconds of the whole run.
    pub wall_s: f64,
    /// Predicted bill, USD; `None` = no price.
    pub cost_usd: Option<f64>,
}

impl std::fmt::Display for Lever {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}, {}", self.setting, Bytes(self.peak_memory_bytes), Seconds(self.wall_s))?;
        match self.cost_usd {
            Some(usd) => write!(f, ", {})", Usd(usd)),
            None => write!(f, ")"),
        }
    }
}

/// Sequence lengths are tried in multiples of this.
const LENGTH_STEP: u64 = 64;
/// A lower rank than this is not worth a run.
const LEAST_RANK: usize = 4;

/// `value · part / whole`, at least 1 where `value` is.
fn scaled(value: u64, part: u64, whole: u64) -> u64 {
    let exact = u128::from(value) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(exact).unwrap_or(u64::MAX).max(value.min(1))
}

/// The search for settings around those of a config.
pub(crate) struct Search<'a> {
    inputs: &'a Inputs<'a>,
    /// Stands in place of the data's largest micro-batch.
    filled: Option<Load>,
    recompute: bool,
    limit: u64,
}

/// One candidate: what differs from the inputs.
struct Change {
    config: Config,
    counts: Counts,
    load: Load,
    /// `None` = where memory asks for it.
    recompute: Option<bool>,
}

impl<'a> Search<'a> {
    /// Around `inputs`, which are planned with or without recompute.
    pub(crate) fn new(inputs: &'a Inputs<'a>, recompute: bool) -> Self {
        Self { inputs, filled: None, recompute, limit: inputs.limits.memory_bytes }
    }

    fn unchanged(&self) -> Change {
        Change {
            config: self.inputs.config.clone(),
            counts: *self.inputs.counts,
            load: self.filled.unwrap_or_else(|| fit::load(self.inputs)),
            recompute: Some(self.recompute),
        }
    }

    /// What `read` finds in the outline of a change.
    fn outlined<R>(&self, change: &Change, read: impl FnOnce(&Outline<'_>) -> R) -> R {
        let all: Vec<Linear>;
        let adapted = match &change.config.method {
            Method::Full => &[][..],
            _ if self.inputs.adapted.is_empty() => {
                all = self.inputs.arch.linears().collect();
                &all
            }
            _ => self.inputs.adapted,
        };
        let inputs = Inputs { config: &change.config, counts: &change.counts, adapted, ..*self.inputs };
        read(&outline(&inputs, change.load, change.recompute))
    }

    fn peak(&self, change: &Change) -> u64 {
        self.outlined(change, |outline| super::sum(&outline.memory.parts))
    }

    fn lever(&self, setting: String, change: &Change) -> Lever {
        self.outlined(change, |outline| {
            let peak_memory_bytes = super::sum(&outline.memory.parts);
            let predicted = outline.corrected;
            Lever {
                setting,
                peak_memory_bytes,
                fits: peak_memory_bytes <= self.limit,
                trainable: outline.layout.parameters.trainable,
                step_s: predicted.step_s.unwrap_or(0.0),
                wall_s: predicted.wall_s.unwrap_or(0.0),
                cost_usd: predicted.cost_usd,
            }
        })
    }

    /// Micro-batches of `part / whole` of the size, of which the data fill `most`: as many tokens in as many more steps,
    /// or where `max_steps` says how many, in as many steps as many fewer tokens.
    fn shrunk(&self, part: u64, whole: u64, most: u64) -> Change {
        let mut change = self.unchanged();
        let counts = &mut change.counts;
        let (less, full) = (part.min(most).max(1), whole.min(most).max(1));
        // One that the data cannot fill is judged as it is written.
        let (part, whole) = if self.filled.is_some() { (part, whole) } else { (less, full) };
        change.load = Load {
            tokens: scaled(change.load.tokens, part, whole),
            targets: scaled(change.load.targets, part, whole),
        };
        counts.median_step_tokens *= less as f64 / full as f64;
        if self.inputs.config.train.max_steps.is_some() {
            *counts = counts.with_less(less, full);
        } else {
            counts.steps = scaled(counts.steps, full, less);
            counts.micro_batches = scaled(counts.micro_batches, full, less);
        }
        for judged in [&mut counts.eval, &mut counts.retention] {
            judged.max_batch_tokens = scaled(judged.max_batch_tokens, less, full);
            judged.micro_batches = scaled(judged.micro_batches, full, less);
        }
        change
    }

    /// The largest multiple of `step` from `least` and below `now` whose change fits.
    fn largest(
        &self,
        (least, now): (u64, u64),
        step: u64,
        make: &dyn Fn(u64) -> Change,
    ) -> Option<(u64, Change)> {
        let fits = |change: &Change| self.peak(change) <= self.limit;
        let (mut low, mut high) = (0, now.saturating_sub(1) / step);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if fits(&make(middle * step)) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        (low > 0 && low * step >= least).then(|| (low * step, make(low * step)))
    }

    /// A number lowered until the run fits, as the config is or else with recompute.
    fn lowered(
        &self,
        bounds: (u64, u64),
        step: u64,
        key: &str,
        make: &dyn Fn(u64) -> Change,
    ) -> Option<Lever> {
        if let Some((value, change)) = self.largest(bounds, step, make) {
            return Some(self.lever(format!("{key} = {value}"), &change));
        }
        let with = |value| Change { recompute: Some(true), ..make(value) };
        let (value, change) = self.largest(bounds, step, &with)?;
        Some(self.lever(format!("{key} = {value} with gradient_checkpointing = true"), &change))
    }

    fn batch(&self) -> Option<Lever> {
        let now = wide(self.inputs.config.train.micro_batch_size);
        // No micro-batch has more rows than there are.
        let rows = self.inputs.counts.rows;
        self.lowered((1, now), 1, "micro_batch_size", &|value| self.shrunk(value, now, rows))
    }

    fn length(&self) -> Option<Lever> {
        let (data, longest) = (&self.inputs.config.data, self.inputs.counts.longest);
        let stated = wide(data.sequence_len);
        // Without packs a row is as long as it is; and rows that are longer are not to be lost, where they are not cut.
        let now = if data.sample_packing || longest == 0 { stated } else { stated.min(longest) };
        let is_text = |source: &Source| source.format == Format::Completion;
        let is_cut = data.excess_length == ExcessLength::Truncate || data.datasets.iter().all(is_text);
        let least = if is_cut { 0 } else { longest.min(now) };
        self.lowered((least, now), LENGTH_STEP, "sequence_len", &|value| self.shrunk(value, now, now))
    }

    fn with_method(&self, method: Method) -> Change {
        let mut change = self.unchanged();
        change.config.method = method;
        change
    }

    fn adapter(&self) -> Lora {
        match &self.inputs.config.method {
            Method::Lora(lora) | Method::Qlora { lora, .. } => lora.clone(),
            Method::Full => Lora {
                r: Some(16),
                alpha: Some(32.0),
                targets: Some(Targets::AllLinear),
                rslora: Some(false),
                ..Lora::default()
            },
        }
    }

    /// Half the rank, or less, until the run fits.
    fn rank(&self) -> Option<Lever> {
        let (Method::Lora(lora) | Method::Qlora { lora, .. }) = &self.inputs.config.method else {
            return None;
        };
        let ranks = std::iter::successors(lora.r.map(|r| r / 2), |r| Some(r / 2));
        ranks.take_while(|r| *r >= LEAST_RANK).find_map(|r| {
            let mut change = self.unchanged();
            if let Method::Lora(lora) | Method::Qlora { lora, .. } = &mut change.config.method {
                lora.r = Some(r);
            }
            Some(self.lever(format!("lora_r = {r}"), &change)).filter(|lever| lever.fits)
        })
    }

    /// A method that needs less, where it fits.
    fn method(&self) -> Option<Lever> {
        let lora = (self.inputs.config.method == Method::Full).then(|| Method::Lora(self.adapter()));
        let qlora = Method::Qlora { lora: self.adapter(), double_quant: true };
        let is_quantised = matches!(self.inputs.config.method, Method::Qlora { .. });
        let candidates = [lora.map(|m| ("--lora", m)), (!is_quantised).then_some(("--qlora", qlora))];
        candidates.into_iter().flatten().find_map(|(setting, method)| {
            Some(self.lever(setting.into(), &self.with_method(method))).filter(|lever| lever.fits)
        })
    }

    fn recomputed(&self) -> Option<Lever> {
        let change = Change { recompute: Some(true), ..self.unchanged() };
        let lever = || self.lever("gradient_checkpointing = true".into(), &change);
        (!self.recompute).then(lever).filter(|lever| lever.fits)
    }

    /// All settings that fit, the one that changes least first.
    pub(crate) fn fitting(&self) -> Vec<Lever> {
        [self.recomputed(), self.batch(), self.length(), self.rank(), self.method()]
            .into_iter()
            .flatten()
            .collect()
    }

    /// The settings that fit a micro-batch which the data cannot fill.
    pub(crate) fn full_batch(mut self) -> Option<FullBatch> {
        self.filled = Some(fit::filled(self.inputs)?);
        self.recompute = true;
        let peak_memory_bytes = self.peak(&self.unchanged());
        let levers = if peak_memory_bytes > self.limit {
            [self.batch(), self.length()].into_iter().flatten().collect()
        } else {
            Vec::new()
        };
        Some(FullBatch { peak_memory_bytes, levers })
    }

    /// Settings that fit and bring time and bill under the budget's caps, or at least nearer: without recompute, and
    /// with as many steps as the caps pay for.
    pub(crate) fn cheaper(&self, now: &Outline<'_>) -> Vec<Lever> {
        let budget = &self.inputs.config.budget;
        let share = |cap: Option<f64>, value: Option<f64>| cap.zip(value).map(|(cap, value)| cap / value);
        let (wall, cost) = (now.corrected.wall_s, now.corrected.cost_usd);
        let shares = [share(budget.max_hours.map(|h| h * 3600.0), wall), share(budget.max_usd, cost)];
        let Some(share) = shares.into_iter().flatten().reduce(f64::min).filter(|s| *s < 1.0) else {
            return Vec::new();
        };
        let kept = self.recompute.then(|| {
            let change = Change { recompute: Some(false), ..self.unchanged() };
            self.lever("gradient_checkpointing = false".into(), &change)
        });
        [kept.filter(|lever| lever.fits), self.fewer_steps(now, share)].into_iter().flatten().collect()
    }

    /// As many steps as `share` of the whole pays for, what is spent beside the steps taken off first.
    fn fewer_steps(&self, now: &Outline<'_>, share: f64) -> Option<Lever> {
        let counts = *self.inputs.counts;
        let train = now.phases.iter().find(|(name, _)| name == "train").map(|(_, s)| *s)?;
        let (beside, step) = (now.corrected.wall_s? - train, train / counts.steps.max(1) as f64);
        let wall = now.corrected.wall_s?;
        let steps = super::rounded(((share * wall - beside) / step.max(1e-9)).floor());
        if steps == 0 || steps >= counts.steps {
            return None;
        }
        let mut change = self.unchanged();
        change.config.train.max_steps = Some(steps);
        change.counts = Counts {
            steps,
            micro_batches: scaled(counts.micro_batches, steps, counts.steps),
            ..counts.with_less(steps, counts.steps)
        };
        if let Some(shared) = &mut change.counts.shared {
            shared.slowest.calls *= steps as f64 / counts.steps as f64;
        }
        Some(self.lever(format!("max_steps = {steps}"), &change))
    }

    /// Full fine-tuning, LoRA and QLoRA for the same config; recompute where the method needs it.
    pub(crate) fn methods(&self) -> Vec<Lever> {
        let lora = self.adapter();
        let qlora = Method::Qlora { lora: lora.clone(), double_quant: true };
        [("full", Method::Full), ("lora", Method::Lora(lora)), ("qlora", qlora)]
            .into_iter()
            .map(|(name, method)| {
                let recompute = self.inputs.config.train.gradient_checkpointing;
                self.lever(name.into(), &Change { recompute, ..self.with_method(method) })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::fixture::{Case, config, limits, smollm2};

    #[test]
    fn a_smaller_batch_is_predicted_as_a_run_of_its_own_would_be() {
        for max_steps in [None, Some(10)] {
            let at = |micro_batch_size: usize, memory: u64| {
                let mut config = config();
                config.train.micro_batch_size = micro_batch_size;
                config.train.max_steps = max_steps;
                config.train.gradient_checkpointing = Some(true);
                Case { limits: limits(memory), ..Case::new(smollm2(), config) }.predict()
            };
            let own = at(4, 64 << 30).predicted;
            let (peak, step_s) = (own.peak_memory_bytes.unwrap(), own.step_s.unwrap());
            let levers = at(16, peak).levers;
            let lever = &levers[0];
            assert_eq!((lever.setting.as_str(), lever.peak_memory_bytes), ("micro_batch_size = 4", peak));
            assert!((lever.step_s / step_s - 1.0).abs() < 0.01, "{lever}: {step_s} s a step of its own");
        }
    }

    #[test]
    fn shorter_sequences_are_a_way_out_only_where_no_row_is_lost_by_them() {
        let offered = |format: Format, tokens: u64, excess_length: ExcessLength, sample_packing: bool| {
            let mut config = config();
            config.data.datasets[0].format = format;
            (config.data.excess_length, config.data.sample_packing) = (excess_length, sample_packing);
            config.train.gradient_checkpointing = Some(false);
            config.train.micro_batch_size = 4;
            let counts = Counts::uniform(1000, tokens, &config);
            let case = Case { counts, limits: limits(2 << 30), ..Case::new(smollm2(), config) };
            case.predict().levers.into_iter().find(|lever| lever.setting.starts_with("sequence_len = "))
        };
        let (text, chat) = (Format::Completion, Format::ChatTemplate);
        let has = |lever: Option<Lever>| lever.is_some();
        assert!(has(offered(text, 4096, ExcessLength::Drop, true)), "text is cut into windows");
        assert!(has(offered(chat, 256, ExcessLength::Drop, true)), "packs are shorter, rows are not");
        assert!(has(offered(chat, 2048, ExcessLength::Truncate, true)));
        assert!(!has(offered(chat, 2048, ExcessLength::Drop, true)));
        assert!(!has(offered(chat, 1500, ExcessLength::Drop, false)), "rows alone are as long as they are");
    }
}
