//! Carbon of electricity: energy times the intensity of a region's grid, a yearly mean of production. Leaves out what
//! it took to make the machine, and what a data centre spends on cooling.

use super::csv;
use super::error::Error;
use crate::config::Grid;
use crate::error::Result;
use crate::units::JOULES_PER_KWH;
use serde::{Deserialize, Serialize};

const SHIPPED: &str = include_str!("grid.csv");
/// Where every row of the shipped table was read.
const SOURCE: &str = "Google Cloud, region-carbon-info data/yearly/2025.csv";
/// The year that its figures are of.
const AS_OF: &str = "2025";

/// A grid's intensity with its origin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intensity {
    /// The region, or where the figure was stated.
    pub region: String,
    /// g `CO₂e` of a kWh.
    pub g_per_kwh: f64,
    /// Where it was read.
    pub source: String,
    /// The year it is of.
    pub as_of: Option<String>,
}

/// Carbon of a run; always modelled, for the intensity is a year's mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Carbon {
    /// g `CO₂e`.
    pub grams: f64,
    /// The grid that it follows from.
    #[serde(flatten)]
    pub grid: Intensity,
}

struct Row {
    region: String,
    place: String,
    also: Vec<String>,
    g_per_kwh: f64,
}

/// The intensity that `[cost]` states; `None` where it states none.
///
/// # Errors
/// Usage: no such region, with the nearest.
pub fn intensity(grid: &Grid) -> Result<Option<Intensity>> {
    let region = match grid {
        Grid::Unknown => return Ok(None),
        Grid::PerKwh(g_per_kwh) => {
            return Ok(Some(Intensity {
                region: "stated".into(),
                g_per_kwh: *g_per_kwh,
                source: "grid_g_per_kwh in the config".into(),
                as_of: None,
            }));
        }
        Grid::Region(region) => region,
    };
    let rows = shipped()?;
    let wanted = region.trim().to_lowercase();
    let is_called =
        |row: &Row| row.region == wanted || row.place.to_lowercase() == wanted || row.also.contains(&wanted);
    if let Some(row) = rows.iter().find(|row| is_called(row)) {
        return Ok(Some(Intensity {
            region: format!("{} ({})", row.region, row.place),
            g_per_kwh: row.g_per_kwh,
            source: SOURCE.into(),
            as_of: Some(AS_OF.into()),
        }));
    }
    let names = rows.iter().flat_map(|row| {
        [row.region.clone(), row.place.to_lowercase()].into_iter().chain(row.also.iter().cloned())
    });
    let mut scored: Vec<(f64, String)> =
        names.map(|name| (strsim::jaro_winkler(&name, &wanted), name)).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let nearest = scored.into_iter().take(3).map(|(_, name)| name).collect();
    Err(Error::UnknownRegion { name: region.clone(), nearest }.into())
}

impl Intensity {
    /// Carbon of an amount of energy, J.
    pub fn of(&self, energy_j: f64) -> Carbon {
        Carbon { grams: energy_j / JOULES_PER_KWH * self.g_per_kwh, grid: self.clone() }
    }
}

fn shipped() -> Result<Vec<Row>, Error> {
    csv::read("grid table", SHIPPED, |row| {
        Ok(Row {
            region: row.text("region")?.into(),
            place: row.text("place")?.into(),
            also: row.text("also")?.split_whitespace().map(str::to_owned).collect(),
            g_per_kwh: row.needed("g_per_kwh")?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn region(name: &str) -> Result<Option<Intensity>> {
        intensity(&Grid::Region(name.into()))
    }

    #[test]
    fn a_region_goes_by_its_names_at_three_providers_and_by_its_place() {
        for name in ["europe-west3", "Frankfurt", "eu-central-1", "GermanyWestCentral"] {
            let found = region(name).unwrap().unwrap();
            assert!((found.g_per_kwh - 275.81).abs() < 1e-9, "{name}");
            assert_eq!(found.as_of.as_deref(), Some("2025"));
        }
    }

    #[test]
    fn a_kilowatt_hour_weighs_what_the_table_says() {
        let carbon = region("Paris").unwrap().unwrap().of(3.6e6);
        assert!((carbon.grams - 15.83).abs() < 1e-9);
        let own = intensity(&Grid::PerKwh(100.0)).unwrap().unwrap().of(1.8e6);
        assert!((own.grams - 50.0).abs() < 1e-9 && own.grid.source.contains("config"));
    }

    #[test]
    fn an_unknown_region_names_the_nearest_and_none_is_none() {
        let error = region("eu-central-9").unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
        assert!(error.to_string().contains("`eu-central-1`"), "{error}");
        assert_eq!(intensity(&Grid::Unknown).unwrap(), None);
    }

    #[test]
    fn every_row_is_sound_and_no_name_stands_twice() {
        let rows = shipped().unwrap();
        let mut names: Vec<String> =
            rows.iter().flat_map(|r| r.also.iter().chain([&r.region, &r.place])).cloned().collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(rows.iter().all(|r| (1.0..1000.0).contains(&r.g_per_kwh)));
    }
}
