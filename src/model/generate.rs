//! Text from a model: a prompt in one pass, then token by token with keys and values kept.

use super::Decoder;
use super::block::Cache;
use crate::error::Result;
use candle_transformers::generation::{LogitsProcessor, Sampling};

/// How the next token is chosen and when to stop.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Tokens at most.
    pub max_tokens: usize,
    /// 0 = the likeliest token.
    pub temperature: f64,
    /// Only the likeliest tokens that together reach this probability.
    pub top_p: Option<f64>,
    /// Only this many likeliest tokens.
    pub top_k: Option<usize>,
    /// Of the sampler.
    pub seed: u64,
    /// Ids that end the text; not part of it.
    pub stop_ids: Vec<u32>,
    /// Positions that the model has.
    pub longest: usize,
}

impl Settings {
    fn sampling(&self) -> Sampling {
        let temperature = self.temperature;
        if temperature <= 0.0 {
            return Sampling::ArgMax;
        }
        match (self.top_k, self.top_p) {
            (None, None) => Sampling::All { temperature },
            (Some(k), None) => Sampling::TopK { k, temperature },
            (None, Some(p)) => Sampling::TopP { p, temperature },
            (Some(k), Some(p)) => Sampling::TopKThenTopP { k, p, temperature },
        }
    }
}

/// Continues `prompt`, handing over each token as it is made; returns all of them. An empty prompt gives nothing.
pub fn generate(
    decoder: &Decoder,
    prompt: &[u32],
    how: &Settings,
    mut each: impl FnMut(u32),
) -> Result<Vec<u32>> {
    let mut chosen = Vec::new();
    if prompt.is_empty() {
        return Ok(chosen);
    }
    let mut caches = vec![Cache::default(); decoder.blocks.len()];
    let mut sampler = LogitsProcessor::from_sampling(how.seed, how.sampling());
    let mut next = prompt.to_vec();
    while chosen.len() < how.max_tokens && prompt.len() + chosen.len() < how.longest {
        let logits = decoder.extend(&next, &mut caches)?;
        let token = sampler.sample(&logits)?;
        if how.stop_ids.contains(&token) {
            break;
        }
        each(token);
        chosen.push(token);
        next = vec![token];
    }
    Ok(chosen)
}
