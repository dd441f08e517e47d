//! Where the messages of a conversation lie in its rendered text. The template is run once on stand-ins for the
//! contents; what it writes around them holds for every conversation of the same roles, and each row's own rendering
//! is held against it. Nothing is searched for in what people wrote but the tags of reasoning in front of an answer,
//! which templates take apart.

use super::Message;
use super::error::RowFault;
use super::template::Template;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

/// Sequences of roles that are remembered.
const MAX_SHAPES: usize = 4096;
/// Messages of a sequence that is worth remembering.
const MAX_KNOWN_MESSAGES: usize = 64;
/// Ends of turns that are looked at one by one where a role's usual end does not fit.
const MAX_SINGLE_LOOKS: usize = 64;
/// Stand-ins are numbers between these private-use characters, which no template strips or splits on.
const OPEN: char = '\u{e000}';
const CLOSE: char = '\u{e001}';
/// Tags around a message's reasoning, as Qwen 3's template looks for them.
const THINK: (&str, &str) = ("<think>", "</think>");

/// What a template writes around the contents of messages with given roles.
#[derive(Debug)]
pub(super) struct Shape {
    /// Around each content as one text.
    whole: Layout,
    /// Around reasoning and answers apart, where messages have both.
    parted: Option<Result<Layout, RowFault>>,
    /// An assistant turn is not preceded by the generation prompt.
    pub(super) prompt_missing: bool,
}

/// The template's text around stand-ins.
#[derive(Debug, Default)]
struct Layout {
    /// Numbers of the stand-ins by their place in the text: some templates move the system message. A message's content,
    /// or its answer, has the message's index, its reasoning that and the number of messages.
    order: Vec<usize>,
    /// The template's text around the stand-ins, one more than there are.
    pieces: Vec<String>,
    /// By place: bytes at the end of the piece in front that the model writes itself.
    leads: Vec<usize>,
    /// By place: the end-of-turn token inside the piece behind.
    ends: Vec<Option<Range<usize>>>,
    /// See [`Shape`].
    prompt_missing: bool,
}

/// A message inside a rendered text, as byte ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Index of the message.
    pub(super) message: usize,
    /// Its reasoning, where that stands apart from the content and was not left out.
    pub(super) reasoning: Option<Range<usize>>,
    /// Its content.
    pub(super) content: Range<usize>,
    /// Where the model starts to write: at the reasoning, at the content, or shortly before.
    pub(super) start: usize,
    /// Its end-of-turn token.
    pub(super) end_of_turn: Option<Range<usize>>,
}

/// A role, and whether the message opens with reasoning.
type Turn = (String, bool);
type Found = Result<Arc<Shape>, RowFault>;

/// The shapes met so far.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    known: Mutex<HashMap<Vec<Turn>, Found>>,
    generation_prompt: OnceLock<String>,
}

impl Shapes {
    pub(super) fn get(
        &self,
        template: &Template,
        messages: &[Message],
        special: impl Fn(&str) -> Option<Range<usize>>,
    ) -> Result<Arc<Shape>, RowFault> {
        let turns: Vec<Turn> = messages.iter().map(|m| (m.role.clone(), parts(m).is_some())).collect();
        // A poisoned lock only means that another thread failed: the map is a cache.
        let known = self.known.lock().ok();
        if let Some(shape) = known.as_ref().and_then(|map| map.get(&turns)) {
            return shape.clone();
        }
        drop(known);
        let prompt = self.generation_prompt.get_or_init(|| generation_prompt(template));
        let shape = Shape::of(template, &turns, prompt, &special).map(Arc::new);
        if let Ok(mut map) = self.known.lock()
            && map.len() < MAX_SHAPES
            && turns.len() <= MAX_KNOWN_MESSAGES
        {
            map.insert(turns, shape.clone());
        }
        shape
    }
}

/// What the template adds where the assistant is to speak; empty where it adds nothing.
fn generation_prompt(template: &Template) -> String {
    let user = [Message::new("user", "text")];
    let with = template.render(&user, true).unwrap_or_default();
    let without = template.render(&user, false).unwrap_or_default();
    with.strip_prefix(&without).unwrap_or_default().to_owned()
}

/// Reasoning and answer of an assistant's message that is one reasoning block with an answer behind it.
fn parts(message: &Message) -> Option<(&str, &str)> {
    if message.role != "assistant" {
        return None;
    }
    let (reasoning, answer) = message.content.trim_start().strip_prefix(THINK.0)?.split_once(THINK.1)?;
    let has_tags = |text: &str| text.contains(THINK.0) || text.contains(THINK.1);
    (!has_tags(reasoning) && !has_tags(answer)).then_some((reasoning, answer))
}

impl Shape {
    fn of(
        template: &Template,
        turns: &[Turn],
        prompt: &str,
        special: &impl Fn(&str) -> Option<Range<usize>>,
    ) -> Result<Self, RowFault> {
        let whole = Layout::of(template, turns, false, prompt, special)?;
        let thinks = turns.iter().any(|(_, thinks)| *thinks);
        let parted = thinks.then(|| Layout::of(template, turns, true, prompt, special));
        Ok(Self { prompt_missing: whole.prompt_missing, whole, parted })
    }

    /// The messages' places in a rendered text.
    ///
    /// # Errors
    /// The text is not these contents, white space at their ends aside, between the template's pieces.
    pub(super) fn place(&self, messages: &[Message], text: &str) -> Result<Vec<Place>, RowFault> {
        let contents: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
        match (self.whole.place(messages, &contents, text), &self.parted) {
            (Err(RowFault::Unplaced(_)), Some(parted)) => {
                let parted = parted.as_ref().map_err(RowFault::clone)?;
                let answers =
                    messages.iter().map(|m| parts(m).map_or(m.content.as_str(), |(_, answer)| answer));
                let reasoning = messages.iter().map(|m| parts(m).map_or("", |(reasoning, _)| reasoning));
                let texts: Vec<&str> = answers.chain(reasoning).collect();
                parted.place(messages, &texts, text)
            }
            (found, _) => found,
        }
    }

    /// The token that ends the last message's turn.
    pub(super) fn end_of_turn(&self) -> Option<&str> {
        let range = self.whole.ends.last()?.clone()?;
        self.whole.pieces.last()?.get(range)
    }
}

impl Layout {
    /// `parted`: reasoning and answers have a stand-in each.
    fn of(
        template: &Template,
        turns: &[Turn],
        parted: bool,
        prompt: &str,
        special: &impl Fn(&str) -> Option<Range<usize>>,
    ) -> Result<Self, RowFault> {
        let count = turns.len();
        let probe: Vec<Message> = turns
            .iter()
            .enumerate()
            .map(|(i, (role, thinks))| {
                let content = stand_in(i);
                if parted && *thinks {
                    let ((open, close), reasoning) = (THINK, stand_in(count + i));
                    Message::new(role, &format!("{open}\n{reasoning}\n{close}\n\n{content}"))
                } else {
                    Message::new(role, &content)
                }
            })
            .collect();
        let text = template.render(&probe, false)?;
        let (order, pieces) = take_apart(&text);
        let mut seen = vec![0usize; if parted { 2 * count } else { count }];
        for &number in &order {
            if let Some(times) = seen.get_mut(number) {
                *times += 1;
            }
        }
        if order.len() != seen.iter().sum::<usize>() {
            return Err(RowFault::Unplaced("writes private-use characters of its own".into()));
        }
        if let Some(i) = seen.iter().take(count).position(|&n| n != 1) {
            let (role, verb) = (&turns[i].0, if seen[i] == 0 { "leaves out" } else { "repeats" });
            return Err(RowFault::Unplaced(format!("{verb} message {i} ({role})")));
        }
        for (place, number) in order.iter().enumerate() {
            if let Some(i) = number.checked_sub(count)
                && order.get(place + 1) != Some(&i)
            {
                let role = &turns[i].0;
                return Err(RowFault::Unplaced(format!("moves the reasoning of message {i} ({role})")));
            }
        }
        // Of earlier turns templates leave the reasoning out, and a model never sees it again. That of the last one is what
        // the row is there for.
        if let Some((role, true)) = turns.last()
            && parted
            && seen.last() == Some(&0)
        {
            let i = count - 1;
            return Err(RowFault::Unplaced(format!("leaves out the reasoning of message {i} ({role})")));
        }
        let mut layout = Self { order, pieces, ..Self::default() };
        let mut usual: HashMap<&str, Option<String>> = HashMap::new();
        let mut looks = 0;
        for place in 0..layout.order.len() {
            let number = layout.order[place];
            let message = number % count;
            let role = turns[message].0.as_str();
            let goes_on = place > 0 && layout.order[place - 1] == count + number;
            let lead = match layout.pieces[place].rfind(prompt) {
                _ if role != "assistant" || prompt.is_empty() || goes_on => 0,
                Some(at) => layout.pieces[place].len() - at - prompt.len(),
                None => {
                    layout.prompt_missing = true;
                    0
                }
            };
            layout.leads.push(lead);
            if number >= count {
                layout.ends.push(None);
                continue;
            }
            // What stands behind a message that is the last belongs to its turn; what comes later to the next one.
            let behind = layout.pieces[place + 1].as_str();
            let own_tail = || tail(template, &probe[..=message], &stand_in(message));
            let usual_tail = usual.entry(role).or_insert_with(own_tail);
            let fits = usual_tail.as_deref().is_some_and(|t| behind.starts_with(t));
            let own = if fits || looks == MAX_SINGLE_LOOKS {
                usual_tail.clone()
            } else {
                looks += 1;
                own_tail()
            };
            let shared = own.map_or(0, |tail| common(&tail, behind));
            layout.ends.push(special(&behind[..shared]));
        }
        Ok(layout)
    }

    /// As [`Shape::place`]; `texts` by the numbers of their stand-ins.
    fn place(&self, messages: &[Message], texts: &[&str], text: &str) -> Result<Vec<Place>, RowFault> {
        let Some((first, behind)) = self.pieces.split_first() else {
            return Err(RowFault::Unplaced("writes nothing".into()));
        };
        if !text.starts_with(first.as_str()) {
            return Err(RowFault::Unplaced("writes another beginning for this row".into()));
        }
        let mut at = first.len();
        let mut places = Vec::with_capacity(messages.len());
        // Reasoning whose answer is still to come: where the model starts to write, and its range.
        let mut thought: Option<(usize, Range<usize>)> = None;
        let around = self.order.iter().zip(behind).zip(self.leads.iter().zip(&self.ends));
        for (i, ((&number, piece), (lead, end))) in around.enumerate() {
            let rest = text.get(at..).unwrap_or_default();
            let last = i + 1 == self.order.len();
            let follows = |c: &&str| {
                rest.strip_prefix(*c)
                    .is_some_and(|r| if last { r == piece } else { r.starts_with(piece.as_str()) })
            };
            let forms = forms(texts.get(number).copied().unwrap_or_default());
            let Some(written) = forms.iter().find(|c| follows(c)) else {
                let is_there = forms.iter().any(|c| !c.is_empty() && rest.starts_with(c));
                return Err(self.misfit(messages, i, is_there));
            };
            let range = at..at + written.len();
            at = range.end + piece.len();
            let start = range.start - lead;
            if number >= messages.len() {
                thought = Some((start, range));
                continue;
            }
            let (start, reasoning) =
                thought.take().map_or((start, None), |(start, range)| (start, Some(range)));
            places.push(Place {
                message: number,
                reasoning,
                start,
                end_of_turn: end.as_ref().map(|r| range.end + r.start..range.end + r.end),
                content: range,
            });
        }
        Ok(places)
    }

    /// What is wrong with a row whose text at a place, or what stands behind it, is not what the template writes elsewhere;
    /// `is_there`: the text is.
    fn misfit(&self, messages: &[Message], place: usize, is_there: bool) -> RowFault {
        let (place, verb) = if is_there && place + 1 < self.order.len() {
            (place + 1, "writes something else in front of")
        } else if is_there {
            (place, "writes something else behind")
        } else {
            (place, "changes the text of")
        };
        let number = self.order.get(place).copied().unwrap_or_default();
        let at = number.checked_rem(messages.len()).unwrap_or_default();
        let (role, content) = messages.get(at).map_or(("", ""), |m| (m.role.as_str(), m.content.as_str()));
        let (open, close) = THINK;
        RowFault::Unplaced(if content.contains(close) {
            format!(
                "rewrites the reasoning in message {at} ({role}), and only one {open}…{close} block in front of \
                 an answer is supported"
            )
        } else {
            format!("{verb} message {at} ({role}) in this row")
        })
    }
}

/// A text as templates write it: as it is, or without white space or line ends around it.
fn forms(text: &str) -> [&str; 6] {
    [
        text,
        text.trim(),
        text.trim_start(),
        text.trim_end(),
        text.trim_start_matches('\n'),
        text.trim_matches('\n'),
    ]
}

fn stand_in(number: usize) -> String {
    format!("{OPEN}{number}{CLOSE}")
}

/// Numbers of the stand-ins in a text, and what lies around them.
fn take_apart(text: &str) -> (Vec<usize>, Vec<String>) {
    let mut order = Vec::new();
    let mut pieces = vec![String::new()];
    let mut parts = text.split(OPEN);
    if let (Some(first), Some(piece)) = (parts.next(), pieces.last_mut()) {
        first.clone_into(piece);
    }
    for part in parts {
        let (number, piece) = part.split_once(CLOSE).unwrap_or((part, ""));
        order.push(number.parse().unwrap_or(usize::MAX));
        pieces.push(piece.to_owned());
    }
    (order, pieces)
}

/// What the template writes behind the last of these messages, which ends with a stand-in.
fn tail(template: &Template, probe: &[Message], last: &str) -> Option<String> {
    let text = template.render(probe, false).ok()?;
    let (_, tail) = text.rsplit_once(last)?;
    Some(tail.to_owned())
}

/// Bytes that two texts share at their start, a whole number of characters.
fn common(a: &str, b: &str) -> usize {
    let same = a.chars().zip(b.chars()).take_while(|(x, y)| x == y);
    same.map(|(c, _)| c.len_utf8()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::with_template;
    use crate::data::tokenizer::Tokenizer;

    /// What Qwen 3's template does: reasoning stands before the last answer alone, in a block that it writes itself.
    const QWEN: &str = "{% for m in messages %}{% set text = m.content %}{% set thought = '' %}\
        {% if '</think>' in m.content %}{% set text = m.content.split('</think>')[-1] %}\
        {% set thought = m.content.split('</think>')[0].rstrip('\n').split('<think>')[-1] %}{% endif %}\
        {{ '<|im_start|>' + m.role + '\n' }}{% if loop.last and m.role == 'assistant' %}\
        {{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}\
        {{ text.lstrip('\n') + '<|im_end|>\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    /// What the model writes of a message, with its end of turn behind a bar, and the reasoning in it.
    type Written = (String, Option<String>);

    fn written(tokenizer: &Tokenizer, turns: &[(&str, &str)]) -> Result<Vec<Written>, String> {
        let messages: Vec<Message> = turns.iter().map(|(role, text)| Message::new(role, text)).collect();
        let text = tokenizer.render_chat(&messages, false).unwrap();
        let shape = tokenizer.shape(&messages).map_err(|e| e.to_string())?;
        let places = shape.place(&messages, &text).map_err(|e| e.to_string())?;
        let found = places.into_iter().map(|place| {
            let end = place.end_of_turn.map_or("", |range| &text[range]);
            let whole = format!("{}|{end}", &text[place.start..place.content.end]);
            (whole, place.reasoning.map(|range| text[range].to_owned()))
        });
        Ok(found.collect())
    }

    #[test]
    fn line_ends_that_a_template_strips_do_not_hide_a_text() {
        let qwen = with_template(QWEN);
        let turns = [("user", "\n\n a\n"), ("assistant", "b"), ("user", "\nc "), ("assistant", "\n\n d ")];
        let found = written(&qwen, &turns).unwrap();
        let texts: Vec<&str> = found.iter().map(|(text, _)| text.as_str()).collect();
        let last = "<think>\n\n</think>\n\n d |<|im_end|>";
        assert_eq!(texts, [" a\n|<|im_end|>", "b|<|im_end|>", "c |<|im_end|>", last]);
        let both = "{% for m in messages %}{{ m.content.strip('\n') }}<|im_end|>{% endfor %}";
        let found = written(&with_template(both), &[("user", "\n a \n")]).unwrap();
        assert_eq!(found, [(" a |<|im_end|>".to_owned(), None)]);
    }

    #[test]
    fn reasoning_is_followed_into_the_block_that_the_template_writes() {
        let qwen = with_template(QWEN);
        let earlier = "<think>\nwhy\n</think>\n\nb";
        let ended = "|<|im_end|>";
        for (content, reasoning) in [
            ("<think>\nhow so\n</think>\n\nd", "how so"),
            ("<think>how so</think>d", "how so"),
            (" \n<think>\n\n how so\n</think>\nd", " how so"),
            ("<think>\n\n</think>\n\nd", ""),
        ] {
            let turns = [("user", "a"), ("assistant", earlier), ("user", "c"), ("assistant", content)];
            let last = format!("<think>\n{reasoning}\n</think>\n\nd{ended}");
            let wanted = [
                (format!("a{ended}"), None),
                (format!("b{ended}"), None),
                (format!("c{ended}"), None),
                (last, Some(reasoning.to_owned())),
            ];
            assert_eq!(written(&qwen, &turns).unwrap(), wanted, "{content:?}");
        }
        // Where a template writes contents as they are, the block is a part of them.
        let plain = with_template("chatml");
        let found = written(&plain, &[("user", "a"), ("assistant", "<think>so</think>d")]).unwrap();
        assert_eq!(found[1], ("<think>so</think>d|<|im_end|>".to_owned(), None));
    }

    #[test]
    fn a_row_that_cannot_be_followed_names_the_message_that_is_changed() {
        let qwen = with_template(QWEN);
        let cut = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}";
        let parted = "{% for m in messages %}{{ m.content }}{% if not loop.last %}\
            {{ '!' if 'b' in messages[1].content else ';' }}{% endif %}{% endfor %}";
        let closed =
            "{% for m in messages %}{{ m.content + ('!;' if 'b' in m.content else ';') }}{% endfor %}";
        for (tokenizer, answer, fact) in [
            (
                &qwen,
                "why</think>b",
                "rewrites the reasoning in message 1 (assistant), and only one <think>…</think>",
            ),
            (&qwen, "x<think>why</think>b", "rewrites the reasoning in message 1 (assistant)"),
            (&qwen, "<think>a</think><think>a</think>b", "rewrites the reasoning in message 1 (assistant)"),
            (&with_template(cut), "<think>why</think>b", "leaves out the reasoning of message 1 (assistant)"),
            (&with_template(parted), "b", "writes something else in front of message 1 (assistant)"),
            (&with_template(closed), "b", "writes something else behind message 1 (assistant)"),
        ] {
            let error = written(tokenizer, &[("user", "a"), ("assistant", answer)]).unwrap_err();
            assert!(error.contains(fact), "{answer}: {error}");
        }
    }
}
