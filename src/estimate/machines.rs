//! The machines that a prediction is asked for: rows of the price table, bare accelerators, profiles that were measured.

use super::error::Error;
use super::machine::{Kind, Limits, Machine};
use super::money::PriceUsed;
use super::prices::{Row, Table, is_accelerator};
use super::published::{self, Published};
use super::sheets::{self, Sheet};
use crate::error::Result;
use crate::units::BYTES_PER_GIB;
use jiff::civil::Date;

/// A machine to predict for.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// `provider/instance`, an accelerator, or a profile's name.
    pub name: String,
    /// Its rates.
    pub machine: Machine,
    /// Its memory.
    pub limits: Limits,
    /// Its price.
    pub price: PriceUsed,
    /// What to say about it.
    pub note: Option<String>,
}

/// What candidates are made from.
#[derive(Debug, Clone)]
pub struct Market {
    table: Table,
    sheets: Vec<Sheet>,
    published: Vec<Published>,
    /// Machines that were measured here, with this machine's limits.
    measured: Vec<(Machine, Limits)>,
    today: Date,
}

/// The machine that the card of this driver's name makes by its data sheet; `None` where no sheet is its own.
///
/// # Errors
/// None in a released program.
pub fn of_card(name: &str) -> Result<Option<Machine>> {
    let (sheets, published) = (sheets::shipped()?, published::shipped()?);
    Ok(sheets::of_card(&sheets, name).map(|sheet| sheets::machine(sheet, &sheets, &published)))
}

/// What a process may take of the card of this driver's name that has so many `bytes`.
///
/// # Errors
/// None in a released program.
pub fn limits_of_card(name: &str, bytes: u64) -> Result<Limits> {
    let sheets = sheets::shipped()?;
    let name = sheets::of_card(&sheets, name).map_or(name, |sheet| &sheet.name);
    Ok(sheets::limits(name, bytes as f64 / BYTES_PER_GIB))
}

/// Bytes of a card of this driver's name by its data sheet; `None` where no sheet is its own.
///
/// # Errors
/// None in a released program.
pub fn bytes_of_card(name: &str) -> Result<Option<u64>> {
    let sheets = sheets::shipped()?;
    Ok(sheets::of_card(&sheets, name).map(|sheet| super::rounded(sheet.vram_gib * BYTES_PER_GIB)))
}

/// Providers' rows that rent out inference, not machines.
const HOSTING: &str = "(hosting)";

impl Market {
    /// The shipped tables, and the profiles of this machine.
    ///
    /// # Errors
    /// None in a released program.
    pub fn open(measured: Vec<(Machine, Limits)>, today: Date) -> Result<Self> {
        Ok(Self {
            table: Table::shipped()?,
            sheets: sheets::shipped()?,
            published: published::shipped()?,
            measured,
            today,
        })
    }

    /// The machines called `name`: `all` for the whole price table and what was measured; a row; an accelerator with
    /// all its rows, without a price where it has none; a profile by a part of its name.
    ///
    /// # Errors
    /// Usage: nothing is called so, with the nearest rows.
    pub fn find(&self, name: &str) -> Result<Vec<Candidate>> {
        let wanted = name.to_lowercase();
        if wanted == "all" {
            return Ok(self.rows().filter_map(|row| self.of_row(row)).chain(self.profiles("")).collect());
        }
        let rows: Vec<&Row> = self.rows().filter(|row| is_accelerator(row, &wanted)).collect();
        if !rows.is_empty() {
            return Ok(rows.into_iter().filter_map(|row| self.of_row(row)).collect());
        }
        if let Some(sheet) = sheets::find(&self.sheets, name) {
            return Ok(vec![self.of_sheet(sheet)]);
        }
        let profiles: Vec<Candidate> = self.profiles(&wanted).collect();
        if !profiles.is_empty() {
            return Ok(profiles);
        }
        let row = self.table.find(name)?;
        let found = self.of_row(row).map(|candidate| vec![candidate]);
        found.ok_or_else(|| Error::UnknownHost { name: row.key() }.into())
    }

    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.table.rows().iter().filter(|row| !row.provider.contains(HOSTING))
    }

    fn profiles(&self, wanted: &str) -> impl Iterator<Item = Candidate> {
        let found = self.measured.iter().filter(move |(m, _)| m.name.to_lowercase().contains(wanted));
        found.map(|(machine, limits)| Candidate {
            name: match machine.kind {
                Kind::Cpu => format!("{} ({} threads)", machine.name, machine.threads),
                Kind::Accelerator => machine.name.clone(),
            },
            machine: machine.clone(),
            limits: limits.clone(),
            price: PriceUsed::unknown(),
            note: None,
        })
    }

    fn of_sheet(&self, sheet: &Sheet) -> Candidate {
        Candidate {
            name: sheet.name.clone(),
            machine: sheets::machine(sheet, &self.sheets, &self.published),
            limits: sheets::limits(&sheet.name, sheet.vram_gib),
            price: PriceUsed::unknown(),
            note: None,
        }
    }

    /// `None` where neither the table nor the instance's name says what the machine is.
    fn of_row(&self, row: &Row) -> Option<Candidate> {
        let price = PriceUsed::of_row(row, self.today);
        let (name, note) =
            (row.key(), (row.count > 1).then(|| format!("uses 1 of {} accelerators", row.count)));
        if let Some(accelerator) = &row.accelerator {
            let sheet = sheets::find(&self.sheets, accelerator)?;
            let machine = sheets::machine(sheet, &self.sheets, &self.published);
            return Some(Candidate {
                name,
                machine,
                limits: sheets::limits(&sheet.name, row.vram_gib.unwrap_or(sheet.vram_gib)),
                price,
                note,
            });
        }
        let (cores, memory_bytes) = sheets::host_of(row)?;
        let limits = Limits { cores, memory_bytes, memory_source: "memory of the instance".into() };
        Some(Candidate { machine: Machine::assumed(name.clone(), cores), name, limits, price, note })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn market() -> Market {
        let machine = Machine::assumed("Some CPU 9000", 2);
        let limits = Limits { cores: 2, memory_bytes: 1 << 30, memory_source: "test".into() };
        Market::open(vec![(machine, limits)], "2026-11-22".parse().unwrap()).unwrap()
    }

    #[test]
    fn a_row_an_accelerator_a_profile_and_all_are_found() {
        let market = market();
        let row = market.find("lambda/gpu_1x_gh200").unwrap();
        assert_eq!((row.len(), row[0].price.usd_per_hour), (1, Some(2.29)));
        let h100 = market.find("h100").unwrap();
        assert!(h100.len() > 10 && h100.iter().all(|c| c.machine.name == "H100"));
        assert!(h100.iter().any(|c| c.note.as_deref() == Some("uses 1 of 8 accelerators")));
        assert_eq!(market.find("cpu 9000").unwrap()[0].price.usd_per_hour, None);
        assert!(market.find("all").unwrap().len() > 110);
        assert!(market.find("nowhere/nothing").unwrap_err().to_string().contains("nowhere"));
    }

    #[test]
    fn a_measured_card_is_called_by_its_name_and_has_the_memory_that_its_driver_states() {
        let card = "NVIDIA H100 80GB HBM3";
        let limits = limits_of_card(card, 10 << 30).unwrap();
        assert!((9 << 30..10 << 30).contains(&limits.memory_bytes) && limits.memory_source.contains("H100"));
        assert_eq!(bytes_of_card(card).unwrap(), Some(80 << 30));
        assert_eq!(
            (bytes_of_card("NVIDIA Nobody").unwrap(), of_card("NVIDIA Nobody").unwrap()),
            (None, None)
        );
        let machine = sheets::unknown(card);
        let market = Market::open(vec![(machine, limits)], "2026-11-22".parse().unwrap()).unwrap();
        assert_eq!(market.find("80gb hbm3").unwrap()[0].name, card);
    }

    #[test]
    fn what_an_instance_has_is_not_guessed() {
        let error = market().find("crusoe/c1a (per vCPU)").unwrap_err();
        assert!(error.to_string().contains("c1a"), "{error}");
    }
}
