//! Where the messages of a conversation lie in its rendered text. The template is run once on stand-ins for the
//! contents; what it writes around them holds for every conversation of the same roles, and each row's own rendering
//! is held against it. No searching for tokens or phrases in what people wrote.

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

/// What a template writes around the contents of messages with given roles.
#[derive(Debug, Default)]
pub(super) struct Shape {
    /// Index of the message by its place in the text: some templates move the system message.
    order: Vec<usize>,
    /// The template's text around the contents, one more than there are messages.
    pieces: Vec<String>,
    /// By place: bytes at the end of the piece in front that the model writes itself.
    leads: Vec<usize>,
    /// By place: the end-of-turn token inside the piece behind.
    ends: Vec<Option<Range<usize>>>,
    /// An assistant turn is not preceded by the generation prompt.
    pub(super) prompt_missing: bool,
}

/// A message inside a rendered text, as byte ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Index of the message.
    pub(super) message: usize,
    /// Its content.
    pub(super) content: Range<usize>,
    /// Where the model starts to write: at the content or shortly before.
    pub(super) start: usize,
    /// Its end-of-turn token.
    pub(super) end_of_turn: Option<Range<usize>>,
}

type Roles = Vec<String>;
type Found = Result<Arc<Shape>, RowFault>;

/// The shapes met so far.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    known: Mutex<HashMap<Roles, Found>>,
    generation_prompt: OnceLock<String>,
}

impl Shapes {
    pub(super) fn get(
        &self,
        template: &Template,
        messages: &[Message],
        special: impl Fn(&str) -> Option<Range<usize>>,
    ) -> Result<Arc<Shape>, RowFault> {
        let roles: Roles = messages.iter().map(|m| m.role.clone()).collect();
        // A poisoned lock only means that another thread failed: the map is a cache.
        let known = self.known.lock().ok();
        if let Some(shape) = known.as_ref().and_then(|map| map.get(&roles)) {
            return shape.clone();
        }
        drop(known);
        let prompt = self.generation_prompt.get_or_init(|| generation_prompt(template));
        let shape = Shape::of(template, &roles, prompt, special).map(Arc::new);
        if let Ok(mut map) = self.known.lock()
            && map.len() < MAX_SHAPES
            && roles.len() <= MAX_KNOWN_MESSAGES
        {
            map.insert(roles, shape.clone());
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

impl Shape {
    fn of(
        template: &Template,
        roles: &[String],
        prompt: &str,
        special: impl Fn(&str) -> Option<Range<usize>>,
    ) -> Result<Self, RowFault> {
        let probe: Vec<Message> = roles
            .iter()
            .enumerate()
            .map(|(i, role)| Message::new(role, &format!("{OPEN}{i}{CLOSE}")))
            .collect();
        let text = template.render(&probe, false)?;
        let (order, pieces) = take_apart(&text);
        let mut seen = vec![0usize; roles.len()];
        for &message in &order {
            if let Some(count) = seen.get_mut(message) {
                *count += 1;
            }
        }
        if let Some(i) = seen.iter().position(|&n| n != 1) {
            let (role, verb) = (&roles[i], if seen[i] == 0 { "leaves out" } else { "repeats" });
            return Err(RowFault::Unplaced(format!("{verb} message {i} ({role})")));
        }
        if order.len() != roles.len() {
            return Err(RowFault::Unplaced("writes private-use characters of its own".into()));
        }
        let mut shape = Self { order, pieces, ..Self::default() };
        let mut usual: HashMap<&str, Option<String>> = HashMap::new();
        let mut looks = 0;
        for place in 0..shape.order.len() {
            let message = shape.order[place];
            let role = roles[message].as_str();
            let lead = match shape.pieces[place].rfind(prompt) {
                _ if role != "assistant" || prompt.is_empty() => 0,
                Some(at) => shape.pieces[place].len() - at - prompt.len(),
                None => {
                    shape.prompt_missing = true;
                    0
                }
            };
            shape.leads.push(lead);
            // What stands behind a message that is the last belongs to its turn; what comes later to the next one.
            let behind = shape.pieces[place + 1].as_str();
            let usual_tail = usual.entry(role).or_insert_with(|| tail(template, &probe[..=message]));
            let fits = usual_tail.as_deref().is_some_and(|t| behind.starts_with(t));
            let own = if fits || looks == MAX_SINGLE_LOOKS {
                usual_tail.clone()
            } else {
                looks += 1;
                tail(template, &probe[..=message])
            };
            let shared = own.map_or(0, |tail| common(&tail, behind));
            shape.ends.push(special(&behind[..shared]));
        }
        Ok(shape)
    }

    /// The messages' places in a rendered text.
    ///
    /// # Errors
    /// The text is not these contents, white space at their ends aside, between the template's pieces.
    pub(super) fn place(&self, messages: &[Message], text: &str) -> Result<Vec<Place>, RowFault> {
        let Some((first, behind)) = self.pieces.split_first() else {
            return Err(RowFault::Unplaced("writes nothing".into()));
        };
        if !text.starts_with(first.as_str()) {
            return Err(RowFault::Unplaced("writes another beginning for this row".into()));
        }
        let mut at = first.len();
        let mut places = Vec::with_capacity(self.order.len());
        let around = self.order.iter().zip(behind).zip(self.leads.iter().zip(&self.ends));
        for (i, ((&message, piece), (lead, end))) in around.enumerate() {
            let content = messages.get(message).map_or("", |m| m.content.as_str());
            let rest = text.get(at..).unwrap_or_default();
            let last = i + 1 == self.order.len();
            let follows = |c: &&str| {
                rest.strip_prefix(*c)
                    .is_some_and(|r| if last { r == piece } else { r.starts_with(piece.as_str()) })
            };
            let written = [content, content.trim(), content.trim_start(), content.trim_end()];
            let Some(written) = written.iter().find(|c| follows(c)) else {
                let role = messages.get(message).map_or("", |m| m.role.as_str());
                return Err(RowFault::Unplaced(format!("changes the text of message {message} ({role})")));
            };
            let content = at..at + written.len();
            places.push(Place {
                message,
                start: content.start - lead,
                end_of_turn: end.as_ref().map(|r| content.end + r.start..content.end + r.end),
                content: content.clone(),
            });
            at = content.end + piece.len();
        }
        Ok(places)
    }

    /// The token that ends the last message's turn.
    pub(super) fn end_of_turn(&self) -> Option<&str> {
        let range = self.ends.last()?.clone()?;
        self.pieces.last()?.get(range)
    }
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

/// What the template writes behind the last of these messages.
fn tail(template: &Template, probe: &[Message]) -> Option<String> {
    let text = template.render(probe, false).ok()?;
    let (_, tail) = text.rsplit_once(&probe.last()?.content)?;
    Some(tail.to_owned())
}

/// Bytes that two texts share at their start, a whole number of characters.
fn common(a: &str, b: &str) -> usize {
    let same = a.chars().zip(b.chars()).take_while(|(x, y)| x == y);
    same.map(|(c, _)| c.len_utf8()).sum()
}
