//! Netlink requests that no library of ours speaks: a socket, messages and their attributes.
//!
//! Messages mirror `include/uapi/linux/netlink.h`.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const HEADER: usize = 16;
/// `struct nlattr`.
const ATTRIBUTE: usize = 4;
/// Flags in an attribute's type: nested, and in network byte order.
const KIND: u16 = 0x3fff;
const BUFFER: usize = 32 * 1024;
/// How long the kernel may take to answer, which it does at once.
static PATIENCE: libc::timeval = libc::timeval { tv_sec: 2, tv_usec: 0 };

/// A connection to the kernel, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    /// Opens one of a protocol (`NETLINK_SOCK_DIAG`, …).
    pub(super) fn open(protocol: libc::c_int) -> io::Result<Self> {
        // SAFETY: plain calls; a descriptor that is returned belongs to nobody else, and the option is a live timeval.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let socket = OwnedFd::from_raw_fd(fd);
            let size = size_of::<libc::timeval>() as libc::socklen_t;
            let option = (&raw const PATIENCE).cast();
            if libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, option, size) != 0 {
                return Err(io::Error::last_os_error());
            }
            socket
        };
        Ok(Self(socket))
    }

    /// Sends a request.
    pub(super) fn send(&self, kind: u16, flags: i32, payload: &[u8]) -> io::Result<()> {
        let length = HEADER + payload.len();
        let mut message = Vec::with_capacity(length);
        message.extend((length as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
        // Sequence number and port: one request at a time needs neither.
        message.extend([0; 8]);
        message.extend(payload);
        // SAFETY: the buffer is live and as long as said.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Reads until the answer is complete: to its end, for a dump, or to the acknowledgement.
    pub(super) fn answers(&self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            // SAFETY: the buffer is live and as long as said.
            let got = unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            if got < 0 {
                return Err(io::Error::last_os_error());
            }
            let mut rest = &buffer[..got as usize];
            while let Some((kind, payload, next)) = split(rest) {
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return outcome(payload),
                    _ => take(payload),
                }
                rest = next;
            }
        }
    }
}

/// Kind and payload of the first message, and what comes behind it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let payload = bytes.get(HEADER..length)?;
    Some((kind, payload, behind(bytes, length)))
}

/// Messages and attributes begin at multiples of four bytes.
fn behind(bytes: &[u8], length: usize) -> &[u8] {
    bytes.get(length.next_multiple_of(4)..).unwrap_or_default()
}

/// The error number of an acknowledgement; 0 is success.
fn outcome(payload: &[u8]) -> io::Result<()> {
    match payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Adds an attribute to a payload.
pub(super) fn push_attribute(payload: &mut Vec<u8>, kind: u16, value: &[u8]) {
    payload.extend(((ATTRIBUTE + value.len()) as u16).to_ne_bytes());
    payload.extend(kind.to_ne_bytes());
    payload.extend(value);
    payload.resize(payload.len().next_multiple_of(4), 0);
}

/// Kinds and values of attributes that lie one behind the other, as far as they are whole.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & KIND;
        let value = bytes.get(ATTRIBUTE..length)?;
        bytes = behind(bytes, length);
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_are_cut_off_end_the_reading() {
        let mut bytes = vec![0; 40];
        bytes[..4].copy_from_slice(&18u32.to_ne_bytes());
        let (_, payload, rest) = split(&bytes).unwrap();
        assert_eq!((payload.len(), rest.len()), (2, 20));
        assert!(split(&bytes[..17]).is_none() && split(&bytes[..3]).is_none());
    }

    #[test]
    fn attributes_are_read_as_they_were_written_and_to_the_last_whole_one() {
        let mut bytes = Vec::new();
        push_attribute(&mut bytes, 1, b"netdev\0");
        push_attribute(&mut bytes, 0x8002, &[]);
        push_attribute(&mut bytes, 3, &7u64.to_ne_bytes());
        let read: Vec<(u16, &[u8])> = attributes(&bytes).collect();
        assert_eq!(read, [(1, b"netdev\0".as_slice()), (2, &[]), (3, &7u64.to_ne_bytes())]);
        assert_eq!(attributes(&bytes[..bytes.len() - 1]).count(), 2);
        assert_eq!(attributes(&[3, 0, 0, 0, 0]).count(), 0, "shorter than itself");
    }
}
