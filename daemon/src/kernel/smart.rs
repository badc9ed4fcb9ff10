//! What a disk says of itself, by smartctl(8): whether it is failing, how worn it is, how warm.
//!
//! Called by the inventory of disks, from a lane: a disk that is failing may take its time to say so. Never
//! wakes a disk that sleeps. The form is smartctl's JSON; its exit status is a mask of bits, of which several
//! are no failure of the reading.

use std::ffi::OsString;
use std::path::Path;

use serde::Deserialize;

use super::Deadline;
use super::exec::{ExecError, Tool};

/// An answer has a few KiB.
const MOST: usize = 1 << 20;

/// What smartctl is told to end with where a disk sleeps: its manual says that nothing else does.
const ASLEEP: i32 = 3;

// Bits of its exit status (smartctl(8), EXIT STATUS). Bits 0 to 2 say that something could not be read, which
// shows in what is missing; bits 5 to 7 tell of the past.
const FAILING: i32 = 1 << 3;
const BELOW_THRESHOLD: i32 = 1 << 4;

/// What a disk says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Smart {
    /// It sleeps, and was not woken.
    Asleep,
    /// It tells nothing: why. A virtual disk, a controller in between.
    Silent(String),
    /// Its own words.
    Told(Reading),
}

/// A reading. What is `None` the disk did not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Why it is failing, if it is.
    pub failing: Option<String>,
    /// In degrees Celsius.
    pub temperature: Option<i16>,
    /// Of the writes that it was made for.
    pub used_percent: Option<u8>,
    /// Hours under power.
    pub power_on_hours: Option<u64>,
    /// What it could not correct.
    pub media_errors: Option<u64>,
    /// Sectors that were replaced.
    pub reallocated_sectors: Option<u64>,
}

/// Asks a disk.
pub fn read(device: &Path, deadline: &Deadline) -> Result<Smart, ExecError> {
    let options = ["--json=c", "-n", "standby,3", "-i", "-H", "-A"];
    let mut args: Vec<OsString> = options.map(Into::into).to_vec();
    args.push(device.into());
    let out = Tool::locate("smartctl")?.at_most(MOST).run(&args, deadline)?;
    let Some(code) = out.code else { return Err(out.failure()) };
    if code == ASLEEP {
        return Ok(Smart::Asleep);
    }
    parse(code, out.text()?).map_err(|e| out.unparsed(&e))
}

#[derive(Debug, Deserialize)]
struct Answer {
    smartctl: Program,
    smart_status: Option<Status>,
    temperature: Option<Temperature>,
    power_on_time: Option<PowerOn>,
    endurance_used: Option<Endurance>,
    ata_smart_attributes: Option<Attributes>,
    nvme_smart_health_information_log: Option<NvmeLog>,
    scsi_grown_defect_list: Option<u64>,
    scsi_percentage_used_endurance_indicator: Option<u64>,
    scsi_error_counter_log: Option<ScsiErrors>,
}

#[derive(Debug, Deserialize)]
struct Program {
    #[serde(default)]
    messages: Vec<Message>,
}

#[derive(Debug, Deserialize)]
struct Message {
    string: String,
}

#[derive(Debug, Deserialize)]
struct Status {
    passed: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Temperature {
    current: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct PowerOn {
    hours: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Endurance {
    current_percent: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Attributes {
    #[serde(default)]
    table: Vec<Attribute>,
}

#[derive(Debug, Deserialize)]
struct Attribute {
    id: u16,
    name: Option<String>,
    value: Option<u64>,
    when_failed: Option<String>,
    raw: Option<Raw>,
}

#[derive(Debug, Deserialize)]
struct Raw {
    value: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct NvmeLog {
    critical_warning: Option<u64>,
    percentage_used: Option<u64>,
    media_errors: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct ScsiErrors {
    read: Option<ScsiCounter>,
    write: Option<ScsiCounter>,
}

#[derive(Debug, Deserialize)]
struct ScsiCounter {
    total_uncorrected_errors: Option<u64>,
}

/// Attributes whose normalized value counts down from 100 as an SSD wears: makers agree on little more.
const LIFE_LEFT: [&str; 8] = [
    "Media_Wearout_Indicator",
    "SSD_Life_Left",
    "Wear_Leveling_Count",
    "Percent_Lifetime_Remain",
    "Perc_Rated_Life_Remain",
    "PCT_Life_Remaining",
    "Remaining_Lifetime_Perc",
    "Remaining_Life",
];

/// Bits of NVMe's critical warning (NVMe base specification 2.0, SMART / Health Information).
const WARNINGS: [(u64, &str); 5] = [
    (1, "its spare blocks run out"),
    (2, "it is too hot or too cold"),
    (4, "it is not reliable any more"),
    (8, "it can only be read"),
    (16, "its backup of volatile memory has failed"),
];

fn parse(code: i32, text: &str) -> Result<Smart, serde_json::Error> {
    let answer: Answer = serde_json::from_str(text)?;
    let passed = answer.smart_status.as_ref().and_then(|s| s.passed);
    let attributes = answer.ata_smart_attributes.as_ref().map(|a| a.table.as_slice()).unwrap_or_default();
    let nvme = answer.nvme_smart_health_information_log.as_ref();
    let raw = |id| attributes.iter().find(|a| a.id == id)?.raw.as_ref()?.value;
    let mut failing: Vec<String> = Vec::new();
    let warning = nvme.and_then(|n| n.critical_warning).unwrap_or(0);
    failing
        .extend(WARNINGS.iter().filter(|(bit, _)| warning & bit != 0).map(|(_, text)| (*text).to_string()));
    let now = attributes.iter().filter(|a| a.when_failed.as_deref() == Some("now"));
    failing.extend(
        now.map(|a| format!("{} is below its threshold", a.name.as_deref().unwrap_or("an attribute"))),
    );
    let fails = passed == Some(false) || code & (FAILING | BELOW_THRESHOLD) != 0;
    if passed.is_none() && !fails {
        let said = answer.smartctl.messages.into_iter().map(|m| one_line(&m.string)).next();
        return Ok(Smart::Silent(said.unwrap_or_else(|| "it tells nothing of its health".into())));
    }
    if failing.is_empty() {
        failing.push("its own check fails".into());
    }
    // An attribute's normalized value is 100 when it is new, or more with some makers.
    let life_left = attributes.iter().find(|a| a.name.as_deref().is_some_and(|n| LIFE_LEFT.contains(&n)));
    let worn = life_left.and_then(|a| a.value).map(|v| 100u64.saturating_sub(v));
    let used = nvme.and_then(|n| n.percentage_used);
    let used = used.or(answer.endurance_used.and_then(|e| e.current_percent));
    let used = used.or(answer.scsi_percentage_used_endurance_indicator).or(worn);
    let scsi = answer.scsi_error_counter_log.map(|l| {
        let counters = [l.read, l.write].into_iter().flatten().filter_map(|c| c.total_uncorrected_errors);
        counters.fold(0u64, u64::saturating_add)
    });
    // 187: what was reported as not correctable; 198: the same, found by a pass over the disk.
    let media_errors = nvme.and_then(|n| n.media_errors).or_else(|| raw(187)).or_else(|| raw(198)).or(scsi);
    Ok(Smart::Told(Reading {
        failing: fails.then(|| failing.join(", ")),
        temperature: answer.temperature.and_then(|t| t.current).and_then(|t| t.try_into().ok()),
        used_percent: used.map(|p| u8::try_from(p).unwrap_or(u8::MAX)),
        power_on_hours: answer.power_on_time.and_then(|p| p.hours),
        media_errors,
        reallocated_sectors: raw(5).or(answer.scsi_grown_defect_list),
    }))
}

/// Words of a program, short and without control characters.
fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SATA: &str = include_str!("smart/sata.json");
    const NVME: &str = include_str!("smart/nvme.json");
    const FAILING_SATA: &str = include_str!("smart/sata-failing.json");
    const VIRTIO: &str = include_str!("smart/virtio.json");

    fn told(code: i32, text: &str) -> Reading {
        match parse(code, text).unwrap() {
            Smart::Told(r) => r,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_sata_disk_and_an_nvme_one() {
        let sata = Reading {
            failing: None,
            temperature: Some(31),
            used_percent: Some(4),
            power_on_hours: Some(21_344),
            media_errors: Some(0),
            reallocated_sectors: Some(0),
        };
        assert_eq!(told(0, SATA), sata);
        // Errors in its logs are of the past: bits 5 to 7; and bit 2: something optional was not read.
        for code in [32, 64, 128, 224, 4, 228] {
            assert_eq!(told(code, SATA), sata, "{code}");
        }
        let nvme = Reading {
            temperature: Some(38),
            used_percent: Some(7),
            power_on_hours: Some(9_120),
            media_errors: Some(2),
            ..Reading::default()
        };
        assert_eq!(told(0, NVME), nvme);
    }

    #[test]
    fn one_that_fails_says_why() {
        let r = told(24, FAILING_SATA);
        assert_eq!(r.failing.as_deref(), Some("Reallocated_Sector_Ct is below its threshold"));
        assert_eq!((r.reallocated_sectors, r.media_errors), (Some(3992), Some(57)));
        // The status alone, and the bits alone.
        assert!(told(0, FAILING_SATA).failing.is_some());
        assert_eq!(told(8, SATA).failing.as_deref(), Some("its own check fails"));
        assert!(told(16, SATA).failing.is_some());
        let hot = NVME.replace(r#""critical_warning":0"#, r#""critical_warning":5"#);
        let hot = hot.replace(r#""passed":true"#, r#""passed":false"#);
        let words = told(8, &hot).failing.unwrap();
        assert_eq!(words, "its spare blocks run out, it is not reliable any more");
        let worn = NVME.replace(r#""percentage_used":7"#, r#""percentage_used":255"#);
        assert_eq!(told(0, &worn).used_percent, Some(255));
        let absurd = NVME.replace(r#""percentage_used":7"#, r#""percentage_used":70000"#);
        assert_eq!(told(0, &absurd).used_percent, Some(255));
    }

    #[test]
    fn a_virtual_disk_tells_nothing() {
        let silent = Smart::Silent("/dev/vda: Unable to detect device type".into());
        assert_eq!(parse(1, VIRTIO).unwrap(), silent);
        let dumb = r#"{"smartctl":{"exit_status":4},"smart_support":{"available":false}}"#;
        assert!(matches!(parse(4, dumb).unwrap(), Smart::Silent(_)));
    }

    #[test]
    fn garbage_is_an_error_and_no_reading() {
        for text in ["", "null", "[]", "{}", "smartctl: bad", "\u{0}", r#"{"smartctl":3}"#] {
            assert!(parse(0, text).is_err(), "{text}");
        }
        // Cut anywhere, it is no reading.
        for cut in 0..SATA.trim_end().len() {
            assert!(parse(0, &SATA[..cut]).is_err(), "{cut}");
        }
        for wrong in [r#""hours":-1"#, r#""hours":"many""#, r#""hours":1e99"#] {
            assert!(parse(0, &SATA.replace(r#""hours":21344"#, wrong)).is_err(), "{wrong}");
        }
    }
}
