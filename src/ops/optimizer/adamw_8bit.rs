//! AdamW with both moments in 8 bits, in blocks of 256 with a scale each.

use super::adamw::Constants;
use super::{Rule, Settings, Step, with};
use crate::error::Result;
use crate::ops::host;
use candle_core::{DType, Device, Tensor};
use fttrain_kernels::cpu::optimizer::{self as kernels, BLOCK, Blocks};

pub(super) struct AdamW8bit {
    constants: Constants,
    m: Moment,
    v: Moment,
}

struct Moment {
    /// A code a value, u8.
    codes: Tensor,
    /// The largest magnitude of each block.
    absmax: Tensor,
}

impl Moment {
    fn zeros(count: usize) -> Result<Self> {
        Ok(Self {
            codes: Tensor::zeros(count, DType::U8, &Device::Cpu)?,
            absmax: host::zeros(count.div_ceil(BLOCK))?,
        })
    }

    fn edit<R>(&self, change: impl FnOnce(&mut Blocks<'_>) -> R) -> Result<R> {
        host::edit_as(&self.codes, |codes: &mut [u8]| {
            host::edit(&self.absmax, |absmax| change(&mut Blocks { codes, absmax }))
        })?
    }
}

impl AdamW8bit {
    pub(super) fn new(settings: &Settings, value: &Tensor) -> Result<Self> {
        let zeros = || Moment::zeros(value.elem_count());
        Ok(Self { constants: Constants::of(settings), m: zeros()?, v: zeros()? })
    }
}

impl Rule for AdamW8bit {
    fn update(&mut self, value: &Tensor, grad: &Tensor, step: &Step) -> Result<()> {
        let (grad, how) = (host::read(grad)?, self.constants.at(step));
        with(value, step, |value| {
            self.m.edit(|m| self.v.edit(|v| kernels::adamw_8bit(value, m, v, &grad, &how)))?
        })
    }

    fn state(&self) -> Vec<(&'static str, &Tensor)> {
        vec![
            ("m.codes", &self.m.codes),
            ("m.absmax", &self.m.absmax),
            ("v.codes", &self.v.codes),
            ("v.absmax", &self.v.absmax),
        ]
    }
}
