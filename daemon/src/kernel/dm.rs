//! The device mapper: which device has a name, how full a thin pool is, and devices that lie above another one and
//! can be held.
//!
//! Called by `lvm` and `file` pools. LVM and cryptsetup make devices of theirs; what is done here takes no process.
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use super::block;

/// `struct dm_ioctl` of linux/dm-ioctl.h.
const HEADER: usize = 312;
/// `struct dm_target_spec` of linux/dm-ioctl.h, which each target's text follows.
const TARGET: usize = 40;
/// Room for the header and one target with its text.
const BUFFER: usize = 4096;

/// Where it is asked.
const CONTROL: &str = "/dev/mapper/control";
/// `DM_SUSPEND_FLAG`, `DM_ACTIVE_PRESENT_FLAG` and `DM_SKIP_LOCKFS_FLAG` of linux/dm-ioctl.h.
const SUSPEND: u32 = 1 << 1;
const ACTIVE_PRESENT: u32 = 1 << 5;
const SKIP_LOCKFS: u32 = 1 << 10;

/// `DM_DEV_CREATE` and the others of linux/dm-ioctl.h.
const fn command(number: u8) -> Opcode {
    opcode::read_write::<[u8; HEADER]>(0xfd, number)
}
const DM_DEV_CREATE: Opcode = command(3);
const DM_DEV_REMOVE: Opcode = command(4);
/// Suspends a device, or resumes it.
const DM_DEV_SUSPEND: Opcode = command(6);
const DM_DEV_STATUS: Opcode = command(7);
const DM_TABLE_LOAD: Opcode = command(9);
const DM_TABLE_STATUS: Opcode = command(12);
const DM_TARGET_MSG: Opcode = command(14);

/// How full a thin pool is (Documentation/admin-guide/device-mapper/thin-provisioning.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThinStatus {
    /// The number of the last change that LVM has told it of.
    pub transaction: u64,
    /// Blocks of metadata, of 4 KiB: in use, and in all.
    pub metadata: (u64, u64),
    /// Blocks of data, of the pool's block size: in use, and in all.
    pub data: (u64, u64),
    /// The block in which the metadata begins that is held for somebody to read, if it is.
    pub held: Option<u64>,
}

/// A device of the device mapper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// The kernel's own name of it, not a link to it.
    pub device: PathBuf,
    /// It has a table, so it can be used. One without is what a command left that was ended before its time.
    pub is_live: bool,
    /// What goes to it waits.
    pub is_suspended: bool,
}

/// A request about the device of one name, and its answer.
struct Request(Box<[u8; BUFFER]>);

impl Request {
    fn new(name: &str) -> io::Result<Self> {
        let mut request = Self(Box::new([0; BUFFER]));
        // Version 4.0.0 of the interface, which every later one answers.
        request.set(0, 4);
        request.set(12, BUFFER as u32);
        request.set(16, HEADER as u32);
        request.text(48, 127, name)?;
        Ok(request)
    }

    fn set(&mut self, at: usize, word: u32) {
        self.0[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }

    /// Text that a zero ends.
    fn text(&mut self, at: usize, room: usize, text: &str) -> io::Result<()> {
        if text.len() > room {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{text} is too long")));
        }
        self.0[at..at + text.len()].copy_from_slice(text.as_bytes());
        Ok(())
    }

    fn flags(&self) -> u32 {
        self.0[28..32].try_into().map_or(0, u32::from_ne_bytes)
    }

    fn set_flags(mut self, flags: u32) -> Self {
        self.set(28, flags);
        self
    }

    /// Asks the kernel. `None`: it has no device of that name.
    fn ask<const COMMAND: Opcode>(&mut self) -> io::Result<Option<()>> {
        // A kernel that has no device mapper has no device of it.
        let Some(control) = control()? else { return Ok(None) };
        // SAFETY: every command's argument is a header, whose size the opcode gives. The kernel reads and writes at
        // most `data_size` bytes, which is the length of the buffer, and any bytes are valid in it.
        match unsafe { ioctl(&control, Updater::<COMMAND, [u8; BUFFER]>::new(&mut *self.0)) } {
            Ok(()) => Ok(Some(())),
            Err(Errno::NXIO) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

/// Where the kernel is asked. `None`: it has no device mapper, or can't load it. A node alone says nothing of that: tools
/// make one wherever they look for it.
fn control() -> io::Result<Option<File>> {
    match File::options().read(true).write(true).open(CONTROL) {
        Ok(control) => Ok(Some(control)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(None),
        Err(e) => Err(e),
    }
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("the device mapper has no {name}"))
}

/// The device of that name, as the kernel knows it: links to it come later. `None`: there is none.
pub fn look(name: &str) -> io::Result<Option<Mapped>> {
    let mut request = Request::new(name)?;
    Ok(request.ask::<DM_DEV_STATUS>()?.map(|()| mapped(&request)))
}

/// Its flags and its number, of which the kernel keeps the minor one's upper bits above the major one.
fn mapped(answer: &Request) -> Mapped {
    let number = answer.0[40..48].try_into().map_or(0, u64::from_ne_bytes);
    let minor = (number & 0xff) | ((number >> 12) & 0xf_ff00);
    Mapped {
        device: PathBuf::from(format!("/dev/dm-{minor}")),
        is_live: answer.flags() & ACTIVE_PRESENT != 0,
        is_suspended: answer.flags() & SUSPEND != 0,
    }
}

/// What a device that is made here does with what goes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Above {
    /// It goes to the device below.
    All,
    /// Reads go to the device below; whatever would change it, and a flush, is an error
    /// (Documentation/admin-guide/device-mapper/dm-flakey.rst: up for no second, down for the rest, and what is written
    /// while it is down fails).
    Reads,
}

impl Above {
    /// The kind of its table, and the parameters.
    fn table(self, major: u32, minor: u32) -> (&'static str, String) {
        match self {
            Self::All => ("linear", format!("{major}:{minor} 0")),
            Self::Reads => ("flakey", format!("{major}:{minor} 0 0 1 1 error_writes")),
        }
    }
}

/// Removes one that nobody has open. Fine if there is none.
pub fn remove(name: &str) -> io::Result<()> {
    Request::new(name)?.ask::<DM_DEV_REMOVE>().map(drop)
}

/// Makes a device above another one, as large as that. What a call that was stopped half way leaves is not live.
/// `InvalidInput`: the kernel has no such kind of device.
pub fn make(name: &str, above: Above, on: &Path) -> io::Result<()> {
    let mut create = Request::new(name)?;
    create.text(176, 128, &format!("ORLOP-{name}"))?;
    create.ask::<DM_DEV_CREATE>()?;
    load(name, above, on).inspect_err(|_| {
        let _ = remove(name);
    })
}

/// Makes such a device as large as the one below it, which has grown. Who uses it waits for that moment.
pub fn grow(name: &str, above: Above) -> io::Result<()> {
    let Mapped { device, .. } = look(name)?.ok_or_else(|| missing(name))?;
    match below(&device)?.as_slice() {
        [one] => load(name, above, &Path::new("/dev").join(one)),
        others => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is on {others:?}"))),
    }
}

fn load(name: &str, above: Above, on: &Path) -> io::Result<()> {
    let (major, minor) = block::number(on)?;
    let sectors = block::size(&File::open(on)?)? / 512;
    let (kind, parameters) = above.table(major, minor);
    let mut load = Request::new(name)?;
    load.set(20, 1);
    // struct dm_target_spec: first sector, sectors, status, where the next one is, the kind; then its parameters.
    load.0[HEADER + 8..HEADER + 16].copy_from_slice(&sectors.to_ne_bytes());
    load.text(HEADER + 24, 15, kind)?;
    load.text(HEADER + TARGET, 64, &parameters)?;
    load.ask::<DM_TABLE_LOAD>()?.ok_or_else(|| missing(name))?;
    // A new table is used from the next resumption on.
    let live = look(name)?.is_some_and(|m| m.is_live);
    if live {
        suspend(name)?;
    }
    // If the new table is refused, the device goes on with the one that it had.
    resume(name).inspect_err(|_| {
        let _ = resume(name);
    })
}

/// Waits until what is under way has ended, and has what comes after that wait.
fn suspend(name: &str) -> io::Result<()> {
    // No file system is mounted on what is suspended here.
    let mut request = Request::new(name)?.set_flags(SUSPEND | SKIP_LOCKFS);
    request.ask::<DM_DEV_SUSPEND>()?.ok_or_else(|| missing(name))
}

/// Lets go on what waits.
pub fn resume(name: &str) -> io::Result<()> {
    Request::new(name)?.ask::<DM_DEV_SUSPEND>()?.ok_or_else(|| missing(name))
}

/// A device that is suspended: what was under way has ended, and what came after that waits. It goes on when this
/// goes, whatever happens.
#[derive(Debug)]
pub struct Suspended {
    name: Option<String>,
    device: PathBuf,
}

impl Suspended {
    /// Suspends it. Waits for what is under way. `None`: there is none of that name.
    pub fn hold(name: &str) -> io::Result<Option<Self>> {
        match suspend(name) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        }
        let mut held = Self { name: Some(name.to_string()), device: PathBuf::new() };
        held.device = look(name)?.ok_or_else(|| missing(name))?.device;
        Ok(Some(held))
    }

    /// Whether it is the same device still, and waits.
    pub fn is_held(&self) -> io::Result<bool> {
        let Some(name) = &self.name else { return Ok(false) };
        Ok(look(name)?.is_some_and(|m| m.is_suspended && m.device == self.device))
    }

    /// Lets it go on.
    pub fn release(mut self) -> io::Result<()> {
        self.name.take().map_or(Ok(()), |name| resume(&name))
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        if let Some(name) = self.name.take()
            && let Err(error) = resume(&name)
        {
            tracing::error!(name, %error, "a device that was held for a snapshot does not go on");
        }
    }
}

/// The names that begin so of devices that are suspended.
pub fn suspended(prefix: &str) -> io::Result<Vec<String>> {
    let named = named(prefix)?.into_iter();
    let waits =
        |dm: &PathBuf| std::fs::read_to_string(dm.join("suspended")).is_ok_and(|s| s.trim_end() == "1");
    Ok(named.filter(|(_, dm)| waits(dm)).map(|(name, _)| name).collect())
}

/// The devices whose names begin so, from sysfs, with what the kernel shows of each. Its cost follows how many devices
/// the device mapper has.
pub fn named(prefix: &str) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(b"dm-") {
            continue;
        }
        let dm = entry.path().join("dm");
        // It may be gone since.
        let Ok(name) = std::fs::read_to_string(dm.join("name")) else { continue };
        if name.starts_with(prefix) {
            found.push((name.trim_end().to_string(), dm));
        }
    }
    Ok(found)
}

/// Whether the kernel has it, or would load it.
pub fn is_there() -> bool {
    matches!(control(), Ok(Some(_)))
}

/// The device of that name that can be used. `None`: there is none.
pub fn device(name: &str) -> io::Result<Option<PathBuf>> {
    Ok(look(name)?.filter(|m| m.is_live).map(|m| m.device))
}

/// The device that a mapped one is on. `None`: it is on none, or on several.
pub fn stand(mapped: &Path) -> io::Result<Option<PathBuf>> {
    match below(mapped)?.as_slice() {
        [one] => Ok(Some(Path::new("/dev").join(one))),
        _ => Ok(None),
    }
}

/// Whether a mapped device is on that device, and on nothing else.
pub fn stands_on(mapped: &Path, device: &Path) -> io::Result<bool> {
    Ok(below(mapped)? == [file_name(device)])
}

/// The kernel's names of the devices that a mapped one is on.
fn below(mapped: &Path) -> io::Result<Vec<OsString>> {
    let slaves = Path::new("/sys/block").join(file_name(mapped)).join("slaves");
    std::fs::read_dir(slaves)?.map(|entry| Ok(entry?.file_name())).collect()
}

fn file_name(path: &Path) -> OsString {
    path.file_name().map(ToOwned::to_owned).unwrap_or_default()
}

/// The status of a thin pool's device, with what is under way committed first. `None`: there is no device
/// of that name. `InvalidData`: it is no thin pool, or one that has failed.
pub fn thin_status(name: &str) -> io::Result<Option<ThinStatus>> {
    let mut request = Request::new(name)?;
    if request.ask::<DM_TABLE_STATUS>()?.is_none() {
        return Ok(None);
    }
    let text = answer(&request.0).unwrap_or_default();
    parse(&text).map(Some).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("the device mapper says {text:?} of {name}"))
    })
}

/// What a thin pool can be told about its metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThinMessage {
    /// To hold it as it is now, for somebody to read.
    Hold,
    /// To hold it no longer.
    LetGo,
}

/// Tells a thin pool something. `None`: there is no device of that name. `EBUSY` where metadata is held already.
pub fn tell_thin(name: &str, message: ThinMessage) -> io::Result<Option<()>> {
    let mut request = Request::new(name)?;
    let text = match message {
        ThinMessage::Hold => "reserve_metadata_snap",
        ThinMessage::LetGo => "release_metadata_snap",
    };
    // `struct dm_target_msg`: the sector of the target, and a text that a zero ends.
    request.text(HEADER + 8, BUFFER - HEADER - 9, text)?;
    request.ask::<DM_TARGET_MSG>()
}

/// The first target's kind and status.
fn answer(buffer: &[u8; BUFFER]) -> Option<String> {
    let word = |at: usize| Some(u32::from_ne_bytes(buffer.get(at..at + 4)?.try_into().ok()?) as usize);
    let (start, count) = (word(16)?, word(20)?);
    let text = |from: usize| {
        let bytes = buffer.get(from..)?.split(|b| *b == 0).next()?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    };
    (count > 0).then(|| Some(format!("{} {}", text(start + 24)?, text(start + TARGET)?)))?
}

fn parse(status: &str) -> Option<ThinStatus> {
    let mut words = status.split_whitespace();
    if words.next() != Some("thin-pool") {
        return None;
    }
    let transaction = words.next()?.parse().ok()?;
    let mut blocks = || {
        let (used, total) = words.next()?.split_once('/')?;
        Some((used.parse().ok()?, total.parse().ok()?))
    };
    let (metadata, data) = (blocks()?, blocks()?);
    Some(ThinStatus { transaction, metadata, data, held: words.next().and_then(|w| w.parse().ok()) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_status_is_read() {
        let status = parse("thin-pool 7 145/4096 33/10240 - rw discard_passdown error_if_no_space - 1024 ");
        assert_eq!(
            status,
            Some(ThinStatus { transaction: 7, metadata: (145, 4096), data: (33, 10240), held: None })
        );
        let held = parse("thin-pool 7 145/4096 33/10240 99 rw discard_passdown error_if_no_space - 1024 ");
        assert_eq!(held.unwrap().held, Some(99));
        for bad in ["thin-pool Fail", "thin-pool Error", "linear 0 1/2 3/4", "", "thin-pool 1 2 3"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_device_is_told_by_its_number() {
        let answer = |flags: u32, number: u64| {
            let mut answer = Request::new("x").unwrap().set_flags(flags);
            answer.0[40..48].copy_from_slice(&number.to_ne_bytes());
            mapped(&answer)
        };
        // 253:7, live, and 253:300, without a table.
        let is =
            |device: &str, is_live, is_suspended| Mapped { device: device.into(), is_live, is_suspended };
        assert_eq!(answer(1 << 5, 0xfd07), is("/dev/dm-7", true, false));
        assert_eq!(answer(1 << 5 | 1 << 1, 0xfd07), is("/dev/dm-7", true, true));
        assert_eq!(answer(0, 0x10fd2c), is("/dev/dm-300", false, false));
        assert!(Request::new(&"x".repeat(128)).is_err());
    }

    #[test]
    fn a_table_says_what_is_let_through() {
        assert_eq!(Above::All.table(230, 16), ("linear", "230:16 0".into()));
        assert_eq!(Above::Reads.table(7, 3), ("flakey", "7:3 0 0 1 1 error_writes".into()));
    }

    #[test]
    fn an_answer_is_taken_apart() {
        let mut buffer = [0u8; BUFFER];
        buffer[16..20].copy_from_slice(&312u32.to_ne_bytes());
        assert_eq!(answer(&buffer), None, "no target");
        buffer[20..24].copy_from_slice(&1u32.to_ne_bytes());
        buffer[336..345].copy_from_slice(b"thin-pool");
        buffer[352..361].copy_from_slice(b"1 2/3 4/5");
        assert_eq!(answer(&buffer).unwrap(), "thin-pool 1 2/3 4/5");
        buffer[16..20].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(answer(&buffer), None);
    }
}
