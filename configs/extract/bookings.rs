//! Requests for a table as people write them, each with the booking that stands in it. A row is a function of its
//! number; no two are alike.

use serde_json::{Value, json};

const FIRST: [&str; 24] = [
    "Maria", "Jonas", "Aylin", "Peter", "Sofia", "Tom", "Grace", "Omar", "Lena", "Victor", "Hannah", "Bilal",
    "Nora", "Felix", "Ines", "Daniel", "Mei", "Karl", "Ruth", "Pablo", "Zoe", "Anton", "Leila", "Hugo",
];
const LAST: [&str; 24] = [
    "Keller", "Osei", "Brandt", "Moreau", "Silva", "Novak", "Haddad", "Lind", "Okafor", "Weber", "Rossi",
    "Tanaka", "Meyer", "Dupont", "Kaya", "Larsen", "Costa", "Fischer", "Ahmed", "Petrov", "Jensen", "Ito",
    "Marin", "Schulz",
];
const NUMBERS: [&str; 9] = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];
const MONTHS: [(&str, u64); 12] = [
    ("January", 31),
    ("February", 28),
    ("March", 31),
    ("April", 30),
    ("May", 31),
    ("June", 30),
    ("July", 31),
    ("August", 31),
    ("September", 30),
    ("October", 31),
    ("November", 30),
    ("December", 31),
];
const HOURS: [&str; 5] = ["six", "seven", "eight", "nine", "ten"];
/// What is said, and what is noted.
const NOTES: [(&str, &str); 8] = [
    ("One of us is vegetarian.", "vegetarian"),
    ("We are bringing a baby, so a high chair would help.", "high chair"),
    ("My father uses a wheelchair.", "wheelchair"),
    ("Please no nuts for my daughter.", "no nuts"),
    ("We would love to sit outside.", "outside"),
    ("It is a birthday, perhaps with a small cake?", "birthday"),
    ("Our dog comes along.", "dog"),
    ("If there is a quiet corner, we would take it.", "quiet"),
];
/// Said by the way, and no part of a booking.
const ASIDES: [&str; 8] = [
    "We were with you 3 years ago and still talk about the soup.",
    "My sister told me about your place.",
    "We come by train at 5 and walk from the station.",
    "I tried to call on Monday, but nobody answered.",
    "Last time there were 12 of us, this time it is a smaller round.",
    "Is the bridge on 2nd Street still closed?",
    "I hope your cook is still Mr Baker.",
    "The weather should be fine by then.",
];

/// What stands in front of every request.
pub(crate) const TASK: &str =
    "Extract the booking as JSON with the keys name, people, date, time, phone and note. The year is 2026.";

/// A stream of numbers (`SplitMix64`; Steele, Lea, Flood 2014).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let n = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (n ^ (n >> 31)) % sides
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let at = usize::try_from(self.roll(all.len() as u64)).unwrap_or(0);
        &all[at]
    }
}

/// Row `number`: a conversation of one request and its record.
pub(crate) fn row(number: u64) -> Value {
    let mut dice = Dice(number.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let name = format!("{} {}", dice.pick(&FIRST), dice.pick(&LAST));
    let people = 2 + dice.roll(9);
    let (said_date, date) = date(&mut dice);
    let (said_time, time) = time(&mut dice);
    let (said_phone, phone) = phone(&mut dice);
    let (said_note, note) = if dice.roll(2) == 0 {
        ("", Value::Null)
    } else {
        let (said, note) = dice.pick(&NOTES);
        (*said, json!(note))
    };
    let count = if dice.roll(2) == 0 {
        people.to_string()
    } else {
        NUMBERS[usize::try_from(people - 2).unwrap_or(0)].to_owned()
    };
    let request = match dice.roll(5) {
        0 => format!("Hello, this is {name}. Could we have a table for {count} on {said_date}, {said_time}?"),
        1 => format!("I would like to book for {count} people, {said_date} {said_time}. The name is {name}."),
        2 => format!("Table for {count} please! {said_date}, {said_time}. Under {name}."),
        3 => {
            format!("{name} here. On {said_date} there will be {count} of us, and we would come {said_time}.")
        }
        _ => format!(
            "Good day, do you have room for {count} guests on {said_date}? We would arrive {said_time}. Yours, {name}"
        ),
    };
    let mut parts = vec![request];
    for more in [said_phone.as_str(), said_note] {
        if !more.is_empty() {
            parts.push(more.to_owned());
        }
    }
    if dice.roll(2) == 0 {
        let at = usize::try_from(dice.roll(parts.len() as u64 + 1)).unwrap_or(0);
        parts.insert(at, (*dice.pick(&ASIDES)).to_owned());
    }
    let record =
        json!({"name": name, "people": people, "date": date, "time": time, "phone": phone, "note": note});
    json!({"messages": [
        {"role": "user", "content": format!("{TASK}\n\n{}", parts.join(" "))},
        {"role": "assistant", "content": record.to_string()},
    ]})
}

fn date(dice: &mut Dice) -> (String, String) {
    let at = usize::try_from(dice.roll(12)).unwrap_or(0);
    let (month, days) = MONTHS[at];
    let day = 1 + dice.roll(days);
    let iso = format!("2026-{:02}-{day:02}", at + 1);
    let ending = match day {
        1 | 21 | 31 => "st",
        2 | 22 => "nd",
        3 | 23 => "rd",
        _ => "th",
    };
    let said = match dice.roll(4) {
        0 => format!("{day} {month}"),
        1 => format!("{month} {day}{ending}"),
        2 => format!("the {day}{ending} of {month}"),
        _ => format!("{day}.{}.", at + 1),
    };
    (said, iso)
}

fn time(dice: &mut Dice) -> (String, String) {
    let at = usize::try_from(dice.roll(HOURS.len() as u64)).unwrap_or(0);
    let (hour, word) = (at + 6, HOURS[at]);
    match dice.roll(5) {
        0 => (format!("at {hour} pm"), format!("{}:00", hour + 12)),
        1 => (format!("at {hour}:30 pm"), format!("{}:30", hour + 12)),
        2 => (format!("at half past {word} in the evening"), format!("{}:30", hour + 12)),
        3 => (format!("at a quarter to {word} in the evening"), format!("{}:45", hour + 11)),
        _ => (format!("at {}.15", hour + 12), format!("{}:15", hour + 12)),
    }
}

fn phone(dice: &mut Dice) -> (String, Value) {
    let digits = |dice: &mut Dice, n: usize| (0..n).map(|_| dice.roll(10).to_string()).collect::<String>();
    let (code, first, last) = (format!("01{}", digits(dice, 2)), digits(dice, 3), digits(dice, 4));
    let said = match dice.roll(4) {
        0 => return (String::new(), Value::Null),
        1 => format!("My number is {code} {first} {last}."),
        2 => format!("You reach me at {code}-{first}-{last}."),
        _ => format!("Phone: {code}/{first}{last}."),
    };
    (said, json!(format!("{code}{first}{last}")))
}
