//! The system calls behind namespaces and mounts, each wrapped once.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr,
};

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A path as the kernel takes it.
///
/// # Errors
/// The path contains a NUL byte.
pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Moves the calling thread into a new namespace of the given kind (`CLONE_NEWNET`, `CLONE_NEWNS`).
///
/// Safe to call between fork and exec.
///
/// # Errors
/// Missing privileges.
pub(crate) fn unshare(kind: libc::c_int) -> io::Result<()> {
    // SAFETY: takes no pointers; affects only the calling thread's namespaces.
    check(unsafe { libc::unshare(kind) })
}

/// Moves the calling thread into the network namespace behind `fd`.
///
/// Safe to call between fork and exec.
///
/// # Errors
/// Missing privileges, or `fd` is no network namespace.
pub(crate) fn enter_netns(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no pointers and the descriptor is open for the whole call.
    check(unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// `mount(2)`; allocates nothing, so that it may run between fork and exec.
///
/// # Errors
/// Whatever the kernel answers.
pub(crate) fn mount(
    source: &CStr,
    target: &CStr,
    fs_type: Option<&CStr>,
    flags: libc::c_ulong,
) -> io::Result<()> {
    // SAFETY: all pointers are NUL-terminated strings that live through the call, or null where the kernel allows it.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            fs_type.map_or(ptr::null(), CStr::as_ptr),
            flags,
            ptr::null(),
        )
    })
}

/// Detaches the mount at `target`, at once for everyone who looks it up.
///
/// # Errors
/// Nothing is mounted there, or missing privileges.
pub(crate) fn unmount(target: &CStr) -> io::Result<()> {
    // SAFETY: a NUL-terminated string that lives through the call.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) })
}

/// Sends `signal` to one process.
///
/// # Errors
/// No such process, or missing privileges.
pub(crate) fn kill(pid: u32, signal: libc::c_int) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: takes no pointers; `pid` is positive, hence exactly one process.
    check(unsafe { libc::kill(pid, signal) })
}
