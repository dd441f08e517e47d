//! `[cost]`: which price holds, what is paid for, and which of its keys have no meaning without others.

use super::error::Problems;
use super::section::Section;
use super::{Cost, Error, Grid, Price};
use std::path::PathBuf;

pub(super) fn meant(section: &mut Section, problems: &mut Problems) -> Cost {
    for (a, b) in [("machine", "usd_per_hour"), ("machine", "hardware_usd"), ("usd_per_hour", "hardware_usd")]
    {
        section.exclude(a, b, "each is a price of an hour", problems);
    }
    section.exclude("machine", "usd_per_kwh", "what is rented has its electricity in the price", problems);
    section.exclude("region", "grid_g_per_kwh", "each is the carbon of the grid", problems);
    let is_spot = section.flag("spot") == Some(true);
    let needs = [
        (is_spot, "spot", "machine", "`machine`, the row whose spot price holds"),
        (true, "price_file", "machine", "`machine`, a row of it"),
        (true, "hardware_usd", "hardware_life_hours", "`hardware_life_hours`"),
        (true, "hardware_life_hours", "hardware_usd", "`hardware_usd`"),
    ];
    for (_, key, other, needs) in needs.into_iter().filter(|(holds, ..)| *holds) {
        need(section, key, section.any(other).is_some(), needs, problems);
    }
    let from_boot = section.text("bill_from") == Some("boot");
    need(section, "release_after_s", from_boot, "`bill_from = \"boot\"`", problems);
    Cost {
        price: price(section),
        price_file: section.text("price_file").map(PathBuf::from),
        is_spot,
        usd_per_kwh: section.real("usd_per_kwh"),
        billing_granularity_s: section.count("billing_granularity_s"),
        minimum_s: section.count("minimum_s"),
        from_boot,
        release_after_s: section.count("release_after_s"),
        grid: match (section.text("region"), section.real("grid_g_per_kwh")) {
            (_, Some(grams)) => Grid::PerKwh(grams),
            (Some(region), None) => Grid::Region(region.to_owned()),
            (None, None) => Grid::Unknown,
        },
    }
}

fn price(section: &Section) -> Price {
    let owned = section.real("hardware_usd").zip(section.real("hardware_life_hours"));
    match (section.text("machine"), section.real("usd_per_hour"), owned) {
        (Some(machine), ..) => Price::Machine(machine.to_owned()),
        (None, Some(usd), _) => Price::PerHour(usd),
        (None, None, Some((hardware_usd, life_hours))) => Price::Owned { hardware_usd, life_hours },
        (None, None, None) => Price::Unknown,
    }
}

fn need(section: &Section, key: &str, is_there: bool, needs: &'static str, problems: &mut Problems) {
    if let Some(setting) = section.written(key).filter(|_| !is_there) {
        problems.push(&setting.node.place, Error::Needs { key: setting.written.clone(), needs });
    }
}
