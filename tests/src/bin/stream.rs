//! A writer whose every record is acknowledged or not, for running on an initiator.
//!
//! `stream write DEVICE ACKS OFFSET COUNT` writes numbered 4 KiB records one after another from OFFSET
//! on, each past the page cache and flushed to stable storage before its number is appended to ACKS, some a
//! second; with `unflushed` behind COUNT they are not flushed, and must be durable because the target said so, and
//! come as fast as they can, or with `paused` behind that some a second, too.
//! A record that can't be written ends it with an error: through a power cut of the target it must wait.
//! `stream verify DEVICE ACKS OFFSET [FROM [EXCEPT...]]` reads back every record that was acknowledged, or those from number
//! FROM on, or all but some.
//!
//! `stream fill DEVICE OFFSET MIB` writes bytes that were never written before, flushes them, and prints the
//! sum of what lies in the first MIB from OFFSET on, as `stream sum DEVICE OFFSET MIB` does. Made for
//! emulated processors: SHA-256 and the kernel's random numbers take them a second for every few MiB.
//!
//! Copied into guests: needs nothing but the C library.

#![allow(clippy::print_stdout)]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// The largest logical block that a device of ours has.
const RECORD: usize = 4096;
/// Linux, on every architecture that Orlop runs on but 32-bit ARM.
const O_DIRECT: i32 = 0o40000;

/// Between two flushed records. A writer that takes all of an emulated machine slows down what is tested beside it,
/// and every record is read back in the end.
const PAUSE: Duration = Duration::from_millis(10);

/// What is filled and summed at a time.
const BLOCK: usize = 1 << 20;

/// A buffer that starts where O_DIRECT wants it.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let memory = vec![0u8; len + RECORD];
        let start = memory.as_ptr().align_offset(RECORD);
        Self { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

const ODD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Bytes that look like noise, the same for the same seed.
fn noise(buffer: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(ODD) | 1;
    for word in buffer.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

/// What record `n` holds: a pattern that no other record has, with its number in front.
fn record(buffer: &mut [u8], n: u64) {
    noise(buffer, n);
    buffer[..8].copy_from_slice(&n.to_le_bytes());
}

/// Goes on with a sum: every bit of every word, and the order of the words, count.
fn sum_on(sum: u64, buffer: &[u8]) -> u64 {
    buffer.chunks_exact(8).fold(sum, |sum, word| {
        let word = word.try_into().map_or(0, u64::from_le_bytes);
        (sum.rotate_left(23) ^ word).wrapping_mul(ODD)
    })
}

fn open(device: &str, to_write: bool) -> Result<File> {
    // Never O_CREAT: on a device that has gone, that would make a plain file and write there happily.
    let options = OpenOptions::new().read(true).write(to_write).custom_flags(O_DIRECT).open(device);
    options.with_context(|| format!("opening {device}"))
}

fn write(device: &str, acks: &str, offset: u64, count: u64, flush: bool, pause: bool) -> Result<()> {
    let file = open(device, true)?;
    let mut acks = OpenOptions::new().create(true).append(true).open(acks)?;
    let mut buffer = Aligned::new(RECORD);
    for n in 0..count {
        record(buffer.bytes(), n);
        file.write_all_at(buffer.bytes(), offset + n * RECORD as u64)
            .with_context(|| format!("record {n}"))?;
        if flush {
            file.sync_data().with_context(|| format!("flushing record {n}"))?;
        }
        writeln!(acks, "{n}")?;
        if pause {
            // There is nothing to wait for: it is how fast it writes.
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

fn verify(device: &str, acks: &str, offset: u64, from: u64, except: &[u64]) -> Result<()> {
    let file = open(device, false)?;
    let mut text = String::new();
    File::open(acks)?.read_to_string(&mut text)?;
    // The last line may be half written if the writer was killed: then it was not acknowledged.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut buffer = Aligned::new(BLOCK);
    let mut want = vec![0u8; RECORD];
    let numbers = whole.lines().map(str::parse).collect::<std::result::Result<Vec<u64>, _>>()?;
    ensure!(
        numbers.iter().zip(0..).all(|(n, count)| *n == count),
        "acknowledgements are not the numbers in order"
    );
    let numbers = &numbers[usize::try_from(from)?.min(numbers.len())..];
    // Many at a time: each request takes an emulated network ten milliseconds.
    for numbers in numbers.chunks(BLOCK / RECORD) {
        let found = &mut buffer.bytes()[..numbers.len() * RECORD];
        file.read_exact_at(found, offset + numbers[0] * RECORD as u64)?;
        for (n, found) in numbers.iter().zip(found.chunks_exact(RECORD)) {
            record(&mut want, *n);
            ensure!(found == want || except.contains(n), "record {n} was acknowledged and is not there");
        }
    }
    println!("{}", numbers.len());
    Ok(())
}

fn fill(device: &str, offset: u64, mib: u64) -> Result<()> {
    let file = open(device, true)?;
    let mut buffer = Aligned::new(BLOCK);
    // Never the same bytes twice: what is there already must not pass for what was written.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = now.as_nanos() as u64;
    for n in 0..mib {
        noise(buffer.bytes(), seed.wrapping_add(n));
        let at = offset + n * BLOCK as u64;
        file.write_all_at(buffer.bytes(), at).with_context(|| format!("writing at {at}"))?;
    }
    file.sync_all().context("flushing")?;
    sum(device, offset, mib)
}

fn sum(device: &str, offset: u64, mib: u64) -> Result<()> {
    let file = open(device, false)?;
    let mut buffer = Aligned::new(BLOCK);
    let mut sum = mib;
    for n in 0..mib {
        let at = offset + n * BLOCK as u64;
        file.read_exact_at(buffer.bytes(), at).with_context(|| format!("reading at {at}"))?;
        sum = sum_on(sum, buffer.bytes());
    }
    println!("{sum:016x}");
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["write", device, acks, offset, count, how @ ..] => {
            let (flush, pause) = match how {
                [] => (true, true),
                ["unflushed"] => (false, false),
                ["unflushed", "paused"] => (false, true),
                _ => bail!("{how:?} is not a way to write"),
            };
            write(device, acks, offset.parse()?, count.parse()?, flush, pause)
        }
        ["verify", device, acks, offset] => verify(device, acks, offset.parse()?, 0, &[]),
        ["verify", device, acks, offset, from, except @ ..] => {
            let except = except.iter().map(|n| Ok(n.parse()?)).collect::<Result<Vec<_>>>()?;
            verify(device, acks, offset.parse()?, from.parse()?, &except)
        }
        ["fill", device, offset, mib] => fill(device, offset.parse()?, mib.parse()?),
        ["sum", device, offset, mib] => sum(device, offset.parse()?, mib.parse()?),
        _ => bail!(
            "usage: stream write DEVICE ACKS OFFSET COUNT [unflushed [paused]] | stream verify DEVICE ACKS OFFSET [FROM [EXCEPT...]] | \
             stream fill DEVICE OFFSET MIB | stream sum DEVICE OFFSET MIB"
        ),
    }
}
