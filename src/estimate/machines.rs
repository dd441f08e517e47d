//! The machines that a prediction is asked for: rows of the price table, bare accelerators, profiles that were measured.

use super::error::Error;
use super::machine::{Kind, Limits, Machine};
use super::money::PriceUsed;
use super::prices::{Row, Table, is_accelerator};
use super::published::{self, Published};
use super::sheets::{self, Sheet};
use crate::config::Cost;
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
    /// Why the program does not compute on it; `None` = it does.
    pub lacks: Option<String>,
}

/// What candidates are made from.
#[derive(Debug, Clone)]
pub struct Market {
    table: Table,
    /// Spot prices hold.
    is_spot: bool,
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
    /// The shipped tables with the prices that `cost` adds, and the profiles of this machine.
    ///
    /// # Errors
    /// The file of prices cannot be read, or is not a table.
    pub fn open(cost: &Cost, measured: Vec<(Machine, Limits)>, today: Date) -> Result<Self> {
        Ok(Self {
            table: Table::with_own(cost.price_file.as_deref())?,
            is_spot: cost.is_spot,
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
            lacks: None,
        })
    }

    fn of_sheet(&self, sheet: &Sheet) -> Candidate {
        Candidate {
            name: sheet.name.clone(),
            machine: self.rates_of(sheet),
            limits: sheets::limits(&sheet.name, sheet.vram_gib),
            price: PriceUsed::unknown(),
            note: None,
            lacks: sheet.lacks(),
        }
    }

    /// As a card of this sheet was measured here, else by the sheet.
    fn rates_of(&self, sheet: &Sheet) -> Machine {
        let is_one = |machine: &Machine| {
            machine.kind == Kind::Accelerator
                && sheets::of_card(&self.sheets, &machine.name).is_some_and(|of| of.name == sheet.name)
        };
        let measured = self.measured.iter().map(|(machine, _)| machine).find(|machine| is_one(machine));
        measured.cloned().unwrap_or_else(|| sheets::machine(sheet, &self.sheets, &self.published))
    }

    /// `None` where neither the table nor the instance's name says what the machine is.
    fn of_row(&self, row: &Row) -> Option<Candidate> {
        let spot = self.is_spot.then(|| PriceUsed::of_spot(row, self.today));
        let has_no_spot = spot == Some(None);
        let price = spot.flatten().unwrap_or_else(|| PriceUsed::of_row(row, self.today));
        let notes = [
            (row.count > 1).then(|| format!("uses 1 of {} accelerators", row.count)),
            has_no_spot.then(|| "no spot price: on demand".to_owned()),
        ];
        let notes: Vec<String> = notes.into_iter().flatten().collect();
        let (name, note) = (row.key(), (!notes.is_empty()).then(|| notes.join("; ")));
        if let Some(accelerator) = &row.accelerator {
            let sheet = sheets::find(&self.sheets, accelerator)?;
            return Some(Candidate {
                name,
                machine: self.rates_of(sheet),
                limits: sheets::limits(&sheet.name, row.vram_gib.unwrap_or(sheet.vram_gib)),
                price,
                note,
                lacks: sheet.lacks(),
            });
        }
        let (cores, memory_bytes) = sheets::host_of(row)?;
        let limits = Limits { cores, memory_bytes, memory_source: "memory of the instance".into() };
        let machine = Machine::assumed(name.clone(), cores);
        Some(Candidate { machine, name, limits, price, note, lacks: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn market() -> Market {
        let machine = Machine::assumed("Some CPU 9000", 2);
        let limits = Limits { cores: 2, memory_bytes: 1 << 30, memory_source: "test".into() };
        let today = "2026-11-22".parse().unwrap();
        Market::open(&Cost::default(), vec![(machine, limits)], today).unwrap()
    }

    #[test]
    fn what_the_kernels_do_not_run_on_says_so() {
        let market = market();
        let lacks = |name: &str| market.find(name).unwrap()[0].lacks.clone().unwrap_or_default();
        assert!(lacks("t4").contains("7.5") && lacks("mi300x").contains("CUDA"));
        assert_eq!((lacks("h100"), lacks("cpu 9000")), (String::new(), String::new()));
    }

    #[test]
    fn a_card_that_was_measured_stands_for_its_kind_with_its_own_rates() {
        let card = "NVIDIA H100 80GB HBM3";
        let (machine, limits) = (sheets::unknown(card), limits_of_card(card, 80 << 30).unwrap());
        let today = "2026-11-22".parse().unwrap();
        let market = Market::open(&Cost::default(), vec![(machine, limits)], today).unwrap();
        assert!(market.find("h100").unwrap().iter().all(|c| c.machine.name == card));
        assert!(market.find("h200").unwrap().iter().all(|c| c.machine.name == "H200"));
    }

    #[test]
    fn prices_of_the_users_own_and_spot_prices_hold_for_every_row() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "provider,instance,accelerator,count,vram_gib,usd_per_hour_on_demand,usd_per_hour_spot,source,as_of\n\
             ours,h100,H100,1,80,0.5,0.2,here,2026-11-22\nours,a100,A100-80GB,1,80,0.4,,here,2026-11-22\n",
        )
        .unwrap();
        let cost = Cost { price_file: Some(file.path().into()), is_spot: true, ..Cost::default() };
        let market = Market::open(&cost, Vec::new(), "2026-11-22".parse().unwrap()).unwrap();
        let found = |name: &str| market.find(name).unwrap().remove(0);
        assert_eq!(found("ours/h100").price.usd_per_hour, Some(0.2));
        let on_demand = found("ours/a100");
        assert_eq!(on_demand.price.usd_per_hour, Some(0.4));
        assert_eq!(on_demand.note.as_deref(), Some("no spot price: on demand"));
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
        let today = "2026-11-22".parse().unwrap();
        let market = Market::open(&Cost::default(), vec![(machine, limits)], today).unwrap();
        assert_eq!(market.find("80gb hbm3").unwrap()[0].name, card);
    }

    #[test]
    fn what_an_instance_has_is_not_guessed() {
        let error = market().find("crusoe/c1a (per vCPU)").unwrap_err();
        assert!(error.to_string().contains("c1a"), "{error}");
    }
}
