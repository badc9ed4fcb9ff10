//! A writer whose every record is acknowledged or not, for running on an initiator.
//!
//! `stream write DEVICE ACKS OFFSET COUNT` writes numbered 4 KiB records one after another from OFFSET
//! on, each past the page cache and flushed to stable storage before its number is appended to ACKS; with
//! `unflushed` behind COUNT they are not flushed, and must be durable because the target said so.
//! A record that can't be written ends it with an error: through a power cut of the target it must wait.
//! `stream verify DEVICE ACKS OFFSET` reads back every record that was acknowledged.
//!
//! Copied into guests: needs nothing but the C library.

#![allow(clippy::print_stdout)]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use anyhow::{Context, Result, bail, ensure};

/// The largest logical block that a device of ours has.
const RECORD: usize = 4096;
/// Linux, on every architecture that Orlop runs on but 32-bit ARM.
const O_DIRECT: i32 = 0o40000;

/// A record-sized buffer that starts at a multiple of its size, as O_DIRECT wants it.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new() -> Self {
        let memory = vec![0u8; 2 * RECORD];
        let start = memory.as_ptr().align_offset(RECORD);
        Self { memory, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + RECORD]
    }
}

/// What record `n` holds: its number, then a pattern that no other record has.
fn fill(buffer: &mut [u8], n: u64) {
    let mut state = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for (i, word) in buffer.chunks_exact_mut(8).enumerate() {
        if i == 0 {
            word.copy_from_slice(&n.to_le_bytes());
        } else {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
    }
}

fn open(device: &str) -> Result<File> {
    // Never O_CREAT: on a device that has gone, that would make a plain file and write there happily.
    let options = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(device);
    options.with_context(|| format!("opening {device}"))
}

fn write(device: &str, acks: &str, offset: u64, count: u64, flush: bool) -> Result<()> {
    let file = open(device)?;
    let mut acks = OpenOptions::new().create(true).append(true).open(acks)?;
    let mut buffer = Aligned::new();
    for n in 0..count {
        fill(buffer.bytes(), n);
        file.write_all_at(buffer.bytes(), offset + n * RECORD as u64)
            .with_context(|| format!("record {n}"))?;
        if flush {
            file.sync_data().with_context(|| format!("flushing record {n}"))?;
        }
        writeln!(acks, "{n}")?;
    }
    Ok(())
}

fn verify(device: &str, acks: &str, offset: u64) -> Result<()> {
    let file = open(device)?;
    let mut text = String::new();
    File::open(acks)?.read_to_string(&mut text)?;
    // The last line may be half written if the writer was killed: then it was not acknowledged.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut buffer = Aligned::new();
    let mut want = vec![0u8; RECORD];
    let mut count = 0u64;
    for line in whole.lines() {
        let n: u64 = line.parse()?;
        ensure!(n == count, "acknowledgement {n} where {count} was due");
        file.read_exact_at(buffer.bytes(), offset + n * RECORD as u64)?;
        fill(&mut want, n);
        ensure!(buffer.bytes() == want, "record {n} was acknowledged and is not there");
        count += 1;
    }
    println!("{count}");
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["write", device, acks, offset, count] => write(device, acks, offset.parse()?, count.parse()?, true),
        ["write", device, acks, offset, count, "unflushed"] => {
            write(device, acks, offset.parse()?, count.parse()?, false)
        }
        ["verify", device, acks, offset] => verify(device, acks, offset.parse()?),
        _ => bail!("usage: stream write DEVICE ACKS OFFSET COUNT | stream verify DEVICE ACKS OFFSET"),
    }
}
