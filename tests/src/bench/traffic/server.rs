//! The server's side: what to do stands in the first byte of a connection or datagram.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use anyhow::{Context as _, Result};
use socket2::{Domain, Socket, Type};

use super::settle;

/// Answer and keep the connection.
pub(super) const KEEP: u8 = 1;
/// Answer and close.
pub(super) const CLOSE: u8 = 2;
/// Bytes, or datagrams, until the end; how many is the answer.
pub(super) const BULK: u8 = 3;
/// Answer a datagram.
pub(super) const ASK: u8 = 4;
/// Bytes of a datagram in a stream of them.
pub(super) const DATAGRAM: usize = 1400;
/// Datagrams for which there is one answer. Two windows are under way at most: their memory (a page and more each) fits into a
/// socket's default receive buffer of 208 KiB.
pub(super) const WINDOW: usize = 32;

/// Serves at these ports until standard input ends, and says `ready`.
///
/// # Errors
/// A port is taken.
pub fn run(cpu: usize, ports: &[u16]) -> Result<()> {
    settle(cpu);
    for port in ports {
        let listener: TcpListener = bound(Type::STREAM, *port)?.into();
        let socket: UdpSocket = bound(Type::DGRAM, *port)?.into();
        // Threads are where the one that made them is.
        thread::spawn(move || {
            // One client at a time: every measurement opens one connection after the other.
            while let Ok((stream, _)) = listener.accept() {
                // The client sees how it ended.
                let _served = serve(stream);
            }
        });
        thread::spawn(move || datagrams(&socket));
    }
    println!("ready");
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing)?;
    Ok(())
}

/// A socket at a port of all addresses of both families.
fn bound(kind: Type, port: u16) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, None)?;
    socket.set_only_v6(false)?;
    let at = std::net::SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    socket.bind(&at.into()).with_context(|| format!("port {port}"))?;
    if kind == Type::STREAM {
        socket.listen(1024)?;
    }
    Ok(socket)
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    loop {
        if stream.read(&mut byte)? == 0 {
            return Ok(());
        }
        match byte[0] {
            KEEP => stream.write_all(&byte)?,
            BULK => return bulk(stream),
            _ => return stream.write_all(&byte),
        }
    }
}

fn bulk(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut buffer, mut count) = (vec![0; 256 << 10], 0_u64);
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return stream.write_all(&count.to_be_bytes());
        }
        count += length as u64;
    }
}

fn datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        // An error is about an answer that reached nobody.
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let asked = buffer[0] == ASK || length > 1 && buffer[1] == ASK;
        if asked {
            let _sent = socket.send_to(&buffer[..1], from);
        }
    }
}
