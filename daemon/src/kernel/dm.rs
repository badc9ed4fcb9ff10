//! The device mapper, as far as it is asked here: which device has a name, and how full a thin pool is.
//!
//! Called by `lvm` pools and for encrypted volumes. LVM and cryptsetup make and change devices; a reading needs no
//! process.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `struct dm_ioctl` of linux/dm-ioctl.h.
const HEADER: usize = 312;
/// `struct dm_target_spec` of linux/dm-ioctl.h, which each target's text follows.
const TARGET: usize = 40;
/// Room for the header and one target's status.
const BUFFER: usize = 4096;

/// Where it is asked.
const CONTROL: &str = "/dev/mapper/control";
/// `DM_ACTIVE_PRESENT_FLAG` of linux/dm-ioctl.h.
const ACTIVE_PRESENT: u32 = 1 << 5;

/// DM_DEV_REMOVE and DM_DEV_STATUS of linux/dm-ioctl.h.
const DM_DEV_REMOVE: Opcode = opcode::read_write::<[u8; HEADER]>(0xfd, 4);
const DM_DEV_STATUS: Opcode = opcode::read_write::<[u8; HEADER]>(0xfd, 7);
/// DM_TABLE_STATUS of linux/dm-ioctl.h.
const DM_TABLE_STATUS: Opcode = opcode::read_write::<[u8; HEADER]>(0xfd, 12);

/// How full a thin pool is (Documentation/admin-guide/device-mapper/thin-provisioning.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThinStatus {
    /// Blocks of metadata, of 4 KiB: in use, and in all.
    pub metadata: (u64, u64),
    /// Blocks of data, of the pool's block size: in use, and in all.
    pub data: (u64, u64),
}

/// A device of the device mapper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// The kernel's own name of it, not a link to it.
    pub device: PathBuf,
    /// It has a table, so it can be used. One without is what a command left that was ended before its time.
    pub is_live: bool,
}

/// The device of that name, as the kernel knows it: links to it come later. `None`: there is none.
pub fn look(name: &str) -> io::Result<Option<Mapped>> {
    let mut buffer = [0u8; HEADER];
    fill(&mut buffer, name)?;
    let control = match File::options().read(true).write(true).open(CONTROL) {
        Ok(control) => control,
        // A kernel that has no device mapper has no device of it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    // SAFETY: the kernel reads and writes the header, whose size the opcode gives; any bytes are valid in it.
    match unsafe { ioctl(&control, Updater::<DM_DEV_STATUS, [u8; HEADER]>::new(&mut buffer)) } {
        Ok(()) => Ok(Some(mapped(&buffer))),
        Err(Errno::NXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Its flags and its number, of which the kernel keeps the minor one's upper bits above the major one.
fn mapped(header: &[u8; HEADER]) -> Mapped {
    let word = |at: usize| header[at..at + 4].try_into().map_or(0, u32::from_ne_bytes);
    let number = header[40..48].try_into().map_or(0, u64::from_ne_bytes);
    let minor = (number & 0xff) | ((number >> 12) & 0xf_ff00);
    Mapped { device: PathBuf::from(format!("/dev/dm-{minor}")), is_live: word(28) & ACTIVE_PRESENT != 0 }
}

/// Removes one that has no table.
pub fn remove(name: &str) -> io::Result<()> {
    let mut buffer = [0u8; HEADER];
    fill(&mut buffer, name)?;
    let control = File::options().read(true).write(true).open(CONTROL)?;
    // SAFETY: as in `look`.
    match unsafe { ioctl(&control, Updater::<DM_DEV_REMOVE, [u8; HEADER]>::new(&mut buffer)) } {
        Ok(()) | Err(Errno::NXIO) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Whether the kernel has it, or would load it.
pub fn is_there() -> bool {
    Path::new(CONTROL).exists()
}

/// The device of that name that can be used. `None`: there is none.
pub fn device(name: &str) -> io::Result<Option<PathBuf>> {
    Ok(look(name)?.filter(|m| m.is_live).map(|m| m.device))
}

/// The header of a request about a device of that name.
fn fill(buffer: &mut [u8], name: &str) -> io::Result<()> {
    // Version 4.0.0 of the interface, which every later one answers.
    buffer[0..4].copy_from_slice(&4u32.to_ne_bytes());
    let length = u32::try_from(buffer.len()).unwrap_or_default();
    buffer[12..16].copy_from_slice(&length.to_ne_bytes());
    buffer[16..20].copy_from_slice(&(HEADER as u32).to_ne_bytes());
    let room = &mut buffer[48..48 + 127];
    if name.len() > room.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is too long")));
    }
    room[..name.len()].copy_from_slice(name.as_bytes());
    Ok(())
}

/// Whether a mapped device is on that device, and on nothing else.
pub fn stands_on(mapped: &Path, device: &Path) -> io::Result<bool> {
    let name = |path: &Path| path.file_name().map(ToOwned::to_owned).unwrap_or_default();
    let below = Path::new("/sys/block").join(name(mapped)).join("slaves");
    let found: Vec<_> = std::fs::read_dir(below)?.flatten().map(|e| e.file_name()).collect();
    Ok(found == [name(device)])
}

/// The status of a thin pool's device, with what is under way committed first. `None`: there is no device
/// of that name. `InvalidData`: it is no thin pool, or one that has failed.
pub fn thin_status(name: &str) -> io::Result<Option<ThinStatus>> {
    let mut buffer = [0u8; BUFFER];
    fill(&mut buffer, name)?;
    let control = File::options().read(true).write(true).open(CONTROL)?;
    // SAFETY: the kernel reads the header, whose size the opcode gives, and writes at most `data_size` bytes
    // of the buffer, which is its length. Any bytes are valid in it.
    match unsafe { ioctl(&control, Updater::<DM_TABLE_STATUS, [u8; BUFFER]>::new(&mut buffer)) } {
        Ok(()) => {}
        Err(Errno::NXIO) => return Ok(None),
        Err(e) => return Err(e.into()),
    }
    let text = answer(&buffer).unwrap_or_default();
    parse(&text).map(Some).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("the device mapper says {text:?} of {name}"))
    })
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
    let mut blocks = words.skip(1).map(|word| {
        let (used, total) = word.split_once('/')?;
        Some((used.parse().ok()?, total.parse().ok()?))
    });
    Some(ThinStatus { metadata: blocks.next()??, data: blocks.next()?? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_status_is_read() {
        let status = parse("thin-pool 7 145/4096 33/10240 - rw discard_passdown error_if_no_space - 1024 ");
        assert_eq!(status, Some(ThinStatus { metadata: (145, 4096), data: (33, 10240) }));
        for bad in ["thin-pool Fail", "thin-pool Error", "linear 0 1/2 3/4", "", "thin-pool 1 2 3"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_device_is_told_by_its_number() {
        let mut header = [0u8; HEADER];
        // 253:7, live.
        header[28..32].copy_from_slice(&(1u32 << 5).to_ne_bytes());
        header[40..48].copy_from_slice(&0xfd07u64.to_ne_bytes());
        assert_eq!(mapped(&header), Mapped { device: "/dev/dm-7".into(), is_live: true });
        // 253:300, without a table.
        header[28..32].copy_from_slice(&0u32.to_ne_bytes());
        header[40..48].copy_from_slice(&0x10fd2cu64.to_ne_bytes());
        assert_eq!(mapped(&header), Mapped { device: "/dev/dm-300".into(), is_live: false });
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
