//! What `iscsi-test-cu`, libiscsi's own test tool, prints, and the record of it in docs/iscsi-test-cu.md. Pure.
//!
//! Called by the scenarios that run the tool; the record is checked without it too.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail, ensure};

const RECORD: &str = include_str!("../../docs/iscsi-test-cu.md");
/// What follows the record there: the reasons.
const WHY: &str = "## Why";

/// By the test's name, with its suite's before it.
pub type Verdicts = BTreeMap<String, Verdict>;

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It can't be run here, and says so.
    Skipped,
    /// In the record alone: it passes or fails by chance.
    Either,
    /// It was begun and did not end in time, or took the tool with it.
    Unended,
}

impl Verdict {
    const COLUMNS: [Self; 4] = [Self::Passed, Self::Failed, Self::Skipped, Self::Either];

    fn is_as(self, now: Self) -> bool {
        self == now || self == Self::Either && [Self::Passed, Self::Failed].contains(&now)
    }
}

/// The rows of the record: a suite, and its tests by how they end.
pub fn record() -> Result<Verdicts> {
    let mut all = Verdicts::new();
    let rows =
        RECORD.lines().take_while(|l| *l != WHY).filter_map(|l| l.strip_prefix("| `")?.split_once("` |"));
    for (suite, row) in rows {
        for (verdict, tests) in Verdict::COLUMNS.into_iter().zip(row.split('|')) {
            for test in tests.split(',').map(str::trim).filter(|t| !t.is_empty()) {
                let twice = all.insert(format!("{suite}.{test}"), verdict);
                ensure!(twice.is_none(), "the record has {suite}.{test} twice");
            }
        }
    }
    ensure!(all.len() > 200, "the record has {} tests", all.len());
    Ok(all)
}

/// Reads what the tool prints. A test's own lines are indented, its verdict begins a line or follows its name; that it was
/// skipped stands among its lines, and it "passed" then.
pub fn parse(log: &str) -> Verdicts {
    let mut all = Verdicts::new();
    let (mut suite, mut open, mut skipped) = ("", None::<String>, false);
    for mut line in log.lines() {
        if let Some(name) = line.strip_prefix("Suite: ") {
            suite = name.trim();
        } else if let Some((test, rest)) = line.strip_prefix("  Test: ").and_then(|l| l.split_once(" ...")) {
            let name = format!("{suite}.{test}");
            all.insert(name.clone(), Verdict::Unended);
            (open, skipped, line) = (Some(name), false, rest);
        }
        let Some(name) = &open else { continue };
        skipped |= line.contains("[SKIPPED]");
        let verdict = match () {
            () if line.starts_with("FAILED") => Verdict::Failed,
            () if line.starts_with("passed") && skipped => Verdict::Skipped,
            () if line.starts_with("passed") => Verdict::Passed,
            () => continue,
        };
        all.insert(name.clone(), verdict);
        open = None;
    }
    all
}

/// As rows of the record.
fn table(verdicts: &Verdicts) -> String {
    let mut suites: BTreeMap<&str, [Vec<&str>; 4]> = BTreeMap::new();
    for (name, verdict) in verdicts {
        let (suite, test) = name.split_once('.').unwrap_or((name, ""));
        if let Some(column) = Verdict::COLUMNS.iter().position(|c| c == verdict) {
            suites.entry(suite).or_default()[column].push(test);
        }
    }
    let row = |(suite, tests): (&&str, &[Vec<&str>; 4])| {
        format!("| `{suite}` | {} |\n", tests.each_ref().map(|t| t.join(", ")).join(" | "))
    };
    suites.iter().map(row).collect()
}

/// What is not as it was written down, a line each; of the suites that were run.
fn differences(was: &Verdicts, is: &Verdicts) -> Vec<String> {
    let suite = |name: &str| name.split('.').next().unwrap_or_default().to_string();
    let run: BTreeSet<String> = is.keys().map(|n| suite(n)).collect();
    let names: BTreeSet<&String> = was.keys().filter(|n| run.contains(&suite(n))).chain(is.keys()).collect();
    let word = |v: Option<&Verdict>| v.map_or("not there".into(), |v| format!("{v:?}").to_lowercase());
    let differ = names.into_iter().filter(|n| {
        let (was, is) = (was.get(*n), is.get(*n));
        !was.zip(is).is_some_and(|(was, is)| was.is_as(*is))
    });
    differ.map(|n| format!("{n}: {} in the record, {} now", word(was.get(n)), word(is.get(n)))).collect()
}

/// As the record says, or what is different.
pub fn judge(name: &str, found: &Verdicts) -> Result<()> {
    let differ = differences(&record()?, found);
    if differ.is_empty() {
        return Ok(());
    }
    bail!(
        "{name} is not as in docs/iscsi-test-cu.md:\n{}\nAll of it, as rows of the record:\n{}",
        differ.join("\n"),
        table(found)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_the_tool_prints_is_read() {
        let log = "Suite: A\n  Test: One ...passed\n  Test: Two ...    [FAILED] as it should\npassed\n\
                   \x20 Test: Three ...    [SKIPPED] no\npassed\n  Test: Four ...FAILED\n    1. x.c:1  - no\n\
                   Suite: B\n  Test: One ...\n    [FAILED] x\nFAILED\n  Test: Two ...    said\n";
        let found = parse(log);
        let want = [
            ("A.Four", Verdict::Failed),
            ("A.One", Verdict::Passed),
            ("A.Three", Verdict::Skipped),
            ("A.Two", Verdict::Passed),
            ("B.One", Verdict::Failed),
            ("B.Two", Verdict::Unended),
        ];
        assert_eq!(found, want.map(|(n, v)| (n.to_string(), v)).into());
        assert_eq!(table(&found), "| `A` | One, Two | Four | Three |  |\n| `B` |  | One |  |  |\n");
    }

    #[test]
    fn a_change_is_seen_in_each_direction() {
        let all =
            |list: &[(&str, Verdict)]| -> Verdicts { list.iter().map(|(n, v)| ((*n).into(), *v)).collect() };
        let was = all(&[("A.One", Verdict::Failed), ("A.Gone", Verdict::Passed), ("B.One", Verdict::Passed)]);
        let is = all(&[("A.One", Verdict::Passed), ("A.New", Verdict::Unended)]);
        assert_eq!(
            differences(&was, &is),
            [
                "A.Gone: passed in the record, not there now",
                "A.New: not there in the record, unended now",
                "A.One: failed in the record, passed now",
            ]
        );
        assert!(differences(&is, &is).is_empty());
        let chance = all(&[("A.One", Verdict::Either)]);
        for (now, differ) in
            [(Verdict::Passed, 0), (Verdict::Failed, 0), (Verdict::Skipped, 1), (Verdict::Unended, 1)]
        {
            assert_eq!(differences(&chance, &all(&[("A.One", now)])).len(), differ, "{now:?}");
        }
    }

    #[test]
    fn each_test_is_recorded_once_and_each_failure_explained() {
        let all = record().unwrap();
        let reasons = RECORD.split_once(WHY).unwrap().1;
        for (name, _) in all.iter().filter(|(_, v)| [Verdict::Failed, Verdict::Either].contains(v)) {
            assert!(reasons.contains(&format!("`{name}`")), "{name} fails, and nothing says why");
        }
    }
}
