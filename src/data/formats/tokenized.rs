//! Rows that are token ids with labels; nothing is added to them.

use super::super::error::RowFault;
use super::super::json::Cell;
use super::{Row, cells, missing, wrong};

/// `input_ids` and `labels`, of equal lengths.
pub(super) fn ids(line: &str) -> Result<Row, RowFault> {
    let [ids, labels] = cells(line, ["input_ids", "labels"])?;
    let (ids, labels) = (integers("input_ids", ids)?, integers("labels", labels)?);
    if ids.len() != labels.len() {
        return Err(RowFault::Value {
            field: "labels".into(),
            wrong: format!("has {} items, `input_ids` has {}", labels.len(), ids.len()),
        });
    }
    Ok(Row::Ids { ids, labels })
}

fn integers(field: &str, cell: Option<Cell>) -> Result<Vec<i64>, RowFault> {
    match cell {
        Some(Cell::Integers(all)) => Ok(all),
        Some(Cell::Empty) => Ok(Vec::new()),
        Some(other) => Err(wrong(field, "an array of integers", other.kind())),
        None => Err(missing(field)),
    }
}
