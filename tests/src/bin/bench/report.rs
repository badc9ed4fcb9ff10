//! What is measured, for people: the table of docs/performance.md and its two charts, made of docs/performance.json, which keeps
//! what each part said when it was run last. Written where `--docs` is asked for.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::prelude::*;

use crate::results::Figure;

/// Between these the page is made.
const BEGIN: &str = "<!-- made by `just bench --docs` from performance.json -->";
const END: &str = "<!-- end -->";

/// Takes new figures over into what is kept, and writes page and charts.
pub fn write(docs: &Path, new: &[Figure]) -> Result<()> {
    let kept = docs.join("performance.json");
    let mut all: Vec<Figure> = match std::fs::read(&kept) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| kept.display().to_string())?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(e).context(kept.display().to_string()),
    };
    // Where a part was run again its figures stand where they stood; what it has no more goes.
    for part in parts(new) {
        let at = all.iter().position(|f| f.part == part).unwrap_or(all.len());
        all.retain(|f| f.part != part);
        let at = at.min(all.len());
        all.splice(at..at, new.iter().filter(|f| f.part == part).cloned());
    }
    std::fs::write(&kept, serde_json::to_string_pretty(&all)? + "\n")?;
    ratios(&docs.join("performance-ratios.svg"), &all)?;
    growth(&docs.join("performance-growth.svg"), &all)?;
    let page = docs.join("performance.md");
    let text = std::fs::read_to_string(&page)?;
    let (head, rest) = text.split_once(BEGIN).context("docs/performance.md has no place for the table")?;
    let (_, tail) = rest.split_once(END).context("docs/performance.md has no end of the table")?;
    let charts = "![Ratios to bare tools](performance-ratios.svg)\n\n![Growth](performance-growth.svg)\n";
    std::fs::write(&page, format!("{head}{BEGIN}\n\n{charts}\n{}\n{END}{tail}", table(&all)))?;
    println!("written to {}", page.display());
    Ok(())
}

fn parts(figures: &[Figure]) -> Vec<String> {
    let mut parts: Vec<String> = figures.iter().map(|f| f.part.clone()).collect();
    parts.dedup();
    parts
}

fn table(all: &[Figure]) -> String {
    let mut text =
        String::from("| figure | median | goal | smallest and largest |\n| --- | --- | --- | --- |\n");
    for f in all {
        let [value, goal, spread] = f.cells();
        let missed = if f.met() == Some(false) { " **missed**" } else { "" };
        text.push_str(&format!("| {} | {value}{missed} | {goal} | {spread} |\n", f.name));
    }
    text
}

/// Each ratio with its spread and its goal, on a logarithmic scale: left of 1 is better where less is.
fn ratios(file: &Path, all: &[Figure]) -> Result<()> {
    let of: Vec<&Figure> = all.iter().filter(|f| f.is_ratio()).collect();
    if of.is_empty() {
        return Ok(());
    }
    let (width, line) = (960, 22);
    let root = SVGBackend::new(file, (width, 60 + line * of.len() as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let rows = 0.0..of.len() as f64;
    let mut chart = ChartBuilder::on(&root)
        .caption("Ratios: median, spread, goal", ("sans-serif", 16))
        .margin(8)
        .margin_left(420)
        .x_label_area_size(24)
        .build_cartesian_2d((0.01..100.0).log_scale(), rows)?;
    chart.configure_mesh().disable_y_mesh().disable_y_axis().x_label_formatter(&|x| format!("{x}")).draw()?;
    for (n, f) in of.iter().enumerate() {
        let y = of.len() as f64 - n as f64 - 0.5;
        let (low, high) = f.spread.unwrap_or((f.value, f.value));
        let colour = match f.met() {
            Some(true) => RGBColor(0x2e, 0x7d, 0x32),
            Some(false) => RGBColor(0xc6, 0x28, 0x28),
            None => RGBColor(0x54, 0x6e, 0x7a),
        };
        let clamp = |x: f64| x.clamp(0.011, 99.0);
        chart.draw_series(LineSeries::new([(clamp(low), y), (clamp(high), y)], colour.stroke_width(2)))?;
        chart.draw_series([Circle::new((clamp(f.value), y), 4, colour.filled())])?;
        if let Some(goal) = f.goal.map(clamp) {
            chart.draw_series(LineSeries::new([(goal, y - 0.4), (goal, y + 0.4)], BLACK.stroke_width(1)))?;
        }
        let at = (8, 34 + (n as i32) * line as i32);
        root.draw(&Text::new(f.name.clone(), at, ("sans-serif", 12)))?;
    }
    root.present()?;
    Ok(())
}

/// Milliseconds over the number of volumes, both logarithmic: a straight line rises by its exponent.
fn growth(file: &Path, all: &[Figure]) -> Result<()> {
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for f in all {
        let Some((what, size)) = f.growth() else { continue };
        match lines.iter_mut().find(|(name, _)| *name == what) {
            Some((_, points)) => points.push((size, f.value)),
            None => lines.push((what, vec![(size, f.value)])),
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    let root = SVGBackend::new(file, (960, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Growth with the number of volumes (simulated daemon)", ("sans-serif", 16))
        .margin(12)
        .margin_right(36)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d((1.0..10_000.0).log_scale(), (0.01..10_000.0).log_scale())?;
    let plain = |x: &f64| format!("{x}");
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("volumes")
        .y_desc("ms; MB for memory")
        .x_label_formatter(&plain)
        .y_label_formatter(&plain)
        .draw()?;
    for (n, (name, points)) in lines.iter().enumerate() {
        let colour = Palette99::pick(n).to_rgba();
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)).point_size(3))?
            .label(name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().position(SeriesLabelPosition::UpperLeft).border_style(BLACK).draw()?;
    root.present()?;
    Ok(())
}
