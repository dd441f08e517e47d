//! How good a model is on rows: their loss, and whether what it says ends in the answer that is wanted, each with its
//! interval.

use super::subject::Subject;
use crate::data::packing;
use crate::data::questions::Question;
use crate::data::rng::Rng;
use crate::data::{Message, RowFault, Sample};
use crate::error::{Error, Kind, Result};
use crate::model::Decoder;
use crate::model::generate::{Settings, generate};
use regex::Regex;
use serde::Serialize;

/// Resamples of the bootstrap (Efron, 1979).
const RESAMPLES: u64 = 1000;
/// The normal distribution's 97.5 % point: intervals are of 95 %.
const Z: f64 = 1.959_964;

/// The loss of rows, as training counts it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Loss {
    /// Rows, windows of long texts counted one by one.
    pub rows: usize,
    /// Tokens that are counted.
    pub loss_tokens: u64,
    /// Σ token losses / Σ counted tokens, nats.
    pub loss: f64,
    /// 95 % interval, by resampling rows.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// e to the loss.
    pub perplexity: f64,
    /// Share of counted tokens that were the likeliest.
    pub token_accuracy: f64,
}

/// How many answers are the one that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Exact {
    /// Questions.
    pub asked: usize,
    /// Answers with a match.
    pub answered: usize,
    /// Right answers.
    pub right: usize,
    /// `right / asked`.
    pub share: f64,
    /// Wilson's 95 % interval.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// Tokens of all answers.
    pub tokens: usize,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Line of the question.
    pub line: u64,
    /// What the model said.
    pub said: String,
    /// What was found in it.
    pub given: Option<String>,
    /// What was wanted.
    pub wanted: String,
    /// Whether they are the same.
    pub right: bool,
}

/// How questions are asked.
pub struct Asking<'a> {
    /// Finds the final answer: its first group, or all of it; the last match counts.
    pub pattern: &'a Regex,
    /// Solved examples that stand before each question.
    pub shots: &'a [Question],
    /// Tokens of an answer at most.
    pub max_tokens: usize,
    /// Questions that are answered at once.
    pub at_once: usize,
    /// Tokens of a question and its answer at most: positions that the model was made for.
    pub positions: usize,
}

/// The loss of samples.
///
/// # Errors
/// None of them has a counted token.
pub fn loss(decoder: &Decoder, samples: &[Sample], max_tokens: usize) -> Result<Loss> {
    let mut rows: Vec<(f64, u64)> = Vec::new();
    let mut right = 0_u64;
    for batch in packing::eval_batches(samples, max_tokens) {
        let mut own = vec![(0.0, 0_u64); batch.segments.len()];
        for (target, scored) in batch.targets.iter().zip(decoder.log_probabilities(&batch)?) {
            let segment = batch.segments.partition_point(|s| s.end <= target.at as usize);
            if let Some((sum, count)) = own.get_mut(segment) {
                *sum -= f64::from(scored.log_probability);
                *count += 1;
            }
            right += u64::from(scored.is_likeliest);
        }
        rows.extend(own.into_iter().filter(|(_, count)| *count > 0));
    }
    let loss_tokens: u64 = rows.iter().map(|(_, count)| count).sum();
    if loss_tokens == 0 {
        return Err(Error::new(Kind::Data, "none of the rows has a counted token"));
    }
    let loss = rows.iter().map(|(sum, _)| sum).sum::<f64>() / loss_tokens as f64;
    let (low, high) = bootstrap(&rows);
    let token_accuracy = right as f64 / loss_tokens as f64;
    Ok(Loss { rows: rows.len(), loss_tokens, loss, low, high, perplexity: loss.exp(), token_accuracy })
}

/// Asks each question and holds the answers against those that are wanted.
///
/// # Errors
/// An answer that is wanted has no match, a prompt cannot be rendered or is longer than the model.
pub fn exact(
    subject: &Subject,
    decoder: &Decoder,
    questions: &[Question],
    asking: &Asking,
) -> Result<(Exact, Vec<Answer>)> {
    let wanted: Vec<String> = questions.iter().map(|q| wanted(q, asking.pattern)).collect::<Result<_>>()?;
    let prompts: Vec<Vec<u32>> =
        questions.iter().map(|q| prompt(subject, q, asking)).collect::<Result<_>>()?;
    let tokenizer = &subject.tokenizer;
    let mut how = Settings::greedy(asking.max_tokens, tokenizer.stop_ids(), asking.positions);
    how.at_once = asking.at_once;
    let said = generate(decoder, &prompts, &how, |_, _| ())?;
    let tokens = said.iter().map(Vec::len).sum();
    let answer = |((question, wanted), ids): ((&Question, String), &Vec<u32>)| {
        let said = own_turn(tokenizer.decode(ids), question.chat || asking.shots.is_empty());
        let given = find(asking.pattern, &said);
        let right = given.as_deref().is_some_and(|given| same(given, &wanted));
        Answer { line: question.line, said, given, wanted, right }
    };
    let answers: Vec<Answer> = questions.iter().zip(wanted).zip(&said).map(answer).collect();
    let right = answers.iter().filter(|a| a.right).count();
    let (low, high) = wilson(right, answers.len());
    let exact = Exact {
        asked: answers.len(),
        answered: answers.iter().filter(|a| a.given.is_some()).count(),
        right,
        share: right as f64 / answers.len().max(1) as f64,
        low,
        high,
        tokens,
    };
    Ok((exact, answers))
}

fn wanted(question: &Question, pattern: &Regex) -> Result<String> {
    find(pattern, &question.answer).ok_or_else(|| {
        let fact = format!("line {}: the row's own answer has no match for `{pattern}`", question.line);
        Error::new(Kind::Data, fact).hint("`--match` must find the final answer in every row's answer")
    })
}

/// The last match: its first group where it has one.
fn find(pattern: &Regex, text: &str) -> Option<String> {
    let last = pattern.captures_iter(text).last()?;
    let found = last.get(1).or_else(|| last.get(0))?;
    Some(found.as_str().trim().to_owned())
}

/// The same JSON value, the same number, or the same text.
fn same(given: &str, wanted: &str) -> bool {
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    if let (Some(given), Some(wanted)) = (json(given), json(wanted))
        && (given.is_object() || given.is_array())
    {
        return given == wanted;
    }
    let number = |text: &str| text.replace([',', '$'], "").trim_end_matches('.').parse::<f64>().ok();
    match (number(given), number(wanted)) {
        (Some(given), Some(wanted)) => (given - wanted).abs() <= 1e-9 * wanted.abs(),
        _ => given == wanted,
    }
}

/// Plain text goes on with a question of its own where examples taught it to.
fn own_turn(said: String, is_alone: bool) -> String {
    match said.split_once("\n\n") {
        Some((own, _)) if !is_alone => own.to_owned(),
        _ => said,
    }
}

fn prompt(subject: &Subject, question: &Question, asking: &Asking) -> Result<Vec<u32>> {
    let tokenizer = &subject.tokenizer;
    let fault = |fault: RowFault| Error::new(Kind::Model, format!("line {}: {fault}", question.line));
    let ids = if question.chat && tokenizer.has_template() {
        let shots = asking.shots.iter().flat_map(|shot| {
            let asked = shot.turns.iter().filter(|turn| turn.role != "system").cloned();
            asked.chain([Message::new("assistant", &shot.answer)])
        });
        let (system, turns): (Vec<_>, Vec<_>) =
            question.turns.iter().cloned().partition(|turn| turn.role == "system");
        let turns: Vec<Message> = system.into_iter().chain(shots).chain(turns).collect();
        let text = tokenizer.render_chat(&turns, true).map_err(fault)?;
        tokenizer.encode_rendered(&text).map_err(fault)?
    } else {
        let shots = asking.shots.iter().map(|shot| format!("{}{}\n\n", plain(shot), shot.answer));
        let text: String = shots.chain([plain(question)]).collect();
        let mut ids = tokenizer.prefix().to_vec();
        ids.extend(tokenizer.encode(text.trim_end_matches(' ')).map_err(fault)?);
        ids
    };
    let positions = asking.positions;
    if ids.len() >= positions {
        let fact = format!(
            "line {}: the prompt has {} tokens, and {positions} is the most",
            question.line,
            ids.len()
        );
        return Err(Error::new(Kind::Usage, fact).hint("ask with fewer `--shots`"));
    }
    Ok(ids)
}

/// A question for a model without a template: a prompt as it is, a conversation turn by turn.
fn plain(question: &Question) -> String {
    if !question.chat {
        return question.turns.iter().map(|turn| turn.content.as_str()).collect();
    }
    let turns = question.turns.iter().map(|turn| format!("{}: {}\n", turn.role, turn.content));
    turns.chain(["assistant: ".to_owned()]).collect()
}

/// Wilson's interval for a share (1927), which holds for few and for extreme ones too.
fn wilson(right: usize, asked: usize) -> (f64, f64) {
    if asked == 0 {
        return (0.0, 1.0);
    }
    let (n, p) = (asked as f64, right as f64 / asked as f64);
    let centre = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    (((centre - half) / scale).max(0.0), ((centre + half) / scale).min(1.0))
}

/// The middle 95 % of the loss when rows are drawn anew, with the same draws each time.
fn bootstrap(rows: &[(f64, u64)]) -> (f64, f64) {
    let count = rows.len() as u64;
    let mut losses: Vec<f64> = (0..RESAMPLES)
        .map(|resample| {
            let mut rng = Rng::new(0, "bootstrap", resample, 0);
            let drawn = (0..count).filter_map(|_| rows.get(usize::try_from(rng.below(count)).ok()?));
            let (sum, tokens) = drawn.fold((0.0, 0), |(sum, tokens), (s, t)| (sum + s, tokens + t));
            sum / tokens.max(1) as f64
        })
        .collect();
    losses.sort_by(f64::total_cmp);
    let at = |index: usize| losses.get(index).copied().unwrap_or(f64::NAN);
    (at(24), at(974))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilsons_interval_is_the_published_one() {
        // 8 of 10 at 95 %: 0.490 … 0.943 (Newcombe 1998, method 3).
        let (low, high) = wilson(8, 10);
        assert!((low - 0.4902).abs() < 5e-4 && (high - 0.9433).abs() < 5e-4, "{low} {high}");
        let (low, high) = wilson(0, 10);
        assert!(low.abs() < 1e-12 && (high - 0.2775).abs() < 5e-4, "{low} {high}");
        assert!((wilson(10, 10).1 - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_bootstrap_holds_the_mean_and_narrows_with_rows() {
        let rows = |n: u64| (0..n).map(|i| ((i % 7) as f64, 1 + i % 3)).collect::<Vec<_>>();
        let width = |rows: &[(f64, u64)]| {
            let (low, high) = bootstrap(rows);
            let mean = rows.iter().map(|r| r.0).sum::<f64>() / rows.iter().map(|r| r.1).sum::<u64>() as f64;
            assert!(low < mean && mean < high, "{low} {mean} {high}");
            high - low
        };
        assert!(width(&rows(30)) > 2.0 * width(&rows(1000)));
        assert_eq!(bootstrap(&rows(30)), bootstrap(&rows(30)));
    }

    #[test]
    fn the_last_match_counts_and_numbers_are_compared_as_numbers() {
        let pattern = Regex::new(r"#### (-?[\d.,$]+)").unwrap();
        assert_eq!(find(&pattern, "#### 3\nno, #### 1,234.").as_deref(), Some("1,234."));
        assert_eq!(find(&pattern, "none"), None);
        assert!(same("1,234.", "1234") && same("$5.00", "5") && !same("12", "21"));
        assert!(same(r#"{"b": 1, "a": "x"}"#, r#"{"a":"x","b":1}"#) && !same("[1]", "[2]"));
        assert!(same("Paris", "Paris") && !same("Paris", "paris"));
    }
}
