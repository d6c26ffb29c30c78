//! Ethernet frames as they are, sent and measured beside the kernel's own stack.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use crate::netns::{Namespace, run_in};

/// Length of `struct virtio_net_hdr` (include/uapi/linux/virtio_net.h).
const NET_HEADER: usize = 10;
/// Where its `hdr_len` is: how much of a frame is to lie in the linear part of the kernel's buffer.
const LINEAR: usize = 2;

/// Room of a socket that watches. The usual 200 KiB hold one super-packet or two: the others would go by unseen.
const WATCHED: libc::c_int = 256 << 20;

/// A packet socket at a device.
#[derive(Debug)]
pub struct Frames {
    socket: OwnedFd,
}

impl Frames {
    /// Opens one that sends.
    ///
    /// # Errors
    /// Not root, or there is no such device.
    pub fn open(at: &impl AsRef<Namespace>, device: &str) -> io::Result<Self> {
        Self::at(at, device, 0)
    }

    /// Opens one that sees all that comes and goes, and keeps [`WATCHED`] bytes of it until somebody looks.
    ///
    /// # Errors
    /// As [`Frames::open`].
    pub fn watch(at: &impl AsRef<Namespace>, device: &str) -> io::Result<Self> {
        let watching = Self::at(at, device, (libc::ETH_P_ALL as u16).to_be())?;
        let bytes: libc::c_int = WATCHED;
        // SAFETY: the option is of the size that is passed.
        let failed = unsafe {
            libc::setsockopt(
                watching.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const bytes).cast(),
                size_of::<libc::c_int>() as u32,
            ) < 0
        };
        if failed { Err(io::Error::last_os_error()) } else { Ok(watching) }
    }

    fn at(at: &impl AsRef<Namespace>, device: &str, protocol: u16) -> io::Result<Self> {
        let name = CString::new(device)?;
        run_in(at.as_ref(), || {
            // SAFETY: takes no pointers.
            let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the descriptor was just made and belongs to nobody else.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: a C string that lives on.
            let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
            if index == 0 {
                return Err(io::Error::last_os_error());
            }
            let yes: libc::c_int = 1;
            // SAFETY: plain bits, all zero to begin with.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = index as i32;
            // SAFETY: option and address are of the sizes that are passed.
            let failed = unsafe {
                libc::setsockopt(
                    fd,
                    libc::SOL_PACKET,
                    libc::PACKET_VNET_HDR,
                    (&raw const yes).cast(),
                    size_of::<libc::c_int>() as u32,
                ) < 0
                    || libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32) < 0
            };
            if failed { Err(io::Error::last_os_error()) } else { Ok(Self { socket }) }
        })
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// It is longer than the device allows, for one.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.transmit(frame, 0)
    }

    /// Sends a frame of more than a page, of which no more than the Ethernet header lies in the linear part of the kernel's
    /// buffer (`packet_alloc_skb`, net/packet/af_packet.c).
    ///
    /// # Errors
    /// As [`Frames::send`].
    pub fn send_scattered(&self, frame: &[u8]) -> io::Result<()> {
        assert!(frame.len() > 4096, "the kernel keeps {} bytes in one piece", frame.len());
        self.transmit(frame, 14)
    }

    fn transmit(&self, frame: &[u8], linear: u16) -> io::Result<()> {
        let mut bytes = vec![0; NET_HEADER];
        bytes[LINEAR..LINEAR + 2].copy_from_slice(&linear.to_ne_bytes());
        bytes.extend(frame);
        // SAFETY: the bytes live as long as the call.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The length of the longest frame seen since the last call, and how many there were.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn longest(&self) -> io::Result<(usize, usize)> {
        let (mut longest, mut count) = (0, 0);
        let mut buffer = [0_u8; 64];
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        loop {
            // SAFETY: the buffer has the length that is passed.
            let length = unsafe {
                libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags)
            };
            if length < 0 {
                let error = io::Error::last_os_error();
                return if error.kind() == io::ErrorKind::WouldBlock {
                    Ok((longest, count))
                } else {
                    Err(error)
                };
            }
            longest = longest.max((length as usize).saturating_sub(NET_HEADER));
            count += 1;
        }
    }
}
