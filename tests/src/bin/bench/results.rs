//! What was measured: the median of its samples, their spread, and the goal.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

/// One line of the results.
#[derive(Debug, Serialize)]
pub struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    lower_is_better: bool,
    goal: Option<f64>,
    /// Smallest and largest of what the median was taken from.
    spread: Option<(f64, f64)>,
}

impl Figure {
    fn met(&self) -> Option<bool> {
        self.goal.map(|g| if self.lower_is_better { self.value <= g } else { self.value >= g })
    }
}

/// All of them, in the order in which they were taken.
#[derive(Default)]
pub struct Results(Vec<Figure>);

impl Results {
    /// Adds the median of samples, and prints it.
    pub fn add(
        &mut self,
        name: &str,
        samples: &[f64],
        unit: &'static str,
        lower_is_better: bool,
        goal: Option<f64>,
    ) {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (Some(low), Some(high)) = (sorted.first(), sorted.last()) else { return };
        let spread = (sorted.len() > 1).then_some((*low, *high));
        self.0.push(Figure {
            name: name.into(),
            value: sorted[sorted.len() / 2],
            unit,
            lower_is_better,
            goal,
            spread,
        });
        println!("  {}", row(&self.0[self.0.len() - 1]));
    }

    /// Writes them for programs and prints them for people.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir)?;
        let file = dir.join("results.json");
        std::fs::write(&file, serde_json::to_vec_pretty(&self.0)?)?;
        println!("\n{:<44} {:>12} {:<8} {:>12}  spread", "figure", "median", "unit", "goal");
        for f in &self.0 {
            println!("{}", row(f));
        }
        println!("\nwritten to {}", file.display());
        Ok(())
    }
}

fn row(f: &Figure) -> String {
    let bound = if f.lower_is_better { "<=" } else { ">=" };
    let goal = f.goal.map_or(String::new(), |g| format!("{bound} {g}"));
    let spread = f.spread.map_or(String::new(), |(a, b)| format!("{a:.2} to {b:.2}"));
    let word = match f.met() {
        None | Some(true) => "",
        Some(false) => "  MISSED",
    };
    format!("{:<44} {:>12.2} {:<8} {goal:>12}  {spread}{word}", f.name, f.value, f.unit)
}
