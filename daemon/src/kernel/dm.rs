//! The device mapper, as far as it is asked here: how full a thin pool is.
//!
//! Called by `lvm` pools. LVM makes and changes devices; a reading needs no process.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `struct dm_ioctl` of linux/dm-ioctl.h.
const HEADER: usize = 312;
/// `struct dm_target_spec` of linux/dm-ioctl.h, which each target's text follows.
const TARGET: usize = 40;
/// Room for the header and one target's status.
const BUFFER: usize = 4096;

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

/// The status of a thin pool's device, with what is under way committed first. `None`: there is no device
/// of that name. `InvalidData`: it is no thin pool, or one that has failed.
pub fn thin_status(name: &str) -> io::Result<Option<ThinStatus>> {
    let mut buffer = [0u8; BUFFER];
    // Version 4.0.0 of the interface, which every later one answers.
    buffer[0..4].copy_from_slice(&4u32.to_ne_bytes());
    buffer[12..16].copy_from_slice(&(BUFFER as u32).to_ne_bytes());
    buffer[16..20].copy_from_slice(&(HEADER as u32).to_ne_bytes());
    let room = &mut buffer[48..48 + 127];
    if name.len() > room.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is too long")));
    }
    room[..name.len()].copy_from_slice(name.as_bytes());
    let control = File::options().read(true).write(true).open("/dev/mapper/control")?;
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
