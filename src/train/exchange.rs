//! The gradients of several processes become their sum: block by block, while the backward pass of the blocks below
//! goes on.

use crate::error::Result;
use crate::model::{Decoder, Params};
use crate::ops::{Grads, ParamId};
use crate::ranks::{Ranks, Sum};
use candle_core::{DType, Tensor};
use std::collections::VecDeque;
use std::vec::IntoIter;

/// Sums that are under way on the host at once: each holds its gradients twice more.
const UNDER_WAY: usize = 2;

/// The sums of one step. Processes whose part of it is smaller, or nothing, take part in all of them.
pub(super) struct Exchange<'a> {
    ranks: &'a Ranks,
    params: &'a Params,
    /// Those to come: [`Decoder::trained`].
    groups: IntoIter<Vec<ParamId>>,
    under_way: VecDeque<(Vec<ParamId>, Sum<'a>)>,
    whole: Vec<(ParamId, Tensor)>,
}

impl<'a> Exchange<'a> {
    /// A step's sums; none where there is one process.
    pub(super) fn new(ranks: &'a Ranks, decoder: &Decoder, params: &'a Params) -> Self {
        let groups = if ranks.is_alone() { Vec::new() } else { decoder.trained() };
        Self { ranks, params, groups: groups.into_iter(), under_way: VecDeque::new(), whole: Vec::new() }
    }

    /// Whether gradients are left that were not summed yet.
    pub(super) fn is_open(&self) -> bool {
        self.groups.len() > 0
    }

    /// Takes the next group of gradients, which are whole in this process, and begins to sum them.
    ///
    /// # Errors
    /// A fault of an op.
    pub(super) fn begin(&mut self, grads: &mut Grads) -> Result<()> {
        let Some(group) = self.groups.next() else { return Ok(()) };
        let one = |id: &ParamId| match grads.slot(*id).take() {
            Some(grad) => Ok(grad),
            None => Ok(self.params.get(*id).value.zeros_like()?.to_dtype(DType::F32)?),
        };
        let own = group.iter().map(one).collect::<Result<Vec<_>>>()?;
        if let Some(sum) = self.ranks.begin_sum(own)? {
            self.under_way.push_back((group, sum));
        }
        for (_, sum) in &mut self.under_way {
            sum.progress();
        }
        // What a GPU sums in its place costs nothing while it waits.
        while self.under_way.len() > UNDER_WAY
            && self.under_way.front().is_some_and(|(_, sum)| sum.is_on_host())
        {
            self.settle()?;
        }
        Ok(())
    }

    /// Waits for what is under way, and gives all sums that were not given yet.
    ///
    /// # Errors
    /// A fault of an op.
    pub(super) fn take(&mut self) -> Result<Vec<(ParamId, Tensor)>> {
        while !self.under_way.is_empty() {
            self.settle()?;
        }
        Ok(std::mem::take(&mut self.whole))
    }

    /// Sums what is left, and puts all sums in the place of the gradients.
    ///
    /// # Errors
    /// A fault of an op.
    pub(super) fn finish(mut self, grads: &mut Grads) -> Result<()> {
        while self.is_open() {
            self.begin(grads)?;
        }
        for (id, grad) in self.take()? {
            *grads.slot(id) = Some(grad);
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        let Some((group, sum)) = self.under_way.pop_front() else { return Ok(()) };
        self.whole.extend(group.into_iter().zip(sum.wait()?));
        Ok(())
    }
}
