//! Encrypted devices: LUKS2 through cryptsetup(8).
//!
//! Called by pools whose medium does not encrypt. A key goes to the command through a pipe: it is in no list of
//! processes and in no file. The header is the format's own, so a volume can be opened by hand, with its key and
//! without this daemon.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::Deadline;
use super::exec::{ExecError, Output, Tool};

/// What the header takes at the start of a device: as much as cryptsetup gives it by default.
pub const HEADER: u64 = 16 << 20;

/// Sectors as small as any host's, whatever the device has: a volume's logical blocks must not change with its disk.
const SECTOR: &str = "512";

/// Its exit status where the key does not open anything.
const WRONG_KEY: i32 = 2;

/// Whether the key opens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opens {
    /// It does.
    Yes,
    /// It is another's.
    WrongKey,
}

/// Finds the command.
pub fn tool() -> Result<Tool, ExecError> {
    Tool::locate("cryptsetup")
}

/// Puts a header on a device or a file, in the place of whatever is there.
pub fn format(path: &Path, uuid: &str, key: &[u8], deadline: &Deadline) -> Result<(), ExecError> {
    let offset = (HEADER / 512).to_string();
    // The key is random, so nothing is gained by making it slow to try.
    let args = ["luksFormat", "--batch-mode", "--type", "luks2", "--cipher", "aes-xts-plain64", "--key-size"];
    let more = ["512", "--hash", "sha256", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    let last = ["--sector-size", SECTOR, "--offset", &offset, "--uuid", uuid, "--key-file", "-"];
    run(&[&args[..], &more, &last].concat(), &[path.as_os_str()], key, deadline)?.success().map(drop)
}

/// The UUID in a header, as text. `None`: there is no header of LUKS2.
pub fn header(path: &Path) -> io::Result<Option<String>> {
    // struct luks2_hdr_disk: magic, version, and behind sizes, names and salt the UUID, ended by a zero.
    let mut bytes = [0u8; 208];
    match File::open(path)?.read_exact(&mut bytes) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    if bytes[..8] != *b"LUKS\xba\xbe\0\x02" {
        return Ok(None);
    }
    let uuid = bytes[168..].split(|b| *b == 0).next().unwrap_or_default();
    Ok(Some(String::from_utf8_lossy(uuid).into_owned()))
}

/// Whether a key opens a device.
pub fn try_key(path: &Path, key: &[u8], deadline: &Deadline) -> Result<Opens, ExecError> {
    let args = ["open", "--type", "luks2", "--test-passphrase", "--key-file", "-"];
    opens(run(&args, &[path.as_os_str()], key, deadline)?)
}

/// Opens a device under a name of the device mapper. `discard`: what is discarded there goes through to the device.
pub fn open(
    path: &Path,
    name: &str,
    key: &[u8],
    discard: bool,
    read_only: bool,
    deadline: &Deadline,
) -> Result<Opens, ExecError> {
    // No keyring: a key in it would have to be brought again to make the device larger.
    let mut args = vec!["open", "--type", "luks2", "--disable-keyring", "--key-file", "-"];
    if discard {
        args.push("--allow-discards");
    }
    if read_only {
        args.push("--readonly");
    }
    opens(run(&args, &[path.as_os_str(), name.as_ref()], key, deadline)?)
}

/// Makes an open one as large as its device, which has grown.
pub fn resize(name: &str, deadline: &Deadline) -> Result<(), ExecError> {
    tool()?.run(&["resize", name], deadline)?.success().map(drop)
}

fn opens(output: Output) -> Result<Opens, ExecError> {
    match output.code {
        Some(WRONG_KEY) => Ok(Opens::WrongKey),
        _ => output.success().map(|_| Opens::Yes),
    }
}

fn run(
    options: &[&str],
    operands: &[&std::ffi::OsStr],
    key: &[u8],
    deadline: &Deadline,
) -> Result<Output, ExecError> {
    let options = options.iter().map(OsString::from);
    let args: Vec<OsString> = options.chain(operands.iter().map(OsString::from)).collect();
    tool()?.run_with(&args, Some(key), deadline)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_header_is_known_by_its_uuid() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(header(file.path()).unwrap(), None, "too short");
        let mut bytes = vec![0u8; 4096];
        std::fs::write(file.path(), &bytes).unwrap();
        assert_eq!(header(file.path()).unwrap(), None);
        bytes[..8].copy_from_slice(b"LUKS\xba\xbe\0\x02");
        bytes[168..172].copy_from_slice(b"0190");
        std::fs::write(file.path(), &bytes).unwrap();
        assert_eq!(header(file.path()).unwrap().as_deref(), Some("0190"));
        // LUKS1, of which we make none.
        bytes[7] = 1;
        std::fs::write(file.path(), &bytes).unwrap();
        assert_eq!(header(file.path()).unwrap(), None);
    }
}
