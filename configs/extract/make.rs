//! Makes the rows of configs/smollm2-extract.toml:
//!
//! ```text
//! cargo run --example make-extract
//! ```
//!
//! 1,000 rows to learn from and 200 to be judged by, in data/extract/; the same bytes each time.

mod bookings;

use std::fs;

/// Where the rows go.
const FOLDER: &str = "data/extract";

fn main() -> std::io::Result<()> {
    fs::create_dir_all(FOLDER)?;
    for (name, rows) in [("train", 0..1000), ("test", 1000..1200)] {
        let mut lines: Vec<String> = rows.map(|n| bookings::row(n).to_string()).collect();
        lines.push(String::new());
        fs::write(format!("{FOLDER}/{name}.jsonl"), lines.join("\n"))?;
    }
    Ok(())
}
