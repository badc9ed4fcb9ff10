//! What was measured: the median of its samples, their spread, and the goal.

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// One line of the results.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    /// Its part of the benchmark, a colon, and what it is.
    pub name: String,
    /// The part of the benchmark that it belongs to: figures of one are taken together.
    pub part: String,
    /// The median.
    pub value: f64,
    unit: String,
    lower_is_better: bool,
    /// What it should be at most, or at least.
    pub goal: Option<f64>,
    /// Smallest and largest of what the median was taken from.
    pub spread: Option<(f64, f64)>,
}

impl Figure {
    /// Whether its goal is met, if it has one.
    pub fn met(&self) -> Option<bool> {
        self.goal.map(|g| if self.lower_is_better { self.value <= g } else { self.value >= g })
    }

    /// Whether it compares two things that were measured side by side.
    pub fn is_ratio(&self) -> bool {
        self.unit == "ratio" || self.unit == "times"
    }

    /// What grows, and at how many volumes this was.
    pub fn growth(&self) -> Option<(String, f64)> {
        let (what, size) = self.name.strip_prefix("scale: ")?.split_once(" at ")?;
        Some((what.to_owned(), size.strip_suffix(" volumes")?.parse().ok()?))
    }

    /// Median, goal and spread, as they are shown.
    pub fn cells(&self) -> [String; 3] {
        let bound = if self.lower_is_better { "at most" } else { "at least" };
        let with_unit = |x: f64| match self.unit.as_str() {
            "ratio" | "" => format!("{x:.2}"),
            unit => format!("{x:.2} {unit}"),
        };
        [
            with_unit(self.value),
            self.goal.map_or(String::new(), |g| format!("{bound} {g}")),
            self.spread.map_or("one sample".into(), |(a, b)| format!("{a:.2} to {b:.2}")),
        ]
    }
}

/// All of them, in the order in which they were taken.
#[derive(Default)]
pub struct Results(Vec<Figure>, String);

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
            part: self.1.clone(),
            value: sorted[sorted.len() / 2],
            unit: unit.into(),
            lower_is_better,
            goal,
            spread,
        });
        println!("  {}", row(&self.0[self.0.len() - 1]));
    }

    /// What is added from now on belongs to this part.
    pub fn begin(&mut self, part: &str) {
        part.clone_into(&mut self.1);
    }

    /// All so far.
    pub fn figures(&self) -> &[Figure] {
        &self.0
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
