//! `fttrain data CONFIG`

use super::{MethodArgs, SetArgs, warn};
use crate::data::tokenizer::Tokenizer;
use crate::data::{IGNORE, Sample, Summary, prepare};
use crate::error::Result;
use crate::report::json;
use crate::report::table::{section, wrap};
use crate::train::ground::Ground;
use crate::train::screen::{Screen, visible};
use clap::Args;
use serde::Serialize;
use std::ops::Range;
use std::path::PathBuf;

/// Characters of a sample that the terminal shows.
const SHOWN: usize = 600;
/// Characters of each run that are shown of a sample of many.
const LEAST: usize = 40;

/// Arguments of `data`.
#[derive(Args)]
pub(super) struct DataArgs {
    /// The run's config.
    config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    set: SetArgs,
}

/// What the data turned out to be, and some of it.
#[derive(Serialize)]
struct Found {
    #[serde(flatten)]
    summary: Summary,
    samples: Vec<Decoded>,
}

/// A training sample as text.
#[derive(Serialize)]
struct Decoded {
    /// All of its tokens.
    tokens: usize,
    /// Those that the loss is taken over.
    counted: usize,
    text: Vec<Run>,
}

/// Neighbouring tokens that are all counted in the loss, or all not.
#[derive(Serialize)]
struct Run {
    text: String,
    counted: bool,
}

pub(super) fn run(args: &DataArgs) -> Result<u8> {
    let resolved = crate::config::load(&args.config, args.method.flag(), &args.set.pairs()?)?;
    warn(&resolved.warnings);
    let ground = Ground::lay(resolved)?;
    let config = &ground.resolved.config;
    let tokenizer =
        Tokenizer::open(&ground.source.tokenizer()?, &ground.arch, config.data.chat_template.as_deref())?;
    let prepared = prepare(config, &tokenizer, None)?;
    let places = spread(prepared.train.len());
    let samples = places.iter().filter_map(|at| Some(Decoded::of(prepared.train.get(*at)?, &tokenizer)));
    let found = Found { samples: samples.collect(), summary: prepared.summary };
    super::print(&if args.json { json::to_text(&found)? } else { found.terminal(&places, Screen::stdout()) });
    Ok(0)
}

/// The first, the middle and the last place of so many.
fn spread(count: usize) -> Vec<usize> {
    let mut places = vec![0, count / 2, count.saturating_sub(1)];
    places.retain(|at| *at < count);
    places.dedup();
    places
}

impl Decoded {
    fn of(sample: &Sample, tokenizer: &Tokenizer) -> Self {
        // A first token is never a target, whatever its label.
        let is_counted = |at: usize| at > 0 && sample.labels.get(at).is_some_and(|label| *label != IGNORE);
        let places: Vec<usize> = (0..sample.ids.len()).collect();
        let runs = places.chunk_by(|a, b| is_counted(*a) == is_counted(*b)).filter_map(|run| {
            let first = *run.first()?;
            let text = decoded(tokenizer, &sample.ids, first..first + run.len())?;
            Some(Run { text, counted: is_counted(first) })
        });
        Self { tokens: sample.ids.len(), counted: sample.loss_tokens(), text: runs.collect() }
    }

    /// On one line, what is counted between marks. Of a long text the middle of each run is left out, and what is behind
    /// the first runs of many.
    fn line(&self, [open, close]: [&str; 2]) -> String {
        let texts: Vec<String> = self.text.iter().map(|run| visible(&run.text)).collect();
        let whole = texts.iter().map(|text| text.chars().count()).sum::<usize>() <= SHOWN;
        let room = if whole { SHOWN } else { (SHOWN / texts.len().max(1)).max(LEAST) };
        let runs = if whole { texts.len() } else { SHOWN / room };
        let mut line = String::new();
        for (run, text) in self.text.iter().zip(&texts).take(runs) {
            let text = without_middle(text, room);
            line.extend(if run.counted { [open, &text, close] } else { ["", &text, ""] });
        }
        if runs < texts.len() {
            line.push('…');
        }
        line
    }
}

/// What a range of ids adds to the text of the id before it: many tokenizers write a space only between two.
fn decoded(tokenizer: &Tokenizer, ids: &[u32], range: Range<usize>) -> Option<String> {
    let alone = tokenizer.decode(ids.get(range.clone())?);
    let Some(before) = range.start.checked_sub(1) else { return Some(alone) };
    let lead = tokenizer.decode(ids.get(before..range.start)?);
    let both = tokenizer.decode(ids.get(before..range.end)?);
    // Where a character's bytes lie in both, the lead has no text of its own.
    Some(both.strip_prefix(lead.as_str()).map_or(alone, str::to_owned))
}

/// The first and the last characters of a text that is longer than `room`.
fn without_middle(text: &str, room: usize) -> String {
    let count = text.chars().count();
    if count <= room {
        return text.to_owned();
    }
    let half = room / 2;
    let head: String = text.chars().take(half).collect();
    let tail: String = text.chars().skip(count - half).collect();
    format!("{head} … {tail}")
}

impl Found {
    /// `places` are those of the samples among all for training.
    fn terminal(&self, places: &[usize], screen: Screen) -> String {
        let marks = if screen.unicode { ["⟦", "⟧"] } else { ["[[", "]]"] };
        let title = format!("Training samples, what is counted in the loss between {}", marks.join(" and "));
        let mut body = String::new();
        for (at, sample) in places.iter().zip(&self.samples) {
            let Decoded { tokens, counted, .. } = sample;
            let head = format!("{}: {tokens} tokens, {counted} of them counted", at + 1);
            body += &wrap(&head, "  ", screen.columns);
            body += &wrap(&sample.line(marks), "    ", screen.columns);
        }
        format!("{}\n{}", self.summary, screen.fit(section(screen, &title, &body)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKS: [&str; 2] = ["⟦", "⟧"];

    fn sample(runs: &[(&str, bool)]) -> Decoded {
        let run = |(text, counted): &(&str, bool)| Run { text: (*text).to_owned(), counted: *counted };
        Decoded { tokens: 9, counted: 4, text: runs.iter().map(run).collect() }
    }

    #[test]
    fn samples_are_taken_from_the_whole_of_the_data() {
        let places: Vec<Vec<usize>> = [0, 1, 2, 3, 19].into_iter().map(spread).collect();
        assert_eq!(places, [vec![], vec![0], vec![0, 1], vec![0, 1, 2], vec![0, 9, 18]]);
    }

    #[test]
    fn what_is_counted_stands_between_marks_and_cannot_drive_the_terminal() {
        let sample = sample(&[("<|user|>\nask\x1b[2J", false), (" answer<|end|>", true), ("\n", false)]);
        assert_eq!(sample.line(MARKS), "<|user|> ask\u{fffd}[2J⟦ answer<|end|>⟧ ");
    }

    #[test]
    fn a_long_sample_is_cut_and_still_shows_what_is_counted() {
        let prompt = format!("begin{}end", "x".repeat(5000));
        let line = sample(&[(prompt.as_str(), false), ("answer", true)]).line(MARKS);
        assert!(line.starts_with("beginx") && line.ends_with("xend⟦answer⟧"), "{line}");
        assert!(line.contains("x … x") && line.chars().count() < SHOWN, "{line}");
        let turns: Vec<(&str, bool)> = (0..1000).map(|n| ("0123456789", n % 2 == 1)).collect();
        let line = sample(&turns).line(MARKS);
        assert!(line.starts_with("0123456789⟦0123456789⟧") && line.ends_with('…'), "{line}");
        assert!(line.chars().count() < SHOWN, "{line}");
    }

    #[test]
    fn a_sample_is_marked_as_the_terminal_can_show_it() {
        let samples = vec![sample(&[("a", false), ("é", true)])];
        let found = Found { summary: Summary::default(), samples };
        let text = found.terminal(&[4], Screen::plain(80));
        assert!(text.contains("between ⟦ and ⟧"), "{text}");
        assert!(text.contains("  5: 9 tokens, 4 of them counted\n    a⟦é⟧\n"), "{text}");
        let text = found.terminal(&[4], Screen { unicode: false, ..Screen::plain(80) });
        assert!(text.contains("between [[ and ]]") && text.contains("    a[[?]]\n"), "{text}");
    }
}
