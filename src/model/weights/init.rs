//! Fresh weights as a function of (seed, tensor name, place): no order of loading and no thread changes them.

use fttrain_kernels::cpu::mix;
use rayon::prelude::*;

/// Values that one thread makes at a time; even, so that no pair straddles two.
const CHUNK: usize = 1 << 16;

/// Norms 1, biases 0, all else normal with mean 0 and the given standard deviation.
pub fn drawn(name: &str, shape: &[usize], seed: u64, std: f64) -> Vec<f32> {
    let len = shape.iter().product();
    if name.ends_with("norm.weight") {
        return vec![1.0; len];
    }
    let mut values = vec![0.0; len];
    if name.rsplit('.').next() == Some("bias") {
        return values;
    }
    let key = mix(seed ^ mix(fnv(name)));
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        let first = (chunk * CHUNK / 2) as u64;
        for (pair, out) in values.chunks_mut(2).enumerate() {
            let normal = pair_of_normals(key, first + pair as u64);
            for (value, normal) in out.iter_mut().zip(normal) {
                #[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
                let rounded = (normal * std) as f32;
                *value = rounded;
            }
        }
    });
    values
}

/// Box and Muller's transform of two uniform numbers, the first in (0, 1].
fn pair_of_normals(key: u64, pair: u64) -> [f64; 2] {
    let uniform = |n: u64| (mix(key.wrapping_add(mix(n))) >> 11) as f64 / (1_u64 << 53) as f64;
    let radius = (-2.0 * (1.0 - uniform(2 * pair)).ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * uniform(2 * pair + 1)).sin_cos();
    [radius * cos, radius * sin]
}

/// FNV-1a.
fn fnv(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_weights_are_normal_and_depend_on_seed_and_name_alone() {
        let draw = |name: &str, seed| drawn(name, &[400, 500], seed, 0.02);
        let a = draw("model.embed_tokens.weight", 1);
        assert_eq!(a, draw("model.embed_tokens.weight", 1));
        assert_ne!(a, draw("model.embed_tokens.weight", 2));
        assert_ne!(a, draw("lm_head.weight", 1));
        let n = a.len() as f64;
        let mean = a.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let var = a.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n;
        // Five standard errors of the mean, and of the deviation, of 200,000 draws.
        assert!(mean.abs() < 5.0 * 0.02 / n.sqrt(), "{mean}");
        assert!((var.sqrt() / 0.02 - 1.0).abs() < 5.0 / (2.0 * n).sqrt(), "{var}");
        assert!(a.iter().any(|x| x.abs() > 0.06) && a.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn norms_are_ones_and_biases_zeros() {
        assert_eq!(drawn("model.norm.weight", &[2], 1, 0.02), [1.0, 1.0]);
        assert_eq!(drawn("a.input_layernorm.weight", &[1], 1, 0.02), [1.0]);
        assert_eq!(drawn("a.q_proj.bias", &[2], 1, 0.02), [0.0, 0.0]);
    }
}
