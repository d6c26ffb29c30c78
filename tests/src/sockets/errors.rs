//! What the network tells a UDP socket about the datagrams it sent: path MTU and error queue (ip(7), ipv6(7)).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    ptr,
    time::{Duration, Instant},
};

use libc::c_int;
use serde::{Deserialize, Serialize};

use super::Errno;

/// An entry of a socket's error queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The error that the application gets.
    pub errno: Errno,
    /// Type and code of the ICMP message; zeros for an error of the own kernel.
    pub kind: (u8, u8),
    /// The path MTU, for `EMSGSIZE`.
    pub mtu: u32,
    /// Who sent the message; nobody for an error of the own kernel.
    pub offender: Option<IpAddr>,
    /// Where the datagram was sent to.
    pub to: SocketAddr,
}

/// Makes the socket one of an application that sizes its datagrams itself: none is fragmented, and every error is kept for
/// it.
///
/// # Errors
/// That of `setsockopt`.
pub(super) fn make_strict(socket: &UdpSocket) -> io::Result<()> {
    if socket.local_addr()?.is_ipv4() {
        set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)?;
        set(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)
    } else {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)?;
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)
    }
}

/// Lets what the socket sends live for that many hops.
///
/// # Errors
/// That of `setsockopt`.
pub(super) fn set_hops(socket: &UdpSocket, hops: u8) -> io::Result<()> {
    if socket.local_addr()?.is_ipv4() {
        set(socket, libc::IPPROTO_IP, libc::IP_TTL, hops.into())
    } else {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, hops.into())
    }
}

/// What the kernel knows as the path MTU towards a connected socket's peer.
///
/// # Errors
/// That of `getsockopt`.
pub(super) fn mtu(socket: &UdpSocket) -> io::Result<u32> {
    let (level, name) = if socket.local_addr()?.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU)
    };
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: value and length live through the call, and the length is that of the value.
    let failed = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length)
    };
    if failed != 0 { Err(io::Error::last_os_error()) } else { Ok(value as u32) }
}

fn set(socket: &UdpSocket, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the value lives through the call, and the length is its own.
    let failed =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if failed != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Waits for an entry of the error queue.
///
/// # Errors
/// That of `recvmsg`; `EAGAIN` when nothing was told in time.
pub(super) fn next(socket: &UdpSocket, patience: Duration) -> io::Result<Told> {
    let begin = Instant::now();
    loop {
        match read(socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && begin.elapsed() < patience => {
                let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: 0, revents: 0 };
                // SAFETY: one entry, which lives through the call. Errors are reported whatever is asked for.
                unsafe { libc::poll(&raw mut poll, 1, 50) };
            }
            told => return told,
        }
    }
}

/// Room for control messages, aligned as they are.
#[repr(C, align(8))]
struct Control([u8; 512]);

fn read(socket: &UdpSocket) -> io::Result<Told> {
    let mut control = Control([0; 512]);
    let mut payload = [0_u8; 16];
    // SAFETY: plain bytes, for which zeros are as good as any.
    let (mut name, mut message) =
        unsafe { (std::mem::zeroed::<libc::sockaddr_storage>(), std::mem::zeroed::<libc::msghdr>()) };
    let mut vector = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of_val(&name) as libc::socklen_t;
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the header's pointers lead to memory of the lengths that stand beside them, which lives through the call.
    if unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel filled the control messages in, and the header says how many bytes of them there are.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: not null, so that a whole header lies within the control messages.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        if (level, kind) == (libc::IPPROTO_IP, libc::IP_RECVERR)
            || (level, kind) == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        {
            // SAFETY: what follows such a header is an error and the address of who sent it, of 28 bytes at most; there is
            // room for both behind the header, whatever the kernel wrote.
            let (error, offender) = unsafe {
                let error: *const libc::sock_extended_err = libc::CMSG_DATA(header).cast();
                (ptr::read_unaligned(error), address(error.add(1).cast()))
            };
            let icmp = error.ee_origin != libc::SO_EE_ORIGIN_LOCAL;
            // SAFETY: the kernel filled the name in.
            let to = unsafe { address((&raw const name).cast()) };
            return Ok(Told {
                errno: Errno(error.ee_errno as i32),
                kind: (error.ee_type, error.ee_code),
                mtu: error.ee_info,
                offender: offender.filter(|_| icmp).map(|address| address.ip()),
                to: to.ok_or_else(|| io::Error::other("an error about no address"))?,
            });
        }
        // SAFETY: as above.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Err(io::Error::other("an entry of the error queue without an error"))
}

/// The address in a socket address of either family.
///
/// # Safety
/// At least 28 bytes can be read there.
unsafe fn address(at: *const u8) -> Option<SocketAddr> {
    // SAFETY: the caller vouches for 28 bytes, the length of the longer of the two.
    unsafe {
        match c_int::from(ptr::read_unaligned(at.cast::<libc::sa_family_t>())) {
            libc::AF_INET => {
                let address: libc::sockaddr_in = ptr::read_unaligned(at.cast());
                let ip = Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes());
                Some((ip, u16::from_be(address.sin_port)).into())
            }
            libc::AF_INET6 => {
                let address: libc::sockaddr_in6 = ptr::read_unaligned(at.cast());
                let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
                Some((ip, u16::from_be(address.sin6_port)).into())
            }
            _ => None,
        }
    }
}
