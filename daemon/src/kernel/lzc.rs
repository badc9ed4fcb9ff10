//! libzfs_core, loaded at run time: what is done often to ZFS, without starting a process for it.
//!
//! Called by ZFS pools, from several threads at once (the library is made for that: requests of one
//! moment share a transaction group). Absent, or of another version, it is not used at all, and the
//! commands do the same work. Errors are errno values.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use rustix::io::Errno;

/// The interface versions that the signatures below are of (OpenZFS 2.0 and later).
const CORE: &str = "libzfs_core.so.3";
const NVPAIR: &str = "libnvpair.so.3";

/// `LZC_DATSET_TYPE_ZVOL` of libzfs_core.h (the spelling is theirs).
const ZVOL: c_int = 3;
/// `NV_UNIQUE_NAME` of libnvpair.h.
const NV_UNIQUE_NAME: c_uint = 1;

type Nvlist = *mut c_void;

/// `lzc_channel_program`: pool, program, limits of instructions and of memory, arguments, result.
type Program = unsafe extern "C" fn(*const c_char, *const c_char, u64, u64, Nvlist, *mut Nvlist) -> c_int;

/// `lzc_receive`: snapshot, properties, origin, whether to replace what is there, whether it is raw, where from.
type Receive = unsafe extern "C" fn(*const c_char, Nvlist, *const c_char, c_int, c_int, c_int) -> c_int;

/// `LZC_SEND_FLAG_EMBED_DATA` and `LZC_SEND_FLAG_LARGE_BLOCK` of libzfs_core.h: blocks as they are, of any size.
const SEND_FLAGS: c_int = 1 | 2;

/// `LZC_SEND_FLAG_LARGE_BLOCK`, `LZC_SEND_FLAG_COMPRESS` and `LZC_SEND_FLAG_RAW` of libzfs_core.h: as little work as can be, where
/// only the records count.
const BLOCKS_FLAGS: c_int = 1 << 1 | 1 << 2;
const RAW_FLAG: c_int = 1 << 3;
/// The object of a zvol that its bytes are in (`ZVOL_OBJ`).
const ZVOL_OBJ: u64 = 1;

/// Limits of a channel program, as zfs-program(8) sets them.
const INSTRUCTIONS: u64 = 10_000_000;
const MEMORY: u64 = 10 << 20;

/// Reads the datasets `d1`, `d2`... as `r1`, `r2`..., each with the user property `k1`, `k2`...; of a zvol the native
/// properties `p1`, `p2`... as `v1`, `v2`..., of a file system `f1`, `f2`... Nothing where one does not exist. Each
/// question costs as much as all the rest, so a native property that has a word `w1`, `w2`... is read only where the
/// user property has that word in quotes, or is not there; and with no native property not even the size.
const READ: &str = r#"
local a = ...
local all = {}
local d = 1
while a["d" .. d] do
    local name = a["d" .. d]
    if zfs.exists(name) then
        local r = {}
        local text = zfs.get_prop(name, a["k" .. d])
        r["text"] = text
        if a["p1"] and not string.find(name, "@", 1, true) then
            local list = "p"
            r["volsize"] = zfs.get_prop(name, "volsize")
            if not r["volsize"] then
                list = "f"
                r["refquota"] = zfs.get_prop(name, "refquota")
            end
            local i = 1
            while a[list .. i] do
                local word = a["w" .. i]
                if not word or not text or string.find(text, '"' .. word .. '"', 1, true) then
                    local v = zfs.get_prop(name, a[list .. i])
                    if v then r["v" .. i] = "" .. v end
                end
                i = i + 1
            end
        end
        all["r" .. d] = r
    end
    d = d + 1
end
return all
"#;

/// How much a dataset uses with all below it, and how much more it could.
const SPACE: &str = r#"
local a = ...
return { used = zfs.get_prop(a["dataset"], "used"), available = zfs.get_prop(a["dataset"], "available") }
"#;

/// Sets a user property.
const SET: &str = r#"
local a = ...
return { error = zfs.sync.set_prop(a["dataset"], a["key"], a["value"]) }
"#;

/// Takes snapshots `s1`, `s2`... and sets the user property `key` of each to `t1`, `t2`...
const SNAPSHOT: &str = r#"
local a = ...
local i = 1
while a["s" .. i] do
    local e = zfs.check.snapshot(a["s" .. i])
    if e ~= 0 then return { error = e } end
    i = i + 1
end
for j = 1, i - 1 do
    local e = zfs.sync.snapshot(a["s" .. j])
    if e == 0 then e = zfs.sync.set_prop(a["s" .. j], a["key"], a["t" .. j]) end
    if e ~= 0 then
        for k = j, 1, -1 do zfs.sync.destroy(a["s" .. k]) end
        return { error = e }
    end
end
return { error = 0 }
"#;

/// What [`Lzc::read`] finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// Its size, if it is a zvol.
    pub volsize: Option<u64>,
    /// What its files may take, if it is a file system; 0 if that is not limited.
    pub refquota: Option<u64>,
    /// The user property that was asked for, if it is set.
    pub text: Option<String>,
    /// The native properties that were asked for, of a zvol or a file system: numbers in decimal, words as zfs(8) has them.
    pub native: Vec<Option<String>>,
}

/// The library, with the functions that are used.
#[derive(Debug)]
pub struct Lzc {
    create: unsafe extern "C" fn(*const c_char, c_int, Nvlist, *mut u8, c_uint) -> c_int,
    clone: unsafe extern "C" fn(*const c_char, *const c_char, Nvlist) -> c_int,
    destroy: unsafe extern "C" fn(*const c_char) -> c_int,
    /// `lzc_load_key`: dataset, whether only to try, key, its length.
    load_key: unsafe extern "C" fn(*const c_char, c_int, *mut u8, c_uint) -> c_int,
    /// `lzc_send`: snapshot, from which one on (none: all of it), where to, flags.
    send: unsafe extern "C" fn(*const c_char, *const c_char, c_int, c_int) -> c_int,
    /// `lzc_send_resume`: the same, and from which object and which of its bytes on.
    send_resume: unsafe extern "C" fn(*const c_char, *const c_char, c_int, c_int, u64, u64) -> c_int,
    receive: Receive,
    /// `lzc_reopen`: pool, whether a scrub begins anew.
    reopen: unsafe extern "C" fn(*const c_char, c_int) -> c_int,
    program: Program,
    program_nosync: Program,
    alloc: unsafe extern "C" fn(*mut Nvlist, c_uint, c_int) -> c_int,
    free: unsafe extern "C" fn(Nvlist),
    add_u64: unsafe extern "C" fn(Nvlist, *const c_char, u64) -> c_int,
    add_string: unsafe extern "C" fn(Nvlist, *const c_char, *const c_char) -> c_int,
    get_list: unsafe extern "C" fn(Nvlist, *const c_char, *mut Nvlist) -> c_int,
    get_i64: unsafe extern "C" fn(Nvlist, *const c_char, *mut i64) -> c_int,
    get_string: unsafe extern "C" fn(Nvlist, *const c_char, *mut *const c_char) -> c_int,
    // What the functions above are in. Never unloaded: see `get`.
    _core: Library,
    _nvpair: Library,
}

/// The library; `None` where it can't be used. Loaded once, for good: another thread may be in it.
pub fn get() -> Option<&'static Lzc> {
    static LZC: OnceLock<Lzc> = OnceLock::new();
    if let Some(lzc) = LZC.get() {
        return Some(lzc);
    }
    // Not remembered when it fails: the zfs module may be loaded later, by the first zpool command.
    match Lzc::load() {
        Ok(lzc) => Some(LZC.get_or_init(|| lzc)),
        Err(reason) => {
            tracing::debug!(reason, "libzfs_core is not used");
            None
        }
    }
}

/// A list of properties that frees itself.
struct Properties<'a> {
    lzc: &'a Lzc,
    list: Nvlist,
}

impl Drop for Properties<'_> {
    fn drop(&mut self) {
        if !self.list.is_null() {
            // SAFETY: `list` came from the library and is freed once.
            unsafe { (self.lzc.free)(self.list) }
        }
    }
}

impl Lzc {
    fn load() -> Result<Self, String> {
        // Opening /dev/zfs can load the module; without the node there is nothing to talk to.
        if !std::path::Path::new("/dev/zfs").exists() {
            return Err("there is no /dev/zfs".into());
        }
        // SAFETY: these libraries run no code of consequence when they are loaded.
        let open = |name: &str| unsafe {
            Library::open(Some(name), RTLD_NOW | RTLD_LOCAL).map_err(|e| e.to_string())
        };
        let nvpair = open(NVPAIR)?;
        let core = open(CORE)?;
        macro_rules! symbol {
            ($library:ident, $name:literal) => {
                // SAFETY: the type of the field is the one that the header of this version declares.
                unsafe { *$library.get($name).map_err(|e| e.to_string())? }
            };
        }
        let init: unsafe extern "C" fn() -> c_int = symbol!(core, b"libzfs_core_init\0");
        let lzc = Self {
            create: symbol!(core, b"lzc_create\0"),
            clone: symbol!(core, b"lzc_clone\0"),
            destroy: symbol!(core, b"lzc_destroy\0"),
            load_key: symbol!(core, b"lzc_load_key\0"),
            send: symbol!(core, b"lzc_send\0"),
            send_resume: symbol!(core, b"lzc_send_resume\0"),
            receive: symbol!(core, b"lzc_receive\0"),
            reopen: symbol!(core, b"lzc_reopen\0"),
            program: symbol!(core, b"lzc_channel_program\0"),
            program_nosync: symbol!(core, b"lzc_channel_program_nosync\0"),
            get_list: symbol!(nvpair, b"nvlist_lookup_nvlist\0"),
            get_i64: symbol!(nvpair, b"nvlist_lookup_int64\0"),
            get_string: symbol!(nvpair, b"nvlist_lookup_string\0"),
            alloc: symbol!(nvpair, b"nvlist_alloc\0"),
            free: symbol!(nvpair, b"nvlist_free\0"),
            add_u64: symbol!(nvpair, b"nvlist_add_uint64\0"),
            add_string: symbol!(nvpair, b"nvlist_add_string\0"),
            _core: core,
            _nvpair: nvpair,
        };
        // SAFETY: takes nothing; counts its callers and opens /dev/zfs for the first.
        match unsafe { init() } {
            0 => Ok(lzc),
            e => Err(io::Error::from_raw_os_error(e).to_string()),
        }
    }

    /// Makes a zvol with number properties (`volsize`, `volblocksize`) and user properties. It exists,
    /// durably, when this returns.
    pub fn create_zvol(
        &self,
        dataset: &str,
        numbers: &[(&str, u64)],
        texts: &[(&str, &str)],
    ) -> io::Result<()> {
        let name = text(dataset)?;
        let properties = self.properties()?;
        for (key, value) in numbers {
            let key = text(key)?;
            // SAFETY: a live list; the key is copied.
            errno(unsafe { (self.add_u64)(properties.list, key.as_ptr(), *value) })?;
        }
        for (key, value) in texts {
            self.add(&properties, key, value)?;
        }
        // SAFETY: name and list live through the call; no wrapping key is given, with length 0.
        errno(unsafe { (self.create)(name.as_ptr(), ZVOL, properties.list, ptr::null_mut(), 0) })
    }

    /// Makes a clone of a snapshot, with user properties. It exists, durably, when this returns.
    pub fn clone_snapshot(&self, snapshot: &str, dataset: &str, texts: &[(&str, &str)]) -> io::Result<()> {
        let (snapshot, name) = (text(snapshot)?, text(dataset)?);
        let properties = self.properties()?;
        for (key, value) in texts {
            self.add(&properties, key, value)?;
        }
        // SAFETY: names and list live through the call.
        errno(unsafe { (self.clone)(name.as_ptr(), snapshot.as_ptr(), properties.list) })
    }

    /// Takes snapshots, all at one instant, each with its own value of a user property. All or none:
    /// each is checked before the first is taken, and all happen in one transaction group.
    pub fn snapshot(&self, pool: &str, key: &str, snapshots: &[(String, String)]) -> io::Result<()> {
        let mut arguments = vec![("key".to_string(), key)];
        for (i, (name, value)) in snapshots.iter().enumerate() {
            arguments.push((format!("s{}", i + 1), name));
            arguments.push((format!("t{}", i + 1), value));
        }
        let arguments: Vec<(&str, &str)> = arguments.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        let answer = self.run(self.program, pool, SNAPSHOT, &arguments)?;
        self.returned_error(&answer)
    }

    /// Destroys one dataset or snapshot: `EEXIST` while it has snapshots or clones, `EBUSY` while it is
    /// open or held.
    pub fn destroy(&self, dataset: &str) -> io::Result<()> {
        let name = text(dataset)?;
        // SAFETY: the name lives through the call.
        errno(unsafe { (self.destroy)(name.as_ptr()) })
    }

    /// Has ZFS open all disks of a zpool anew, which is how it learns of those that are gone.
    pub fn reopen(&self, pool: &str) -> io::Result<()> {
        let name = text(pool)?;
        // SAFETY: the name lives through the call.
        errno(unsafe { (self.reopen)(name.as_ptr(), 0) })
    }

    /// Writes all of a snapshot as a stream, and blocks until it is written or nobody reads it any more (`EPIPE`).
    pub fn send(&self, snapshot: &str, into: BorrowedFd<'_>) -> io::Result<()> {
        let name = text(snapshot)?;
        // SAFETY: name and descriptor live through the call.
        errno(unsafe { (self.send)(name.as_ptr(), ptr::null(), into.as_raw_fd(), SEND_FLAGS) })
    }

    /// Writes what a snapshot of a zvol has that an older one has not, or all of it, from a byte on, for somebody who wants its
    /// records. `raw`: as it is encrypted, so that no key is needed.
    pub fn send_blocks(
        &self,
        snapshot: &str,
        base: Option<&str>,
        into: BorrowedFd<'_>,
        raw: bool,
        from: u64,
    ) -> io::Result<()> {
        let (name, base) = (text(snapshot)?, base.map(text).transpose()?);
        let base = base.as_ref().map_or(ptr::null(), |base| base.as_ptr());
        let flags = BLOCKS_FLAGS | if raw { RAW_FLAG } else { 0 };
        // From the start it is no continuation, which says more about the objects.
        let object = if from == 0 { 0 } else { ZVOL_OBJ };
        // SAFETY: names and descriptor live through the call; no base is a null pointer.
        errno(unsafe { (self.send_resume)(name.as_ptr(), base, into.as_raw_fd(), flags, object, from) })
    }

    /// Reads such a stream into a dataset that has no snapshot, in the place of what is in it, all or nothing. It has
    /// the snapshot of that name then.
    pub fn receive(&self, snapshot: &str, from: BorrowedFd<'_>) -> io::Result<()> {
        let name = text(snapshot)?;
        // SAFETY: name and descriptor live through the call; there are no properties and no origin.
        let code =
            unsafe { (self.receive)(name.as_ptr(), ptr::null_mut(), ptr::null(), 1, 0, from.as_raw_fd()) };
        errno(code)
    }

    /// Loads the raw key of an encrypted dataset, or only tries whether it is that: `EACCES` if it is not,
    /// `EEXIST` if one has been loaded, which is not looked for when it is only tried.
    pub fn load_key(&self, dataset: &str, only_try: bool, key: &[u8]) -> io::Result<()> {
        let name = text(dataset)?;
        // The library wants it writable and does not write to it, nor does anybody else get this copy.
        let mut own = key.to_vec();
        let length = c_uint::try_from(own.len()).unwrap_or(0);
        // SAFETY: name and key live through the call, and the length is the key's.
        let code = unsafe { (self.load_key)(name.as_ptr(), c_int::from(only_try), own.as_mut_ptr(), length) };
        own.fill(0);
        std::hint::black_box(&own);
        errno(code)
    }

    /// Reads of each dataset its size, one user property and any native ones, all at one instant: those of a zvol,
    /// or as many others of a file system, and those with a word only where that is in the user property. `None`: there
    /// is no such dataset.
    pub fn read(
        &self,
        pool: &str,
        datasets: &[(String, &str)],
        native: &[&str],
        of_filesystems: &[&str],
        words: &[Option<&str>],
    ) -> io::Result<Vec<Option<Dataset>>> {
        let numbered = |letter: &str, n: usize| format!("{letter}{}", n + 1);
        let mut arguments: Vec<(String, &str)> = Vec::new();
        for (n, (dataset, key)) in datasets.iter().enumerate() {
            arguments.push((numbered("d", n), dataset));
            arguments.push((numbered("k", n), key));
        }
        for (letter, names) in [("p", native), ("f", of_filesystems)] {
            arguments.extend(names.iter().enumerate().map(|(n, name)| (numbered(letter, n), *name)));
        }
        let words = words.iter().enumerate();
        arguments.extend(words.filter_map(|(n, word)| Some((numbered("w", n), (*word)?))));
        let arguments: Vec<(&str, &str)> = arguments.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        let answer = self.run(self.program_nosync, pool, READ, &arguments)?;
        let all = self.result(&answer)?;
        let found = |n| match self.list(all, &numbered("r", n))? {
            Some(list) => self.dataset(list, native.len()).map(Some),
            None => Ok(None),
        };
        (0..datasets.len()).map(found).collect()
    }

    /// Bytes that a zpool's datasets use, and that they could take more.
    pub fn space(&self, pool: &str) -> io::Result<(u64, u64)> {
        let answer = self.run(self.program_nosync, pool, SPACE, &[("dataset", pool)])?;
        let result = self.result(&answer)?;
        Ok((self.number(result, c"used")?, self.number(result, c"available")?))
    }

    /// A number that is in a live list.
    fn number(&self, list: Nvlist, key: &CStr) -> io::Result<u64> {
        let mut number = 0i64;
        // SAFETY: a live list; the number is where the answer goes.
        errno(unsafe { (self.get_i64)(list, key.as_ptr(), &mut number) })?;
        u64::try_from(number).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    /// One dataset of an answer.
    fn dataset(&self, list: Nvlist, natives: usize) -> io::Result<Dataset> {
        let size = |key| match self.number(list, key) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            size => size.map(Some),
        };
        let (volsize, refquota) = (size(c"volsize")?, size(c"refquota")?);
        let native: io::Result<_> = (1..=natives).map(|i| self.string(list, &format!("v{i}"))).collect();
        Ok(Dataset { volsize, refquota, text: self.string(list, "text")?, native: native? })
    }

    /// Sets a user property of one dataset. It is durable when this returns.
    pub fn set_text(&self, pool: &str, dataset: &str, key: &str, value: &str) -> io::Result<()> {
        let arguments = [("dataset", dataset), ("key", key), ("value", value)];
        let answer = self.run(self.program, pool, SET, &arguments)?;
        self.returned_error(&answer)
    }

    /// The error number that a program returned.
    fn returned_error(&self, answer: &Properties<'_>) -> io::Result<()> {
        let mut error = 0i64;
        // SAFETY: the result is part of `answer`, which is live; the number is where the answer goes.
        errno(unsafe { (self.get_i64)(self.result(answer)?, c"error".as_ptr(), &mut error) })?;
        errno(c_int::try_from(error).unwrap_or(c_int::MAX))
    }

    /// Runs a channel program: it sees and changes the pool at one instant.
    fn run(
        &self,
        with: Program,
        pool: &str,
        program: &str,
        arguments: &[(&str, &str)],
    ) -> io::Result<Properties<'_>> {
        let (pool, program) = (text(pool)?, text(program)?);
        let list = self.properties()?;
        for (key, value) in arguments {
            self.add(&list, key, value)?;
        }
        let mut answer = Properties { lzc: self, list: ptr::null_mut() };
        // SAFETY: all live through the call; the answer, which also comes with an error, is freed by
        // its owner.
        let code = unsafe {
            with(pool.as_ptr(), program.as_ptr(), INSTRUCTIONS, MEMORY, list.list, &mut answer.list)
        };
        errno(code)?;
        Ok(answer)
    }

    /// What the program returned. It lives as long as `answer`.
    fn result(&self, answer: &Properties<'_>) -> io::Result<Nvlist> {
        self.list(answer.list, "return")?
            .ok_or_else(|| io::Error::from_raw_os_error(Errno::NOENT.raw_os_error()))
    }

    /// A list in a live list, as long as that lives. `None`: it is not there.
    fn list(&self, list: Nvlist, key: &str) -> io::Result<Option<Nvlist>> {
        let key = text(key)?;
        let mut found: Nvlist = ptr::null_mut();
        // SAFETY: a live list; `found` is where the address goes.
        match unsafe { (self.get_list)(list, key.as_ptr(), &mut found) } {
            0 => Ok(Some(found)),
            e if e == Errno::NOENT.raw_os_error() => Ok(None),
            e => Err(io::Error::from_raw_os_error(e)),
        }
    }

    /// A text in a live list. `None`: it is not there.
    fn string(&self, list: Nvlist, key: &str) -> io::Result<Option<String>> {
        let key = text(key)?;
        let mut value: *const c_char = ptr::null();
        // SAFETY: a live list; `value` is where the address goes.
        match unsafe { (self.get_string)(list, key.as_ptr(), &mut value) } {
            0 => {}
            e if e == Errno::NOENT.raw_os_error() => return Ok(None),
            e => return Err(io::Error::from_raw_os_error(e)),
        }
        // SAFETY: the list holds the text, ended by a zero, and is still live.
        let value = unsafe { CStr::from_ptr(value) };
        let value = value.to_str().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        Ok(Some(value.to_string()))
    }

    fn add(&self, to: &Properties<'_>, key: &str, value: &str) -> io::Result<()> {
        let (key, value) = (text(key)?, text(value)?);
        // SAFETY: a live list; key and value are copied.
        errno(unsafe { (self.add_string)(to.list, key.as_ptr(), value.as_ptr()) })
    }

    fn properties(&self) -> io::Result<Properties<'_>> {
        let mut list: Nvlist = ptr::null_mut();
        // SAFETY: `list` is where the address of the new list goes.
        errno(unsafe { (self.alloc)(&mut list, NV_UNIQUE_NAME, 0) })?;
        Ok(Properties { lzc: self, list })
    }
}

fn text(s: &str) -> io::Result<CString> {
    CString::new(s).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

fn errno(code: c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}
