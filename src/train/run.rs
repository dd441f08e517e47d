//! The loop: one optimizer step after the other, judged, recorded and committed.

use super::budget::{self, Longest, Spent};
use super::crew::Crew;
use super::evaluate::evaluate;
use super::folder::Holds;
use super::metrics::{EvalRecord, StepRecord};
use super::plan::Plan;
use super::progress::{Progress, Projection};
use super::session::Session;
use super::step::{Descended, Descent};
use super::stop::{Signal, Stop};
use super::{Error, artifacts};
use crate::data::packing::Step;
use crate::error::{self, Kind, Result};
use crate::estimate::phases::commits;
use crate::estimate::running::{Correction, Rate, Recurring};
use crate::meter::{Meter, Phase};
use crate::ops::profile;
use std::time::Instant;

/// How a run ended, where no error ended it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its last step was taken, or nothing was gained any more.
    Done,
    /// It was asked to end, and committed.
    Stopped(Signal),
    /// Another step would cross a cap of the budget; what was done is committed.
    Capped(error::Error),
}

/// Trains from the plan's first step to its last, then saves the result.
///
/// # Errors
/// Diverged (7), a disk that fails (5). What was committed stays.
pub fn run(
    session: &mut Session,
    plan: &mut Plan,
    meter: &Meter,
    stop: &Stop,
    crew: &Crew<'_>,
) -> Result<Outcome> {
    let (first, total) = (plan.first_step(), plan.epochs.total_steps());
    let mut course = Course::new(session, plan, meter, crew)?;
    if first == 0 {
        course.judge(0, 0.0)?;
        course.judge_retention()?;
    } else if let Some(end) = course.asked_to_end(first, stop) {
        // What earlier processes spent may leave room for no step at all.
        course.finish();
        return Ok(end);
    }
    // What loading took says nothing of how steps grow.
    course.peak_before = None;
    // A process that was killed after it had stopped early had only its result left to save; not one of a run that has
    // been given more steps since.
    let planned = course.plan.resume.as_ref().map(|(_, manifest)| manifest.planned_steps);
    let is_as_planned = planned.is_some_and(|steps| steps == 0 || steps == total);
    let has_stopped = is_as_planned && course.plan.holds != Holds::Finished && course.is_stuck();
    for k in if has_stopped { total } else { first }..total {
        let (record, step) = course.take_step(k)?;
        let done = record.step;
        let schedule = &course.plan.config().schedule;
        let save_due = schedule.save_steps.is_some_and(|n| done.is_multiple_of(n));
        let eval_due = done == total || schedule.eval_steps.is_some_and(|n| done.is_multiple_of(n));
        let is_best = if eval_due { course.judge(done, step.epoch_fraction)? } else { false };
        let keep_best = is_best && course.plan.config().schedule.load_best_model_at_end;
        let is_last = done == total || (eval_due && course.is_stuck());
        let end = if is_last { None } else { course.asked_to_end(done, stop) };
        if save_due || keep_best || is_last || end.is_some() {
            course.commit(done, step.epoch_fraction)?;
        }
        if let Some(end) = end {
            course.finish();
            return Ok(end);
        }
        if is_last && done < total {
            course.progress.note("the evaluation loss no longer falls: stopping early");
            break;
        }
    }
    if course.plan.config().schedule.load_best_model_at_end {
        course.session.restore_best(course.plan, crew)?;
    }
    course.judge_retention()?;
    course.finish();
    meter.enter(Phase::Save);
    artifacts::save(session, plan)?;
    Ok(Outcome::Done)
}

/// A run on its way.
struct Course<'a> {
    session: &'a mut Session,
    plan: &'a mut Plan,
    meter: &'a Meter,
    crew: &'a Crew<'a>,
    progress: Progress,
    correction: Correction,
    /// What evaluating was predicted to take from here on: the held-out rows, and what comes beside them.
    evaluating_s: f64,
    evaluations: Recurring,
    /// Of checkpoints, and of the result.
    saves: Recurring,
    longest: Longest,
    /// Peak memory after the step before.
    peak_before: Option<u64>,
    /// Steps taken, earlier processes' included.
    done: u64,
    /// Epochs completed by them, with the fraction.
    epoch: f64,
}

impl<'a> Course<'a> {
    fn new(
        session: &'a mut Session,
        plan: &'a mut Plan,
        meter: &'a Meter,
        crew: &'a Crew<'a>,
    ) -> Result<Self> {
        let total = plan.epochs.total_steps();
        // `max_steps` may have been lowered since the checkpoint was made.
        let left = total.saturating_sub(plan.first_step()) as f64 / total.max(1) as f64;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A share of the tokens.
        let tokens_left = (plan.prediction.counts.tokens as f64 * left) as u64;
        let phase_s = |name: &str| {
            let phase = plan.prediction.phases.iter().find(|phase| phase.name == name);
            left * phase.map_or(0.0, |phase| phase.wall_s)
        };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A share of a count.
        let of = |times: u64| (times as f64 * left).round() as u64;
        let evaluating_s = phase_s("evaluate");
        let evaluations = Recurring::new(of(plan.prediction.counts.eval.passes), evaluating_s);
        let saves = Recurring::new(of(commits(plan.config(), total) + 1), phase_s("save"));
        let progress = Progress::new(
            total,
            plan.first_step(),
            plan.ground.price.usd_per_hour,
            plan.config().schedule.logging_steps,
        );
        let longest = Longest::before(plan)?;
        let (done, epoch) = plan.resume.as_ref().map_or((0, 0.0), |(_, kept)| (kept.step, kept.epoch));
        Ok(Self {
            correction: Correction::new(tokens_left, Rate::predicted(&plan.prediction)),
            evaluating_s,
            evaluations,
            saves,
            progress,
            session,
            plan,
            meter,
            crew,
            longest,
            peak_before: None,
            done,
            epoch,
        })
    }

    /// Update `k`, from 0: gradients, clipping, AdamW; nothing that is not finite reaches a weight.
    fn take_step(&mut self, k: u64) -> Result<(StepRecord, Step)> {
        self.meter.enter(Phase::Train);
        let begun = Instant::now();
        let span = profile::step();
        let step = self.plan.epochs.step(k)?;
        let lr = self.session.schedule.lr_at(k);
        let updated = self.update(k, &step, lr)?;
        let tokens =
            |f: fn(&crate::data::Batch) -> usize| step.batches.iter().map(|b| f(b) as u64).sum::<u64>();
        drop(span);
        let step_s = begun.elapsed().as_secs_f64();
        self.longest.step_s = self.longest.step_s.max(step_s);
        let reading = self.meter.latest();
        let record = StepRecord {
            step: k + 1,
            epoch: step.epoch_fraction,
            loss: updated.loss,
            grad_norm: updated.norm,
            penalty: updated.penalty,
            learning_rate: lr,
            tokens: tokens(crate::data::Batch::tokens),
            padded_tokens: 0, // Rows lie end to end: there is no padding to count.
            loss_tokens: tokens(|b| b.targets.len()),
            step_s,
            rss_bytes: reading.rss_bytes,
            device_bytes: reading.device_bytes,
        };
        (self.done, self.epoch) = (record.step, record.epoch);
        self.session.record_step(&record)?;
        self.show(&record);
        Ok((record, step))
    }

    fn update(&mut self, k: u64, step: &Step, lr: f64) -> Result<Descended> {
        let train = &self.plan.config().train;
        let (seed, in_backward) = (train.seed, train.optimizer_in_backward);
        let recompute = self.plan.prediction.recompute;
        let session = &mut *self.session;
        let how = Descent { k, seed, recompute, lr };
        let ranks = self.crew.ranks;
        let outcome = self.crew.step(k, || session.learner.take(step, how, in_backward, ranks));
        let done = outcome.map_err(|error| match error.kind {
            Kind::Diverged => Error::Diverged {
                step: k + 1,
                what: error.problems.iter().map(|p| p.message.as_str()).collect::<Vec<_>>().join("; "),
                lr,
                samples: step.samples.iter().copied().take(8).collect(),
                after: if in_backward {
                    "nothing of this step is saved"
                } else {
                    "no weight was changed by it"
                },
                last: session.last_checkpoint.clone(),
            }
            .into(),
            _ => error,
        })?;
        session.held.passed(done.memory);
        Ok(done)
    }

    /// Evaluates after `step` steps; `true` when it is the best so far.
    fn judge(&mut self, step: u64, epoch: f64) -> Result<bool> {
        self.meter.enter(Phase::Evaluate);
        let _span = profile::stretch(Phase::Evaluate.name());
        let begun = Instant::now();
        let (decoder, ranks) = (&self.session.learner.decoder, self.crew.ranks);
        let judged = self.crew.evaluate(|| evaluate(decoder, &self.plan.eval, ranks))?;
        let Some((loss, loss_tokens)) = judged else {
            return Ok(false);
        };
        if !loss.is_finite() {
            return Err(Error::EvalLoss { step, loss, last: self.session.last_checkpoint.clone() }.into());
        }
        let wall_s = begun.elapsed().as_secs_f64();
        self.longest.evaluation_s = self.longest.evaluation_s.max(wall_s);
        self.evaluations.pass(wall_s);
        self.session.record_eval(&EvalRecord { step, epoch, loss, loss_tokens, wall_s })?;
        self.progress.note(&format!("step {step}: evaluation loss {loss:.4} over {loss_tokens} tokens"));
        if step == 0 {
            return Ok(false);
        }
        let is_best = self.session.best.is_none_or(|(_, best)| loss < best);
        if is_best {
            self.session.best = Some((step, loss));
            self.session.bad_evals = 0;
        } else {
            self.session.bad_evals += 1;
        }
        Ok(is_best)
    }

    /// The loss on what is not to be forgotten, where there is such a set, of the weights as they are now.
    fn judge_retention(&mut self) -> Result<()> {
        self.meter.enter(Phase::Evaluate);
        let _span = profile::stretch(Phase::Evaluate.name());
        let (begun, step, epoch) = (Instant::now(), self.done, self.epoch);
        let (decoder, ranks) = (&self.session.learner.decoder, self.crew.ranks);
        let judged = self.crew.retain(|| evaluate(decoder, &self.plan.retention.judged, ranks))?;
        let Some((loss, loss_tokens)) = judged else {
            return Ok(());
        };
        if !loss.is_finite() {
            return Err(Error::EvalLoss { step, loss, last: self.session.last_checkpoint.clone() }.into());
        }
        let wall_s = begun.elapsed().as_secs_f64();
        self.longest.retention_s = self.longest.retention_s.max(wall_s);
        self.session.record_retention(&EvalRecord { step, epoch, loss, loss_tokens, wall_s })?;
        self.progress.note(&format!("step {step}: retention loss {loss:.4} over {loss_tokens} tokens"));
        Ok(())
    }

    fn commit(&mut self, step: u64, epoch: f64) -> Result<()> {
        self.meter.enter(Phase::Save);
        let _span = profile::stretch(Phase::Save.name());
        self.crew.agree(&self.session.learner)?;
        if let Some(name) = self.session.learner.not_finite()? {
            return Err(Error::Weights { step, name, last: self.session.last_checkpoint.clone() }.into());
        }
        // A modelled energy is none that a later process may add to.
        let energy_j = self.session.energy_j(self.meter);
        let (begun, spent) = (Instant::now(), Spent { energy_j, ..self.spent() });
        self.session.commit(self.plan, step, epoch, &spent)?;
        let save_s = begun.elapsed().as_secs_f64();
        self.longest.save_s = self.longest.save_s.max(save_s);
        self.saves.pass(save_s);
        Ok(())
    }

    fn is_stuck(&self) -> bool {
        self.plan.config().schedule.early_stopping_patience.is_some_and(|n| self.session.bad_evals >= n)
    }

    /// Why the run ends here, after `done` steps, although steps are left: a signal, or the budget for another one.
    fn asked_to_end(&mut self, done: u64, stop: &Stop) -> Option<Outcome> {
        let over = self.over_budget(done).map(|error| Outcome::Capped(error.into()));
        stop.requested().map(Outcome::Stopped).or(over)
    }

    /// The cap that another step would cross, with the evaluation that follows it and the commit that must still fit.
    fn over_budget(&mut self, done: u64) -> Option<Error> {
        let spent = self.spent();
        let now = Spent { peak_bytes: spent.peak_bytes.max(self.peak_before), ..spent };
        let longest = self.longest;
        let is_last = done + 1 == self.plan.epochs.total_steps();
        let is_due = self.plan.config().schedule.eval_steps.is_some_and(|n| (done + 1).is_multiple_of(n));
        let judging_s = if is_last || is_due { longest.evaluation_s } else { 0.0 };
        let judging_s = judging_s + if is_last { longest.retention_s } else { 0.0 };
        let wall_s = now.wall_s + longest.step_s + judging_s + longest.save_s;
        // A peak that grew with the last step may grow as much with the next. A GPU's is looked at now and then: what a
        // look sees for the first time may have stood before.
        let before = self.peak_before.filter(|_| !self.plan.device.is_cuda());
        let grown = now.peak_bytes.zip(before).map_or(0, |(now, before)| now.saturating_sub(before));
        self.peak_before = now.peak_bytes;
        let next = Spent {
            wall_s,
            cost_usd: self.bill(wall_s),
            energy_j: now.energy_j.map(|joules| joules * wall_s / now.wall_s.max(1e-9)),
            peak_bytes: now.peak_bytes.map(|peak| peak.saturating_add(grown)),
        };
        budget::crossed(&self.plan.config().budget, &now, &next, &self.plan.out)
    }

    /// What the whole run has taken so far; its energy is modelled where it is not measured.
    fn spent(&self) -> Spent {
        let wall_s = self.wall_s();
        let reading = self.meter.latest();
        let predicted = &self.plan.prediction;
        let modelled_w =
            predicted.modelled.get("energy_j").zip(predicted.predicted.wall_s).map(|(j, s)| j / s);
        // The cap is of the memory that is predicted: on a GPU its own.
        let on_gpu = self.plan.device.is_cuda();
        let peak_bytes =
            if on_gpu { reading.device_bytes } else { reading.peak_rss_bytes.max(reading.rss_bytes) };
        Spent {
            wall_s,
            cost_usd: self.bill(wall_s),
            energy_j: self.session.energy_j(self.meter).or(modelled_w.map(|watts| watts * wall_s)),
            peak_bytes,
        }
    }

    fn bill(&self, wall_s: f64) -> Option<f64> {
        self.plan.ground.price.bill(wall_s).map(|bill| bill.cost_usd)
    }

    /// Seconds of the whole run so far, earlier processes included.
    fn wall_s(&self) -> f64 {
        self.session.earlier_s + self.meter.elapsed().0
    }

    /// Seconds that evaluating still takes.
    fn evaluating_left_s(&self) -> f64 {
        if !self.plan.eval.is_empty() {
            return self.evaluations.left_s();
        }
        let clock = self.meter.phases();
        let spent: f64 = clock.iter().filter(|(phase, _)| *phase == Phase::Evaluate).map(|(_, s)| s).sum();
        (self.evaluating_s - spent).max(0.0)
    }

    fn show(&mut self, record: &StepRecord) {
        self.correction.observe(record.tokens, record.step_s);
        let now_s = self.wall_s();
        let beside_s = now_s + self.evaluating_left_s() + self.saves.left_s();
        let wall_s = self.correction.projection(beside_s).map(|projected| projected.wall_s);
        let projection = Projection { wall_s, cost_usd: wall_s.and_then(|s| self.bill(s)) };
        self.progress.step(record, now_s, projection);
        self.session.beat(record.step, record.loss);
        self.warn();
    }

    fn warn(&mut self) {
        for warning in self.session.take_warnings() {
            self.progress.note(&format!("warning: {warning}"));
        }
    }

    fn finish(mut self) {
        self.warn();
        self.progress.finish();
    }
}
