//! Loop devices: a file as a block device, with direct I/O.
//!
//! Called by file pools. A device of ours is known by three things at once: the name `orlop:<id>` in
//! it, and the device and inode number of the file behind it. That is in the kernel, so it is found
//! again after the daemon has been restarted. Never touches a loop device that lacks any of the three.
//!
//! The logical block size is 512: an initiator's disk must not change its block size with the pool that
//! it is on (zvols have 512), and a file system or partition table made with 512 does not mount on
//! 4096. Where the disk below has sectors of 4096, the kernel then declines direct I/O and goes through
//! the page cache; that is slower and not less safe, because a flush is an fsync of the file.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::ioctl::{Getter, IntegerSetter, Ioctl, NoArg, Opcode, Setter, ioctl};

use super::block;
use super::uevent::Uevents;
use super::{Deadline, Overrun};

const LOOP_CLR_FD: Opcode = 0x4C01;
const LOOP_SET_STATUS64: Opcode = 0x4C04;
const LOOP_GET_STATUS64: Opcode = 0x4C05;
const LOOP_SET_CAPACITY: Opcode = 0x4C07;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_ADD: Opcode = 0x4C80;
const LOOP_CTL_REMOVE: Opcode = 0x4C81;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;

const CONTROL: &str = "/dev/loop-control";

const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

const BLOCK_SIZE: u32 = 512;

/// How long a device node may take to appear after the kernel has made the device.
const NODE: Duration = Duration::from_secs(5);

/// How long another opener may keep a device from being detached: udev probes it, and lags behind on a
/// slow machine.
const DETACH: Duration = Duration::from_secs(30);

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

impl Info {
    const EMPTY: Info = Info {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };

    fn name(&self) -> &[u8] {
        self.file_name.split(|b| *b == 0).next().unwrap_or_default()
    }
}

/// The ioctls that ask for the number of a device: their answer is their return value.
struct Number {
    request: Opcode,
    argument: isize,
}

/// An unbound device; the same one for everyone who asks until it is bound.
const FREE: Number = Number { request: LOOP_CTL_GET_FREE, argument: 0 };
/// A device that did not exist before: the argument says "any number".
const NEW: Number = Number { request: LOOP_CTL_ADD, argument: -1 };

// SAFETY: LOOP_CTL_GET_FREE ignores its argument, LOOP_CTL_ADD takes it as a number; both return a
// number, and no memory is touched.
unsafe impl Ioctl for Number {
    type Output = u32;
    const IS_MUTATING: bool = false;
    fn opcode(&self) -> Opcode {
        self.request
    }
    fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
        std::ptr::without_provenance_mut(self.argument as usize)
    }
    unsafe fn output_from_ptr(out: i32, _: *mut rustix::ffi::c_void) -> rustix::io::Result<u32> {
        u32::try_from(out).map_err(|_| Errno::INVAL)
    }
}

/// Why a loop device could not be had or let go.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The kernel said no.
    #[error("{action}")]
    Io {
        /// What was being done.
        action: String,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// The file is behind a loop device that someone else made: a second one would not see its cache.
    #[error("is attached to {} already, and not by this daemon", .0.display())]
    Foreign(PathBuf),
    /// Someone holds it open.
    #[error("{} is still in use", .0.display())]
    InUse(PathBuf),
    /// It took too long.
    #[error("{0} took too long")]
    Deadline(&'static str, #[source] Overrun),
}

fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> LoopError {
    let action = action.into();
    move |source| LoopError::Io { action, source }
}

/// What a loop device is found by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// `orlop:<id>`; at most 63 bytes.
    pub name: String,
    /// Device and inode number of the file.
    pub file: (u64, u64),
}

/// `/dev/loopN`.
pub fn device(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

/// What is behind a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// Nothing.
    Nothing,
    /// The file that was asked for, attached by us.
    Ours,
    /// That file, attached by someone else.
    Foreign,
    /// Something else.
    Other,
}

/// Looks at one device.
pub fn behind(number: u32, key: &Key) -> io::Result<Behind> {
    match File::open(device(number)) {
        Ok(file) => examine(&file, key),
        // Removed from under us, or a device that has no node.
        Err(e) if matches!(e.raw_os_error(), Some(2 | 6 | 19)) => Ok(Behind::Nothing),
        Err(e) => Err(e),
    }
}

fn examine(file: &File, key: &Key) -> io::Result<Behind> {
    let Some(info) = status(file)? else { return Ok(Behind::Nothing) };
    if (info.device, info.inode) != key.file {
        return Ok(Behind::Other);
    }
    Ok(if info.name() == key.name.as_bytes() { Behind::Ours } else { Behind::Foreign })
}

/// `None`: unbound.
fn status(file: &File) -> io::Result<Option<Info>> {
    // SAFETY: LOOP_GET_STATUS64 fills a struct loop_info64, which `Info` is, of integers only.
    match unsafe { ioctl(file, Getter::<LOOP_GET_STATUS64, Info>::new()) } {
        Ok(i) => Ok(Some(i)),
        Err(Errno::NXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Every bound device whose file has one of `names` as its last component, as sysfs tells it: number
/// and that component. Opens none of them, and does not look at those in `skip`.
pub fn scan(skip: &BTreeSet<u32>, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|n| n.strip_prefix("loop")?.parse::<u32>().ok()) else {
            continue;
        };
        if skip.contains(&number) {
            continue;
        }
        // Absent while nothing is bound. Not UTF-8: not a path of ours.
        let Ok(file) = std::fs::read_to_string(format!("/sys/block/loop{number}/loop/backing_file")) else {
            continue;
        };
        if let Some(last) = Path::new(file.trim_end_matches('\n')).file_name().and_then(|f| f.to_str())
            && wanted(last)
        {
            found.push((number, last.to_string()));
        }
    }
    Ok(found)
}

/// The device that a file is behind, whoever bound it and under whatever name.
pub fn on(file: (u64, u64)) -> io::Result<Option<u32>> {
    // The name in it does not matter: no device of ours has none.
    let key = Key { name: String::new(), file };
    for (number, _) in scan(&BTreeSet::new(), |_| true)? {
        if matches!(behind(number, &key)?, Behind::Ours | Behind::Foreign) {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

/// Looks for the device that `key` describes among those bound to a file called `file_name`.
pub fn find(key: &Key, file_name: &str, skip: &BTreeSet<u32>) -> Result<Option<u32>, LoopError> {
    let candidates = scan(skip, |f| f == file_name).map_err(io_error("listing loop devices"))?;
    for (number, _) in candidates {
        match behind(number, key).map_err(io_error(format!("looking at loop{number}")))? {
            Behind::Ours => return Ok(Some(number)),
            Behind::Foreign => return Err(LoopError::Foreign(device(number))),
            Behind::Nothing | Behind::Other => {}
        }
    }
    Ok(None)
}

/// Binds a file to a free device. The caller has made sure that it has none yet.
pub fn attach(file: &File, key: &Key, deadline: &Deadline) -> Result<u32, LoopError> {
    let number = bind(file, key, FREE, deadline)?;
    if !is_limited(number) {
        return Ok(number);
    }
    detach(number, key, deadline)?;
    bind(file, key, NEW, deadline)
}

fn bind(file: &File, key: &Key, from: Number, deadline: &Deadline) -> Result<u32, LoopError> {
    let control = File::options()
        .read(true)
        .write(true)
        .open(CONTROL)
        .map_err(io_error(format!("opening {CONTROL}")))?;
    let mut info = Info { flags: LO_FLAGS_DIRECT_IO, ..Info::EMPTY };
    // The last byte stays 0: the kernel reads it as a C string.
    for (to, from) in info.file_name[..63].iter_mut().zip(key.name.bytes()) {
        *to = from;
    }
    let fd = u32::try_from(file.as_raw_fd()).unwrap_or(u32::MAX);
    let config = Config { fd, block_size: BLOCK_SIZE, info, reserved: [0; 8] };
    loop {
        deadline.check().map_err(|o| LoopError::Deadline("finding a free loop device", o))?;
        // SAFETY: see the implementation of Ioctl.
        let number = unsafe { ioctl(&control, Number { ..from }) }
            .map_err(|e| io_error("finding a free loop device")(e.into()))?;
        let node = open_node(number, deadline)?;
        // SAFETY: LOOP_CONFIGURE reads a struct loop_config, which `Config` is; the descriptor in it
        // is that of `file`, which outlives the call (the kernel takes its own reference).
        match unsafe { ioctl(&node, Setter::<LOOP_CONFIGURE, Config>::new(config)) } {
            Ok(()) => {
                let info = status(&node).map_err(io_error(format!("looking at loop{number}")))?;
                if info.is_some_and(|i| i.flags & LO_FLAGS_DIRECT_IO == 0) {
                    tracing::warn!(device = number, name = key.name, "loop device without direct I/O");
                }
                return Ok(number);
            }
            // Another process, or another thread of this one, took that number first.
            Err(Errno::BUSY) => std::thread::yield_now(),
            Err(e) => return Err(io_error(format!("attaching to loop{number}"))(e.into())),
        }
    }
}

/// Opens a device's node for writing, waiting a moment for it to appear.
fn open_node(number: u32, deadline: &Deadline) -> Result<File, LoopError> {
    let path = device(number);
    let open = || File::options().read(true).write(true).open(&path);
    if let Ok(f) = open() {
        return Ok(f);
    }
    // devtmpfs makes the node before the uevent is sent; a /dev that udev fills is later.
    let short = deadline.at_most(NODE);
    let mut events = Uevents::open().map_err(io_error("listening to kernel events"))?;
    match events.wait(&short, || open().ok()) {
        Ok(Some(f)) => Ok(f),
        Ok(None) => open().map_err(io_error(format!("opening {}", path.display()))),
        Err(e) => Err(io_error("waiting for kernel events")(e)),
    }
}

/// Takes back an earlier detach that has not happened yet because someone held the device open.
pub fn keep(number: u32) -> io::Result<()> {
    let file = File::open(device(number))?;
    if let Some(mut info) = status(&file)?
        && info.flags & LO_FLAGS_AUTOCLEAR != 0
    {
        info.flags &= !LO_FLAGS_AUTOCLEAR;
        // SAFETY: LOOP_SET_STATUS64 reads a struct loop_info64, which `Info` is.
        unsafe { ioctl(&file, Setter::<LOOP_SET_STATUS64, Info>::new(info)) }?;
    }
    Ok(())
}

/// Tells the device that its file has grown.
pub fn refresh_size(number: u32) -> io::Result<()> {
    let file = File::open(device(number))?;
    // SAFETY: LOOP_SET_CAPACITY takes no argument.
    Ok(unsafe { ioctl(&file, NoArg::<LOOP_SET_CAPACITY>::new()) }?)
}

/// Unbinds a device that is `key`'s as soon as nobody has it open, even if this process does not live to see that.
/// Whether it was bound to that.
pub fn let_go(number: u32, key: &Key) -> Result<bool, LoopError> {
    let what = || format!("detaching loop{number}");
    match File::open(device(number)) {
        Ok(file) => {
            // Examined and unbound through one descriptor. Whoever could rebind the number in between
            // would have to unbind it first, and only we unbind ours.
            if examine(&file, key).map_err(io_error(what()))? != Behind::Ours {
                return Ok(false);
            }
            // SAFETY: LOOP_CLR_FD takes no argument; 0 is passed for it.
            match unsafe { ioctl(&file, IntegerSetter::<LOOP_CLR_FD>::new_usize(0)) } {
                Ok(()) | Err(Errno::NXIO) => Ok(true),
                Err(e) => Err(io_error(what())(e.into())),
            }
        }
        Err(e) if matches!(e.raw_os_error(), Some(2 | 6 | 19)) => Ok(false),
        Err(e) => Err(io_error(what())(e)),
    }
}

/// Unbinds a device that is `key`'s, and waits until it is unbound. Fine if it is not bound to that.
pub fn detach(number: u32, key: &Key, deadline: &Deadline) -> Result<(), LoopError> {
    let what = || format!("detaching loop{number}");
    let mut events = Uevents::open().map_err(io_error("listening to kernel events"))?;
    let limited = is_limited(number);
    if !let_go(number, key)? {
        return Ok(());
    }
    // Unbinding happens when the last opener closes: that was us, or is udev a moment later, or is
    // someone who still uses it.
    let gone = || (!bound(number)).then_some(());
    match events.wait(&deadline.at_most(DETACH), gone).map_err(io_error(what()))? {
        Some(()) => {
            if limited {
                remove(number);
            }
            Ok(())
        }
        None => match behind(number, key).map_err(io_error(what()))? {
            Behind::Ours => Err(LoopError::InUse(device(number))),
            _ => Ok(()),
        },
    }
}

fn bound(number: u32) -> bool {
    Path::new(&format!("/sys/block/loop{number}/loop/backing_file")).exists()
}

fn queue(number: u32, attribute: &str) -> PathBuf {
    PathBuf::from(format!("/sys/block/loop{number}/queue/{attribute}"))
}

/// Keeps a device from giving space back that its file has reserved (a thick image): no discards, and
/// no zeros written by discarding (kernels before 6.17 have no switch for the latter).
///
/// There is no way back: the kernel keeps the limit over detaching, for whatever is attached to that
/// number next, and refuses to raise it again. So [`detach`] removes such a device, and [`attach`]
/// passes over one that is left from a daemon that was killed.
pub fn forbid_discard(number: u32) -> io::Result<()> {
    block::forbid_discard(&format!("loop{number}"))
}

/// Whether a device could give space back and has been forbidden to.
fn is_limited(number: u32) -> bool {
    let read = |attribute| std::fs::read_to_string(queue(number, attribute)).unwrap_or_default();
    read("discard_max_bytes").trim() == "0" && !["", "0"].contains(&read("discard_max_hw_bytes").trim())
}

/// Removes an unbound device, so that its number comes back without limits.
fn remove(number: u32) {
    let Ok(control) = File::options().read(true).write(true).open(CONTROL) else { return };
    let number = number as usize;
    // SAFETY: LOOP_CTL_REMOVE takes the number itself as its argument.
    if let Err(error) = unsafe { ioctl(&control, IntegerSetter::<LOOP_CTL_REMOVE>::new_usize(number)) } {
        // Someone has it open. Whoever is given the number looks at its limits again.
        tracing::debug!(device = number, %error, "a loop device was not removed");
    }
}

/// Device and inode of a file, as a loop device names them.
pub fn file_identity(file: &File) -> io::Result<(u64, u64)> {
    let m = file.metadata()?;
    // The kernel's encoding of a device number and glibc's agree below major 4096, and there are no
    // higher ones.
    Ok((m.dev(), m.ino()))
}
