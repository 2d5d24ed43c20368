//! The straight line that figures grow by, and how far they are from it.

use crate::table::{Cell, Table, shown_nanos};

/// A model of a figure: so much whatever the size, and so much for each unit of the size.
#[derive(Clone, Copy, Debug)]
pub struct Fit {
    fixed: f64,
    pub each: f64,
    /// How far the figure that is farthest from the line is from it, as a part of the figure.
    off: f64,
}

/// Points without which a line says nothing: any two are on one.
const FEWEST_POINTS: usize = 3;

/// The line nearest to points, sizes first. The squares are those of distances as a part of the figure, because figures
/// differ by orders of magnitude and scatter in proportion: otherwise the largest state alone would make the line. A fixed
/// part below zero is none.
pub fn fit(points: &[(f64, f64)]) -> Option<Fit> {
    if points.len() < FEWEST_POINTS || points.iter().any(|(_, figure)| *figure <= 0.0) {
        return None;
    }
    let sum = |of: fn(f64, f64) -> f64| points.iter().map(|(x, y)| of(*x, *y) / (y * y)).sum::<f64>();
    let (ones, xs, ys) = (sum(|_, _| 1.0), sum(|x, _| x), sum(|_, y| y));
    let (squares, products) = (sum(|x, _| x * x), sum(|x, y| x * y));
    let spread = ones * squares - xs * xs;
    // All of one size.
    if spread <= 1e-9 * ones * squares {
        return None;
    }
    let (mut fixed, mut each) =
        ((squares * ys - xs * products) / spread, (ones * products - xs * ys) / spread);
    if fixed < 0.0 {
        (fixed, each) = (0.0, products / squares);
    }
    let off = points.iter().map(|(x, y)| ((fixed + each * x) / y - 1.0).abs()).fold(0.0, f64::max);
    Some(Fit { fixed, each, off })
}

impl Fit {
    /// In words: what grows, what with, and the units of it.
    fn says(&self, name: &str, unit: &str, shown: fn(f64) -> String) -> String {
        let Self { fixed, each, off } = *self;
        let fixed = if fixed == 0.0 { String::new() } else { format!("{} and ", shown(fixed)) };
        format!("{name}: {fixed}{} a {unit}, within {:.0} %", shown(each), off * 100.0)
    }
}

/// What every note of a model leaves out.
pub const NOTE: &str = "models: so much whatever the size and so much a unit, by least squares of distances as parts of the figures; 'within' says how far the farthest row is from it";

/// Notes the model of points. Returns it with the name of what grows, or the name alone where no line can be had.
pub fn model(
    table: &mut Table,
    name: &str,
    unit: &str,
    shown: fn(f64) -> String,
    points: &[(f64, f64)],
) -> String {
    let Some(fit) = fit(points) else { return name.to_owned() };
    let says = fit.says(name, unit, shown);
    table.note(format!("model of {says}"));
    says
}

/// Nanoseconds, also parts of one.
pub fn time(nanos: f64) -> String {
    match nanos {
        n if n.abs() < 0.005 => "0 ns".into(),
        n if n < 0.0 => format!("-{}", time(-n)),
        n if n < 9.995 => format!("{n:.2} ns"),
        n => shown_nanos(n),
    }
}

/// Bytes, also parts of one.
pub fn bytes(bytes: f64) -> String {
    if bytes < 1000.0 { format!("{bytes:.1} B") } else { Cell::Bytes(bytes as u64).shown() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_on_a_line_have_that_line() {
        let points = [1e6, 2e6, 16e6].map(|keys| (keys, 18e6 + 240.0 * keys));
        let fit = fit(&points).unwrap();
        assert!((fit.fixed / 18e6 - 1.0).abs() < 1e-6 && (fit.each / 240.0 - 1.0).abs() < 1e-6, "{fit:?}");
        assert_eq!(fit.says("opening", "key", time), "opening: 18.00 ms and 240 ns a key, within 0 %");
    }

    #[test]
    fn a_model_is_noted_and_named_where_there_is_one() {
        let mut table = Table::new("id", "title", &["state"]);
        assert_eq!(model(&mut table, "opening", "key", time, &[(1.0, 5.0)]), "opening");
        let points = [(1.0, 20.0), (2.0, 30.0), (3.0, 40.0)];
        let says = "opening: 10 ns and 10 ns a key, within 0 %";
        assert_eq!(model(&mut table, "opening", "key", time, &points), says);
    }

    #[test]
    fn small_figures_count_as_much_as_large_ones() {
        // The largest is 20 % above 10 + x: absolute distances would have it on the line.
        let fit = fit(&[(0.0, 10.0), (10.0, 20.0), (100.0, 110.0), (10_000.0, 12_012.0)]).unwrap();
        assert!((0.05..0.2).contains(&fit.off), "{fit:?}");
        assert!((9.0..11.0).contains(&fit.fixed), "{fit:?}");
    }

    #[test]
    fn nothing_is_fixed_below_zero() {
        let fit = fit(&[(1.0, 1.0), (2.0, 3.0), (3.0, 6.0)]).unwrap();
        assert!(fit.fixed == 0.0 && fit.each > 1.0 && fit.off > 0.1, "{fit:?}");
        assert_eq!(fit.says("opening", "key", time), "opening: 1.28 ns a key, within 36 %");
    }

    #[test]
    fn too_little_has_no_line() {
        assert!(fit(&[(1.0, 1.0), (2.0, 2.0)]).is_none());
        assert!(fit(&[(2.0, 1.0); 3]).is_none());
        assert!(fit(&[(1.0, 1.0), (2.0, 0.0), (3.0, 3.0)]).is_none());
    }

    #[test]
    fn parts_of_a_nanosecond_are_shown() {
        let shown = [0.314, -0.5, -0.001, 42.0, 2.5e6].map(time);
        assert_eq!(shown, ["0.31 ns", "-0.50 ns", "0 ns", "42 ns", "2.50 ms"]);
        assert_eq!([177.64, 9.4e6].map(bytes), ["177.6 B", "9.4 MB"]);
    }
}
