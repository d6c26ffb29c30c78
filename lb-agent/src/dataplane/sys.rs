//! bpf(2) calls that aya does not offer: links by interface index, and maps read and emptied in batches.
//!
//! Structures mirror `union bpf_attr` and `struct bpf_*_info` of `include/uapi/linux/bpf.h`; all padding is spelled out.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_MAP_DELETE_ELEM: i32 = 3;
const BPF_MAP_GET_NEXT_KEY: i32 = 4;
const BPF_OBJ_PIN: i32 = 6;
const BPF_OBJ_GET: i32 = 7;
const BPF_PROG_GET_FD_BY_ID: i32 = 13;
const BPF_MAP_GET_FD_BY_ID: i32 = 14;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_MAP_LOOKUP_BATCH: i32 = 24;
const BPF_MAP_DELETE_BATCH: i32 = 27;
const BPF_LINK_CREATE: i32 = 28;
const BPF_LINK_UPDATE: i32 = 29;
const BPF_LINK_DETACH: i32 = 34;

const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;
/// `BPF_XDP` of `enum bpf_attach_type`.
const ATTACH_XDP: u32 = 37;
/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE`, include/uapi/linux/if_link.h.
const XDP_GENERIC: u32 = 1 << 1;
const XDP_NATIVE: u32 = 1 << 2;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;

/// Calls bpf(2) with an attribute structure; the kernel takes what it does not get as zero.
fn bpf<T>(command: i32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is a live, initialised structure without padding of which the kernel is told the size; every
    // pointer inside was made by the caller from a live buffer of the size the command works on.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn bpf_fd<T>(command: i32, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the command returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn path_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// The side of a device a program is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Side {
    Ingress,
    Egress,
}

impl Side {
    const fn tcx_attach_type(self) -> u32 {
        match self {
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    zero: u32,
    expected_revision: u64,
}

/// Attaches a program through TCX: before all others at ingress, after all others at egress, so that programs of
/// the network plugin see the translated flow on both ways.
pub(crate) fn tcx_link_create(program: BorrowedFd<'_>, interface: u32, side: Side) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: raw(program),
        target_ifindex: interface,
        attach_type: side.tcx_attach_type(),
        flags: if side == Side::Ingress { BPF_F_BEFORE } else { BPF_F_AFTER },
        relative_fd: 0,
        zero: 0,
        expected_revision: 0,
    };
    bpf_fd(BPF_LINK_CREATE, &mut attr)
}

/// Attaches an XDP program (Linux 5.9) in the device's driver or, if not `native`, in the receive path. A device takes one
/// program.
pub(crate) fn xdp_link_create(program: BorrowedFd<'_>, interface: u32, native: bool) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: raw(program),
        target_ifindex: interface,
        attach_type: ATTACH_XDP,
        flags: if native { XDP_NATIVE } else { XDP_GENERIC },
        relative_fd: 0,
        zero: 0,
        expected_revision: 0,
    };
    bpf_fd(BPF_LINK_CREATE, &mut attr)
}

/// Attaches a program to a cgroup, beside those that are there (Linux 5.7).
pub(crate) fn cgroup_link_create(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: raw(program),
        target_ifindex: raw(cgroup),
        attach_type,
        flags: 0,
        relative_fd: 0,
        zero: 0,
        expected_revision: 0,
    };
    bpf_fd(BPF_LINK_CREATE, &mut attr)
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Replaces the program of a link; packets see the old one or the new one, never none.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate { link_fd: raw(link), new_prog_fd: raw(program), flags: 0, old_prog_fd: 0 };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Takes the program of a link away at once (Linux 5.9). Without it, that happens some time after the last descriptor and
/// the pin are gone.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = raw(link);
    bpf(BPF_LINK_DETACH, &mut attr).map(drop)
}

#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

fn info_by_fd<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attr =
        InfoByFd { fd: raw(fd), length: size_of::<T>() as u32, info: std::ptr::from_mut(info) as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// Where a link to a device is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceLinkInfo {
    /// Interface index, 0 when the device is gone or the link was detached.
    pub(crate) interface: u32,
    /// Id of its program.
    pub(crate) program: u32,
}

/// What the kernel knows of a link; `None` when it is no TCX link.
pub(crate) fn tcx_link_info(link: BorrowedFd<'_>) -> io::Result<Option<DeviceLinkInfo>> {
    device_link_info(link, BPF_LINK_TYPE_TCX)
}

/// What the kernel knows of a link; `None` when it is no XDP link.
pub(crate) fn xdp_link_info(link: BorrowedFd<'_>) -> io::Result<Option<DeviceLinkInfo>> {
    device_link_info(link, BPF_LINK_TYPE_XDP)
}

fn device_link_info(link: BorrowedFd<'_>, kind: u32) -> io::Result<Option<DeviceLinkInfo>> {
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        program: u32,
        zero: u32,
        interface: u32,
        attach_type: u32,
        rest: [u64; 4],
    }
    let mut info = Info::default();
    info_by_fd(link, &mut info)?;
    Ok((info.kind == kind).then_some(DeviceLinkInfo { interface: info.interface, program: info.program }))
}

/// Where a cgroup link is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CgroupLinkInfo {
    /// Id of the cgroup, 0 when it is gone or the link was detached.
    pub(crate) cgroup: u64,
    /// Id of its program.
    pub(crate) program: u32,
}

/// What the kernel knows of a link; `None` when it is no cgroup link.
pub(crate) fn cgroup_link_info(link: BorrowedFd<'_>) -> io::Result<Option<CgroupLinkInfo>> {
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        program: u32,
        zero: u32,
        cgroup: u64,
        attach_type: u32,
        zero_too: u32,
        rest: [u64; 3],
    }
    let mut info = Info::default();
    info_by_fd(link, &mut info)?;
    Ok((info.kind == BPF_LINK_TYPE_CGROUP)
        .then_some(CgroupLinkInfo { cgroup: info.cgroup, program: info.program }))
}

/// Shape of a map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MapInfo {
    /// Number of a `bpf_map_type`.
    pub(crate) kind: u32,
    /// Id of the map.
    pub(crate) id: u32,
    /// Bytes of a key.
    pub(crate) key_size: u32,
    /// Bytes of a value.
    pub(crate) value_size: u32,
    /// Number of elements at most.
    pub(crate) max_entries: u32,
    /// Flags of its creation.
    pub(crate) flags: u32,
}

/// What the kernel knows of a map.
pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    info_by_fd(map, &mut info)?;
    Ok(info)
}

/// What the kernel knows of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProgramInfo {
    /// Id.
    pub(crate) id: u32,
    /// Hash of its instructions as they were loaded, map descriptors left out: the same object gives the same tag.
    pub(crate) tag: [u8; 8],
    /// Nanoseconds of the boot clock when it was loaded.
    pub(crate) loaded: u64,
    /// Ids of its maps.
    pub(crate) maps: Vec<u32>,
}

/// What the kernel knows of a program.
pub(crate) fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    /// More than any object of ours has.
    const MAPS: usize = 128;
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        tag: [u8; 8],
        jited_length: u32,
        translated_length: u32,
        jited: u64,
        translated: u64,
        loaded: u64,
        user: u32,
        map_count: u32,
        maps: u64,
    }
    let mut maps = vec![0u32; MAPS];
    let mut info = Info { map_count: MAPS as u32, maps: maps.as_mut_ptr() as u64, ..Info::default() };
    info_by_fd(program, &mut info)?;
    maps.truncate(info.map_count as usize);
    Ok(ProgramInfo { id: info.id, tag: info.tag, loaded: info.loaded, maps })
}

#[repr(C)]
struct Id {
    id: u32,
    next_id: u32,
    flags: u32,
}

/// Opens a program by its id.
pub(crate) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(BPF_PROG_GET_FD_BY_ID, &mut Id { id, next_id: 0, flags: 0 })
}

/// Opens a map by its id.
pub(crate) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(BPF_MAP_GET_FD_BY_ID, &mut Id { id, next_id: 0, flags: 0 })
}

/// Name of a map, as far as the kernel keeps it: 15 bytes.
pub(crate) fn map_name(map: BorrowedFd<'_>) -> io::Result<String> {
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        shape: MapInfo,
        name: [u8; 16],
    }
    let mut info = Info::default();
    info_by_fd(map, &mut info)?;
    let end = info.name.iter().position(|byte| *byte == 0).unwrap_or(info.name.len());
    Ok(String::from_utf8_lossy(&info.name[..end]).into_owned())
}

/// Id of a program.
pub(crate) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = [0u32; 2];
    info_by_fd(program, &mut info)?;
    Ok(info[1])
}

#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Pins a map, program or link.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    let mut attr = Object { path: path.as_ptr() as u64, fd: raw(fd), flags: 0 };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens what is pinned at a path.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = path_string(path)?;
    let mut attr = Object { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    bpf_fd(BPF_OBJ_GET, &mut attr)
}

#[repr(C)]
struct Element {
    map_fd: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Reads the value of `key` into `value`, which has the size the kernel writes (for per-CPU maps a value for every
/// possible CPU, each rounded up to eight bytes). False when there is none.
pub(crate) fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = Element {
        map_fd: raw(map),
        zero: 0,
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    found(bpf(BPF_MAP_LOOKUP_ELEM, &mut attr))
}

/// Stores `value`, of the size that [`lookup`] reads, under `key`.
pub(crate) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr = Element {
        map_fd: raw(map),
        zero: 0,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Deletes `key`; false when it was not there.
pub(crate) fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut attr = Element { map_fd: raw(map), zero: 0, key: key.as_ptr() as u64, value: 0, flags: 0 };
    found(bpf(BPF_MAP_DELETE_ELEM, &mut attr))
}

/// The key after `key` (the first one for `None`) into `next`; false at the end.
pub(crate) fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let mut attr = Element {
        map_fd: raw(map),
        zero: 0,
        key: key.map_or(0, |key| key.as_ptr() as u64),
        value: next.as_mut_ptr() as u64,
        flags: 0,
    };
    found(bpf(BPF_MAP_GET_NEXT_KEY, &mut attr))
}

fn found(result: io::Result<i32>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Where a batched reading of a hash map has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    position: u32,
    begun: bool,
}

/// Elements read by one [`lookup_batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchRead {
    /// How many.
    pub(crate) count: usize,
    /// True when the map has no more.
    pub(crate) end: bool,
}

/// Reads as many elements as the buffers hold, from `cursor` on, and moves it.
///
/// `ENOSPC` means that one hash bucket holds more elements than the buffers; `EINVAL` that the kernel has no batches.
pub(crate) fn lookup_batch(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    keys: &mut [u8],
    values: &mut [u8],
    capacity: usize,
) -> io::Result<BatchRead> {
    let mut out = 0u32;
    let mut attr = Batch {
        in_batch: if cursor.begun { std::ptr::from_ref(&cursor.position) as u64 } else { 0 },
        out_batch: std::ptr::from_mut(&mut out) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: capacity as u32,
        map_fd: raw(map),
        elem_flags: 0,
        flags: 0,
    };
    let more = found(bpf(BPF_MAP_LOOKUP_BATCH, &mut attr))?;
    *cursor = Cursor { position: out, begun: true };
    Ok(BatchRead { count: attr.count as usize, end: !more })
}

/// Deletes `count` keys that lie one behind the other and returns how many the kernel got through before it met
/// one that is not there (which is not an error: the datapath deletes, too).
pub(crate) fn delete_batch(map: BorrowedFd<'_>, keys: &[u8], count: usize) -> io::Result<usize> {
    let mut attr = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: 0,
        count: count as u32,
        map_fd: raw(map),
        elem_flags: 0,
        flags: 0,
    };
    found(bpf(BPF_MAP_DELETE_BATCH, &mut attr))?;
    Ok(attr.count as usize)
}

/// Lifts the limit on locked memory, which kernels before 5.11 charge maps to.
pub(crate) fn unlimit_locked_memory() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: plain call with a pointer to a live structure. A refusal shows later as a map that cannot be made.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) };
}

fn timespec(call: impl FnOnce(*mut libc::timespec) -> i32) -> io::Result<libc::timespec> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    if call(&mut time) == 0 { Ok(time) } else { Err(io::Error::last_os_error()) }
}

/// Timer interrupts a second (`CONFIG_HZ`): the unit of the kernel's jiffies.
pub(crate) fn jiffies_per_second() -> io::Result<u32> {
    // SAFETY: the pointer is to a live timespec.
    let tick = timespec(|time| unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, time) })?;
    Ok((1_000_000_000 / tick.tv_nsec.clamp(1, 1_000_000_000)) as u32)
}

/// Seconds of the monotonic clock, which is what the programs stamp connections with.
pub(crate) fn monotonic_seconds() -> io::Result<u32> {
    // SAFETY: the pointer is to a live timespec.
    let now = timespec(|time| unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, time) })?;
    Ok(now.tv_sec as u32)
}

/// Nanoseconds of the monotonic clock.
pub(crate) fn monotonic_nanos() -> io::Result<u64> {
    // SAFETY: the pointer is to a live timespec.
    let now = timespec(|time| unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, time) })?;
    Ok(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

/// True when `path` lies on a file system of bpf(2).
pub(crate) fn is_bpffs(path: &Path) -> io::Result<bool> {
    is_on(path, libc::BPF_FS_MAGIC)
}

/// True when `path` lies in a cgroup v2 hierarchy.
pub(crate) fn is_cgroup2(path: &Path) -> io::Result<bool> {
    is_on(path, libc::CGROUP2_SUPER_MAGIC)
}

fn is_on(path: &Path, magic: libc::c_long) -> io::Result<bool> {
    let path = path_string(path)?;
    let mut info = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the path is a C string and `info` has the size of a statfs.
    if unsafe { libc::statfs(path.as_ptr(), info.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed is a valid statfs, and the call filled it.
    let kind = unsafe { info.assume_init() }.f_type;
    // Signed with glibc, unsigned with musl.
    Ok(kind as libc::c_long == magic)
}

/// Cookie of the calling thread's network namespace: the number that programs know it by. `None` before Linux 5.14.
pub(crate) fn netns_cookie() -> io::Result<Option<u64>> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let (mut cookie, mut length) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the socket is open, and the kernel writes at most `length` bytes to a live u64.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(Some(cookie)),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
            error => Err(error),
        },
    }
}

/// Mounts a file system for bpf(2) at `path`.
pub(crate) fn mount_bpffs(path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    // SAFETY: all strings are C strings, and data may be null.
    let result = unsafe {
        libc::mount(c"bpf".as_ptr(), path.as_ptr(), c"bpf".as_ptr(), libc::MS_NOSUID, std::ptr::null())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
