//! The rope of `config.json`, in both generations of its spelling, and the Llama-3 ramp as GGUF files keep it.

use super::fields::{Fields, Json};
use super::{Error, Rope, RopeScaling, bounds};
use serde_json::{Map, Value};

const SUPPORTED: &str = "default, linear, llama3";
/// `rope_theta` where absent: transformers' default for all families here.
pub(super) const DEFAULT_THETA: f64 = 10_000.0;

/// `rope_theta` + `rope_scaling` (transformers 4) or `rope_parameters` (5); where both stand, the older wins, as there.
pub(super) fn from_config(config: &Json) -> Result<Rope, Error> {
    let empty = Map::new();
    let mut inner = (&empty, "");
    for (field, prefix) in [("rope_parameters", "rope_parameters."), ("rope_scaling", "rope_scaling.")] {
        match config.map.get(field) {
            None | Some(Value::Null) => {}
            Some(Value::Object(map)) => inner = (map, prefix),
            Some(other) => {
                let got: String = other.to_string().chars().take(80).collect();
                return Err(config.refuse(field, "must be an object or null", got));
            }
        }
    }
    let parameters = Json { file: config.file, map: inner.0, prefix: inner.1 };
    if let Some((name, _)) = inner.0.iter().find(|(_, value)| value.is_object()) {
        return Err(parameters.unsupported(name, "a rope of its own", "one rope for all layers"));
    }
    for place in [&parameters, config] {
        let rotated = place.float("partial_rotary_factor", 0.0..=1.0)?;
        if let Some(share) = rotated.filter(|&share| share < 1.0) {
            return Err(place.unsupported("partial_rotary_factor", share.to_string(), "1"));
        }
    }
    let own = parameters.float("rope_theta", bounds::THETA)?;
    let outer = config.float("rope_theta", bounds::THETA)?;
    Ok(Rope { theta: own.or(outer).unwrap_or(DEFAULT_THETA), scaling: scaling(&parameters)? })
}

fn scaling(parameters: &Json) -> Result<RopeScaling, Error> {
    let field = if parameters.map.contains_key("rope_type") { "rope_type" } else { "type" };
    match parameters.text(field)?.unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: parameters.required_float("factor", bounds::FACTOR)? }),
        "llama3" => llama3(parameters),
        other => Err(parameters.unsupported(field, format!("{other:?}"), SUPPORTED)),
    }
}

fn llama3(parameters: &Json) -> Result<RopeScaling, Error> {
    let low = parameters.required_float("low_freq_factor", 1e-3..=1e6)?;
    let high = parameters.required_float("high_freq_factor", 1e-3..=1e6)?;
    if high <= low {
        let rule = format!("must be above `low_freq_factor` ({low})");
        return Err(parameters.refuse("high_freq_factor", rule, high.to_string()));
    }
    let context = parameters.required("original_max_position_embeddings", bounds::POSITIONS)? as f64;
    Ok(RopeScaling::Llama3 {
        factor: parameters.required_float("factor", bounds::FACTOR)?,
        low_freq_factor: low,
        high_freq_factor: high,
        original_context: context,
    })
}

/// The Llama-3 ramp behind the divisors of a GGUF file's `rope_freqs.weight` (one for each pair of a head), if it is
/// the published one: factors 1 and 4 over a context of 8192, the divisor of the lowest frequency being the factor.
pub(super) fn from_divisors(divisors: &[f32], theta: f64) -> Option<RopeScaling> {
    let factor = f64::from(*divisors.last()?);
    let ramp =
        RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
    let expected = divisors_of(&ramp, theta, divisors.len());
    let same = divisors
        .iter()
        .zip(expected)
        .all(|(&found, wanted)| (f64::from(found) - wanted).abs() <= 1e-4 * wanted);
    (bounds::FACTOR.contains(&factor) && same).then_some(ramp)
}

/// What each frequency is divided by (transformers' `_compute_llama3_parameters`).
pub(super) fn divisors_of(scaling: &RopeScaling, theta: f64, pairs: usize) -> Vec<f64> {
    (0..pairs)
        .map(|pair| match *scaling {
            RopeScaling::None => 1.0,
            RopeScaling::Linear { factor } => factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let frequency = theta.powf(-(pair as f64) / pairs as f64);
                let wavelength = std::f64::consts::TAU / frequency;
                let turns = original_context / wavelength;
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                1.0 / ((1.0 - kept) / factor + kept)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(json: &str) -> crate::error::Result<Rope> {
        let map: Map<String, Value> = serde_json::from_str(json).unwrap();
        Ok(from_config(&Json { file: "config.json", prefix: "", map: &map })?)
    }

    #[test]
    fn both_generations_of_the_config_give_the_same_rope() {
        let old = r#"{"rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 4}}"#;
        let new = r#"{"rope_parameters":
            {"rope_type": "linear", "rope_theta": 500000.0, "factor": 4.0}}"#;
        let wanted = Rope { theta: 500_000.0, scaling: RopeScaling::Linear { factor: 4.0 } };
        assert_eq!(rope(old).unwrap(), wanted);
        assert_eq!(rope(new).unwrap(), wanted);
        let plain = Rope { theta: DEFAULT_THETA, scaling: RopeScaling::None };
        assert_eq!(rope(r#"{"rope_scaling": null}"#).unwrap(), plain);
    }

    #[test]
    fn ropes_that_would_be_computed_wrongly_are_refused_by_field() {
        for (json, part) in [
            (
                r#"{"rope_scaling": {"rope_type": "yarn", "factor": 4}}"#,
                "`rope_scaling.rope_type` is \"yarn\"",
            ),
            (r#"{"rope_scaling": {"type": "dynamic", "factor": 4}}"#, "`rope_scaling.type` is \"dynamic\""),
            (r#"{"rope_parameters": {"rope_type": "longrope"}}"#, "supported: default, linear, llama3"),
            (
                r#"{"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}"#,
                "`rope_parameters.full_attention`",
            ),
            (r#"{"partial_rotary_factor": 0.5}"#, "`partial_rotary_factor` is 0.5"),
            (r#"{"rope_theta": 0}"#, "`rope_theta` must be a number from 1e0"),
            (r#"{"rope_theta": "1e4"}"#, "got \"1e4\""),
            (r#"{"rope_scaling": {"type": "linear"}}"#, "`rope_scaling.factor` is missing"),
            (r#"{"rope_scaling": 4}"#, "must be an object or null"),
            (
                r#"{"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
                    "high_freq_factor": 4, "original_max_position_embeddings": 8192}}"#,
                "must be above `low_freq_factor`",
            ),
        ] {
            let error = rope(json).unwrap_err();
            assert_eq!(error.kind as i32, 4);
            assert!(error.to_string().contains(part), "{json}: {error}");
        }
    }

    #[test]
    fn the_divisors_of_a_gguf_file_are_read_back_as_the_llama_3_ramp() {
        let ramp = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        #[expect(clippy::cast_possible_truncation, reason = "GGUF keeps them in f32")]
        let mut divisors: Vec<f32> = divisors_of(&ramp, 5e5, 32).into_iter().map(|d| d as f32).collect();
        let ends = [divisors[0], divisors[31]];
        assert_eq!(ends.map(f32::to_bits), [1.0, 32.0].map(f32::to_bits));
        assert_eq!(from_divisors(&divisors, 5e5), Some(ramp));
        divisors[16] *= 1.01;
        assert_eq!(from_divisors(&divisors, 5e5), None);
    }
}
