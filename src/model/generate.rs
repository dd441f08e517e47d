//! Text from a model: prompts in one pass, then token by token with keys and values kept, many texts at once. What
//! prompts begin with in common is computed once, and a text that ends makes room for the next.

use super::Decoder;
use super::cache::Caches;
use crate::error::{Error, Kind, Result};
use candle_core::Tensor;
use candle_transformers::generation::{LogitsProcessor, Sampling};

/// A common beginning shorter than this is not worth a pass of its own.
const SHARED: usize = 16;

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
    /// Of the sampler; text i of several uses the i-th seed from this one.
    pub seed: u64,
    /// Ids that end the text; not part of it.
    pub stop_ids: Vec<u32>,
    /// Positions that the model has.
    pub longest: usize,
    /// Texts that are continued at once, at most.
    pub at_once: usize,
}

impl Settings {
    /// The likeliest token each time, one text after the other.
    pub fn greedy(max_tokens: usize, stop_ids: Vec<u32>, longest: usize) -> Self {
        Self {
            max_tokens,
            temperature: 0.0,
            top_p: None,
            top_k: None,
            seed: 0,
            stop_ids,
            longest,
            at_once: 1,
        }
    }

    fn sampler(&self, text: usize) -> Option<LogitsProcessor> {
        let temperature = self.temperature;
        if temperature <= 0.0 {
            return None;
        }
        let sampling = match (self.top_k, self.top_p) {
            (None, None) => Sampling::All { temperature },
            (Some(k), None) => Sampling::TopK { k, temperature },
            (None, Some(p)) => Sampling::TopP { p, temperature },
            (Some(k), Some(p)) => Sampling::TopKThenTopP { k, p, temperature },
        };
        Some(LogitsProcessor::from_sampling(self.seed.wrapping_add(text as u64), sampling))
    }
}

/// Continues each prompt, handing over each token as it is made with the number of its text; returns all of them. An empty
/// prompt gives nothing, and so does one that leaves no position free.
pub fn generate(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    how: &Settings,
    mut each: impl FnMut(usize, u32),
) -> Result<Vec<Vec<u32>>> {
    let mut course = Course { decoder, prompts, how, prefix: None, shared: 0 };
    course.share()?;
    let mut chosen = vec![Vec::new(); prompts.len()];
    let mut waiting = (0..prompts.len()).filter(|&i| course.has_room(i)).collect::<Vec<_>>().into_iter();
    let mut texts: Vec<Continued> = Vec::new();
    let mut caches = course.empty(0, 0);
    loop {
        let free = how.at_once.max(1).saturating_sub(texts.len());
        // A few at a time: prompts together cost less than one by one.
        if free > 0 && (texts.is_empty() || free >= how.at_once.div_ceil(4)) {
            let (new, their) = course.begin(&mut waiting, free)?;
            texts.extend(new);
            caches.append(their);
        }
        if texts.is_empty() {
            return Ok(chosen);
        }
        let goes_on: Vec<bool> = texts
            .iter()
            .map(|text| {
                let so_far = chosen.get_mut(text.number);
                so_far.is_some_and(|so_far| course.accept(text, so_far, &mut each))
            })
            .collect();
        let mut keep = goes_on.iter();
        texts.retain(|_| keep.next().copied().unwrap_or(false));
        caches.retain(&goes_on);
        course.step(&mut texts, &mut caches)?;
    }
}

/// A text on its way.
struct Continued {
    /// Its prompt's number.
    number: usize,
    /// The token that was chosen last.
    next: u32,
    sampler: Option<LogitsProcessor>,
}

struct Course<'a> {
    decoder: &'a Decoder,
    prompts: &'a [Vec<u32>],
    how: &'a Settings,
    /// What is kept of the tokens with which all prompts begin.
    prefix: Option<Caches>,
    /// How many they are.
    shared: usize,
}

impl Course<'_> {
    fn has_room(&self, prompt: usize) -> bool {
        let tokens = self.prompts.get(prompt).map_or(0, Vec::len);
        tokens > 0 && tokens < self.how.longest && self.how.max_tokens > 0
    }

    fn empty(&self, texts: usize, room: usize) -> Caches {
        Caches::new(self.decoder.blocks.len(), texts, self.decoder.kv_width(), room)
    }

    /// Runs the beginning that all prompts share, where they share one.
    fn share(&mut self) -> Result<()> {
        let several = self.how.at_once > 1 && self.prompts.len() > 1;
        let Some((first, others)) = self.prompts.split_first().filter(|_| several) else {
            return Ok(());
        };
        let same = |other: &Vec<u32>| first.iter().zip(other).take_while(|(a, b)| a == b).count();
        let shared = others.iter().map(same).min().unwrap_or(0);
        // Each prompt keeps a token of its own, whose logits are wanted.
        let shortest = self.prompts.iter().map(Vec::len).min().unwrap_or(0);
        let shared = shared.min(shortest.saturating_sub(1));
        if shared < SHARED {
            return Ok(());
        }
        let mut caches = self.empty(1, shared);
        self.decoder.extend(&[&first[..shared]], &mut caches)?;
        (self.prefix, self.shared) = (Some(caches), shared);
        Ok(())
    }

    /// The next prompts, read, each with the first token chosen.
    fn begin(
        &self,
        waiting: &mut impl Iterator<Item = usize>,
        most: usize,
    ) -> Result<(Vec<Continued>, Caches)> {
        let numbers: Vec<usize> = waiting.take(most).collect();
        let prompts: Vec<&[u32]> =
            numbers.iter().filter_map(|&i| Some(self.prompts.get(i)?.as_slice())).collect();
        let longest = prompts.iter().map(|p| p.len()).max().unwrap_or(0);
        let room = longest.saturating_add(self.how.max_tokens).min(self.how.longest);
        let mut caches = match &self.prefix {
            Some(prefix) => prefix.fork(prompts.len(), self.decoder.kv_width(), room),
            None => self.empty(prompts.len(), room),
        };
        let mut texts: Vec<Continued> = numbers
            .iter()
            .map(|&number| Continued { number, next: 0, sampler: self.how.sampler(number) })
            .collect();
        if !prompts.is_empty() {
            let own: Vec<&[u32]> = prompts.iter().map(|p| p.get(self.shared..).unwrap_or_default()).collect();
            choose(&self.decoder.extend(&own, &mut caches)?, &mut texts)?;
        }
        Ok((texts, caches))
    }

    /// Takes the chosen token into the text; `false` where the text ends.
    fn accept(&self, text: &Continued, so_far: &mut Vec<u32>, each: &mut impl FnMut(usize, u32)) -> bool {
        if self.how.stop_ids.contains(&text.next) {
            return false;
        }
        each(text.number, text.next);
        so_far.push(text.next);
        let tokens = self.prompts.get(text.number).map_or(0, Vec::len) + so_far.len();
        so_far.len() < self.how.max_tokens && tokens < self.how.longest
    }

    /// One more token for each text.
    fn step(&self, texts: &mut [Continued], caches: &mut Caches) -> Result<()> {
        if texts.is_empty() {
            return Ok(());
        }
        let last: Vec<[u32; 1]> = texts.iter().map(|text| [text.next]).collect();
        let last: Vec<&[u32]> = last.iter().map(<[u32; 1]>::as_slice).collect();
        choose(&self.decoder.extend(&last, caches)?, texts)
    }
}

/// Chooses each text's next token from its logits `[texts, V]`.
fn choose(logits: &Tensor, texts: &mut [Continued]) -> Result<()> {
    let width = logits.dim(1)?;
    let values = crate::ops::host::read(logits)?;
    for (at, (text, row)) in texts.iter_mut().zip(values.chunks_exact(width)).enumerate() {
        text.next = match &mut text.sampler {
            Some(sampler) => sampler.sample(&logits.get(at)?)?,
            None => likeliest(row)?,
        };
    }
    Ok(())
}

fn likeliest(row: &[f32]) -> Result<u32> {
    let best = row.iter().enumerate().fold(None, |best: Option<(usize, f32)>, (at, &x)| match best {
        Some((_, top)) if top >= x => best,
        _ => Some((at, x)),
    });
    best.and_then(|(at, _)| u32::try_from(at).ok())
        .ok_or_else(|| Error::new(Kind::Bug, "a model without a vocabulary was asked for a token"))
}
