//! The profile of this machine for a run: read where it was measured before, measured where it was not.

use super::profile::Profiles;
use super::quick::{Case, Provenance, quick};
use super::shapes::{lacking, shapes};
use crate::arch::Arch;
use crate::config::Config;
use crate::error::Result;
use crate::estimate::Machine;
use crate::estimate::work::Class;
use crate::fs;
use crate::meter::machine::cpu_model;
use crate::ops::attention::{self, Shape, Span};
use crate::ops::{gate, host, optimizer};
use std::path::Path;

/// Tokens of the segment that attention is measured on.
const SEGMENT: usize = 256;
/// Values of the tensors that element-wise work is measured on: 4 MiB each, beyond the private caches.
const VALUES: usize = 1 << 20;

/// The machine's rates at the shapes of this run; new ones are kept under `home`. The second value is a warning.
///
/// # Errors
/// A fault of an op.
pub fn machine(
    arch: &Arch,
    config: &Config,
    batch_tokens: usize,
    threads: usize,
    home: &Path,
) -> Result<(Machine, Option<String>)> {
    let provenance = Provenance {
        threads,
        build: env!("CARGO_PKG_VERSION").into(),
        kernel: fttrain_kernels::cpu::path().name().into(),
        measured_at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    };
    let file = home.join(Profiles::FILE);
    let (mut profiles, mut warning) = Profiles::load(&file);
    let wanted = shapes(arch, config, Some(batch_tokens));
    let known = profiles.find(&cpu_model(), &provenance);
    let missing = known.map_or_else(|| wanted.clone(), |machine| lacking(machine, &wanted));
    if let (Some(machine), true) = (known, missing.is_empty()) {
        return Ok((machine.clone(), warning));
    }
    let measured = measure(arch, &provenance, &missing)?;
    let machine = profiles.insert(measured).clone();
    let kept =
        fs::create_folders(home).and_then(|()| fs::write_durable(&file, profiles.to_json().as_bytes()));
    if let Err(error) = kept {
        warning = Some(format!("the machine's profile could not be kept: {error}"));
    }
    Ok((machine, warning))
}

fn measure(arch: &Arch, provenance: &Provenance, shapes: &[super::Shape]) -> Result<Machine> {
    let shape = Shape {
        heads: arch.heads,
        kv_heads: arch.kv_heads,
        head_dim: arch.head_dim,
        scale: 1.0,
        softcap: None,
        window: None,
    };
    let spans = [Span { q: 0..SEGMENT, k: 0..SEGMENT }];
    let q = filled(SEGMENT, arch.heads * arch.head_dim)?;
    let kv = filled(SEGMENT, arch.kv_heads * arch.head_dim)?;
    let (a, b) = (filled(1, VALUES)?, filled(1, VALUES)?);
    let how = optimizer::AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        correction1: 1.0,
        correction2_sqrt: 1.0,
        grad_scale: 1.0,
    };
    let (m, v) = (filled(1, VALUES)?, filled(1, VALUES)?);
    quick(
        provenance,
        shapes,
        &mut [
            Case {
                class: Class::Attention,
                // Scores and values of half a square, forward.
                amount: 2.0 * (SEGMENT * SEGMENT * arch.heads * arch.head_dim) as f64,
                run: &mut || attention::forward(&shape, &spans, &q, &kv, &kv).map(drop),
            },
            Case {
                class: Class::Elementwise,
                amount: 12.0 * VALUES as f64,
                run: &mut || gate::forward(&a, &b).map(drop),
            },
            Case {
                class: Class::Optimizer,
                amount: 28.0 * VALUES as f64,
                run: &mut || optimizer::adamw(&a, &m, &v, &b, &how),
            },
        ],
    )
}

fn filled(rows: usize, columns: usize) -> Result<candle_core::Tensor> {
    // Values of ordinary size: denormals and zeros may run at another speed.
    let values = (0u16..1000).cycle().take(rows * columns).map(|i| f32::from(i) * 1e-3 + 0.1);
    host::tensor(values.collect(), (rows, columns))
}
