//! Charts as SVG that stretches with the page: the plot has no text, so that labels stay readable at any width. Holds
//! at most [`MAX_POINTS`] points a series, with every peak kept.

use super::super::words::{seconds, thousands};
use super::markup::esc;
use std::fmt::Write;

/// Beyond this a line on a page shows no more.
pub(super) const MAX_POINTS: usize = 600;

/// A line, or dots joined by one.
pub(super) struct Series {
    /// Its name in the legend.
    pub label: &'static str,
    /// Its class in the style sheet.
    pub class: &'static str,
    /// (place on the axis, value); what is not finite is left out.
    pub points: Vec<(f64, f64)>,
    /// Each point is marked.
    pub dots: bool,
}

/// The axis from left to right; it begins at 0.
#[derive(Debug, Clone)]
pub(super) struct Across {
    /// Its right end.
    pub last: f64,
    /// Below it, from left to right.
    pub labels: Vec<String>,
}

impl Across {
    /// Optimizer steps.
    pub(super) fn steps(last: u64) -> Self {
        let noun = if last == 1 { "step" } else { "steps" };
        let middle = (last.is_multiple_of(2) && last > 2).then(|| (last / 2).to_string());
        let labels = [Some("0".to_owned()), middle, Some(format!("{last} {noun}"))];
        Self { last: last as f64, labels: labels.into_iter().flatten().collect() }
    }

    /// Seconds of the run.
    pub(super) fn seconds(last: f64) -> Self {
        Self { last, labels: ["0".to_owned(), seconds(last / 2.0), seconds(last)].into() }
    }

    /// The labels below a plot.
    pub(super) fn labelled(&self) -> String {
        let mut out = "<div class=\"x\" aria-hidden=\"true\">".to_owned();
        for label in &self.labels {
            let _ = write!(out, "<span>{}</span>", esc(label));
        }
        out + "</div>"
    }
}

/// One plot over the run.
pub(super) struct Chart {
    /// What is shown, with its unit.
    pub title: String,
    /// The lines.
    pub series: Vec<Series>,
    /// Below the lines, on top of each other from the axis up: what makes a whole. Their points lie at the same places.
    pub stack: Vec<Series>,
    /// The value axis begins at 0.
    pub from_zero: bool,
    /// A level to compare with: its name and value.
    pub level: Option<(&'static str, f64)>,
    /// The axis below.
    pub across: Across,
    /// Takes the whole width of the page.
    pub wide: bool,
}

impl Chart {
    /// The figure; words where there is nothing to draw.
    pub(super) fn svg(mut self) -> String {
        for series in self.series.iter_mut().chain(&mut self.stack) {
            series.points.retain(|(x, y)| x.is_finite() && y.is_finite());
        }
        self.series.retain(|s| !s.points.is_empty());
        self.stack.retain(|s| s.points.iter().any(|(_, y)| *y > 0.0));
        pile(&mut self.stack);
        let class = if self.wide { "chart wide" } else { "chart" };
        let mut out = format!("<figure class=\"{class}\"><figcaption>{}", esc(&self.title));
        if self.series.is_empty() {
            out += "</figcaption><p class=\"none\">not measured</p></figure>\n";
            return out;
        }
        self.legend(&mut out);
        out += "</figcaption>";
        let axis = self.axis();
        out += "<div class=\"plot\"><div class=\"y\" aria-hidden=\"true\">";
        for tick in axis.ticks.iter().rev() {
            let _ = write!(out, "<span>{tick}</span>");
        }
        let _ = write!(
            out,
            "</div><svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">",
            esc(&self.title)
        );
        let gaps = axis.ticks.len().saturating_sub(1).max(1);
        for line in 0..=gaps {
            let y = 1000.0 * line as f64 / gaps as f64;
            let _ = write!(out, "<path class=\"grid\" d=\"M0 {y:.1}H1000\"/>");
        }
        // The highest first: the next covers all of it but its own share.
        for series in self.stack.iter().rev() {
            self.area(series, &axis, &mut out);
        }
        if let Some((_, level)) = self.level {
            let _ = write!(out, "<path class=\"level\" d=\"M0 {:.1}H1000\"/>", axis.y(level));
        }
        for series in &self.series {
            self.line(series, &axis, &mut out);
        }
        out += "</svg>";
        out += &self.across.labelled();
        out += "</div></figure>\n";
        out
    }

    /// One line needs no legend; its title names it.
    fn legend(&self, out: &mut String) {
        if self.series.len() < 2 && self.level.is_none() && self.stack.is_empty() {
            return;
        }
        *out += "<span class=\"legend\">";
        for series in self.stack.iter().chain(&self.series) {
            let _ = write!(out, "<i class=\"key {}\"></i>{} ", series.class, series.label);
        }
        if let Some((label, _)) = self.level {
            let _ = write!(out, "<i class=\"key dash\"></i>{label}");
        }
        *out += "</span>";
    }

    /// Where points lie in the plot, 0 … 1000 both ways.
    fn places(&self, points: &[(f64, f64)], axis: &Axis) -> Vec<(f64, f64)> {
        let last = if self.across.last > 0.0 { self.across.last } else { 1.0 };
        points.iter().map(|(x, y)| (1000.0 * (x / last).clamp(0.0, 1.0), axis.y(*y))).collect()
    }

    /// Everything from the axis up to a line.
    fn area(&self, series: &Series, axis: &Axis, out: &mut String) {
        let points = self.places(&series.points, axis);
        let Some(((first, _), (last, _))) = points.first().zip(points.last()) else { return };
        let _ = write!(out, "<path class=\"area {}\" d=\"M{first:.1} 1000", series.class);
        for (at, (x, y)) in points.iter().enumerate() {
            let beside = [at.checked_sub(1), at.checked_add(1)].map(|at| points.get(at?));
            // A level stretch is drawn by its ends.
            if !beside.iter().all(|other| other.is_some_and(|(_, other)| (other - y).abs() < 0.05)) {
                let _ = write!(out, "L{x:.1} {y:.1}");
            }
        }
        let _ = write!(out, "L{last:.1} 1000Z\"/>");
    }

    fn line(&self, series: &Series, axis: &Axis, out: &mut String) {
        let points = self.places(&thin(&series.points), axis);
        let _ = write!(out, "<path class=\"{}\" d=\"", series.class);
        for (at, (x, y)) in points.iter().enumerate() {
            let _ = write!(out, "{}{x:.1} {y:.1}", if at == 0 { 'M' } else { 'L' });
        }
        *out += "\"/>";
        if series.dots || points.len() == 1 {
            // A line of no length with round ends is a dot that no stretching turns into an ellipse.
            let _ = write!(out, "<path class=\"{} dots\" d=\"", series.class);
            for (x, y) in &points {
                let _ = write!(out, "M{x:.1} {y:.1}h0");
            }
            *out += "\"/>";
        }
    }

    fn axis(&self) -> Axis {
        let values = || {
            self.series
                .iter()
                .chain(&self.stack)
                .flat_map(|s| s.points.iter().map(|(_, y)| *y))
                .chain(self.level.map(|(_, level)| level))
        };
        let start = if self.from_zero { 0.0 } else { f64::INFINITY };
        let low = values().fold(start, f64::min);
        let high = values().fold(f64::NEG_INFINITY, f64::max);
        Axis::over(low, high)
    }
}

/// Adds to every series those below it.
fn pile(stack: &mut [Series]) {
    for upper in 1..stack.len() {
        let (below, above) = stack.split_at_mut(upper);
        let (Some(lower), Some(series)) = (below.last(), above.first_mut()) else { continue };
        for ((_, y), (_, lower)) in series.points.iter_mut().zip(&lower.points) {
            *y += lower;
        }
    }
}

/// The value axis: round ends, evenly spaced ticks.
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<String>,
}

impl Axis {
    fn over(low: f64, high: f64) -> Self {
        // One value alone still needs a height.
        let pad = if high - low > 0.0 { 0.0 } else { (low.abs() * 0.1).max(1e-9) };
        let step = round_step((high + pad - low + pad) / 4.0);
        let from = ((low - pad) / step + 1e-9).floor();
        let gaps = ((high + pad) / step - from - 1e-9).ceil().clamp(1.0, 12.0);
        let digits = decimals(step);
        let mut ticks = Vec::new();
        let mut at = 0.0;
        while at <= gaps {
            let value = (from + at) * step + 0.0;
            ticks.push(if digits == 0 && value >= 1000.0 {
                thousands(value)
            } else {
                format!("{value:.digits$}")
            });
            at += 1.0;
        }
        Self { low: from * step, high: (from + gaps) * step, ticks }
    }

    /// From the top, 0 … 1000.
    fn y(&self, value: f64) -> f64 {
        1000.0 * (1.0 - (value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

/// 1, 2 or 5 times a power of ten, not below `rough`.
fn round_step(rough: f64) -> f64 {
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= rough * 0.999_999);
    step.filter(|s| s.is_finite() && *s > 0.0).unwrap_or(1.0)
}

fn decimals(step: f64) -> usize {
    let whole = |digits: &usize| {
        let scaled = step * 10_f64.powf(*digits as f64);
        (scaled - scaled.round()).abs() < 1e-6 * scaled
    };
    (0..9).find(whole).unwrap_or(9)
}

/// At most [`MAX_POINTS`] points: first, last, and the lowest and highest of each stretch, in their order.
pub(super) fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(MAX_POINTS / 2 - 1);
    let mut kept = Vec::with_capacity(MAX_POINTS);
    kept.extend(points.first());
    for part in points.chunks(stretch) {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let ends = part.iter().min_by(by_value).zip(part.iter().max_by(by_value));
        if let Some((low, high)) = ends {
            let (earlier, later) = if low.0 <= high.0 { (low, high) } else { (high, low) };
            kept.extend([*earlier, *later]);
        }
    }
    kept.extend(points.last());
    kept.dedup();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        Chart {
            title: "Loss".into(),
            series: vec![Series { label: "training", class: "measured", points, dots: false }],
            stack: Vec::new(),
            from_zero: false,
            level: None,
            across: Across::steps(400),
            wide: false,
        }
    }

    #[test]
    fn thinning_keeps_the_ends_and_every_spike() {
        let mut points: Vec<_> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        points[4321].1 = 99.0;
        points[7777].1 = -99.0;
        let kept = thin(&points);
        assert!(kept.len() <= MAX_POINTS, "{}", kept.len());
        assert_eq!(kept.first(), points.first());
        assert_eq!(kept.last(), points.last());
        assert!(kept.contains(&(4321.0, 99.0)) && kept.contains(&(7777.0, -99.0)));
        assert!(kept.is_sorted_by(|a, b| a.0 <= b.0));
    }

    #[test]
    fn nothing_finite_is_words_instead_of_a_plot() {
        for points in [vec![], vec![(1.0, f64::NAN), (2.0, f64::INFINITY)]] {
            let svg = chart(points).svg();
            assert!(svg.contains("not measured") && !svg.contains("<svg"), "{svg}");
        }
    }

    #[test]
    fn parts_lie_on_top_of_each_other_under_the_whole() {
        let part = |label, y: f64| Series {
            label,
            class: "m0",
            points: vec![(0.0, y), (400.0, 2.0 * y)],
            dots: false,
        };
        let mut whole = chart(vec![(0.0, 4.0), (400.0, 10.0)]);
        whole.from_zero = true;
        whole.stack = vec![part("base weights", 1.0), part("nothing", 0.0), part("moments", 3.0)];
        let svg = whole.svg();
        let areas: Vec<&str> = svg.split("<path class=\"area m0\" d=\"").skip(1).collect();
        // 4 and 8 of 10 in all, drawn first; then 1 and 2 of them over it.
        assert!(areas[0].starts_with("M0.0 1000L0.0 600.0L1000.0 200.0L1000.0 1000Z"), "{}", areas[0]);
        assert!(areas[1].starts_with("M0.0 1000L0.0 900.0L1000.0 800.0L1000.0 1000Z"), "{}", areas[1]);
        assert_eq!(areas.len(), 2);
        assert!(svg.contains("base weights") && !svg.contains("nothing"), "{svg}");
    }

    #[test]
    fn one_point_is_a_dot_on_a_readable_axis() {
        let svg = chart(vec![(1.0, 2.0)]).svg();
        assert!(svg.contains("h0") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        let ticks = |low, high| Axis::over(low, high).ticks;
        assert_eq!(ticks(0.0, 10.0), ["0", "5", "10"]);
        assert_eq!(ticks(1.13, 2.41), ["1.0", "1.5", "2.0", "2.5"]);
        assert_eq!(ticks(0.0, 0.0009), ["0.0000", "0.0005", "0.0010"]);
        for (low, high) in [(0.0, 1e-12), (-3.0, 4e9), (5.0, 5.0), (0.0, 0.0)] {
            let axis = Axis::over(low, high);
            assert!(axis.low <= low && axis.high >= high && axis.high > axis.low);
            assert!((2..=13).contains(&axis.ticks.len()), "{:?}", axis.ticks);
        }
    }
}
