//! The client's side.

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::server::{ASK, BULK, CLOSE, DATAGRAM, KEEP, WINDOW};
use super::{Kind, Measured, Order, Quantiles, settle};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Part of the time that goes by before anything counts: caches, the first connection.
const WARM_UP: u32 = 10;
/// Bytes a write of a stream.
const CHUNK: usize = 256 << 10;

/// Works off orders until standard input ends.
///
/// # Errors
/// Standard output is gone, or an order is none.
pub fn run(cpu: usize) -> Result<()> {
    settle(cpu);
    for line in std::io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let told = measure(&order).map_err(|error| format!("{error:#}"));
        println!("{}", serde_json::to_string(&told)?);
    }
    Ok(())
}

fn measure(order: &Order) -> Result<Measured> {
    let Order { kind, to, time } = *order;
    match kind {
        Kind::Requests => requests(to, time),
        Kind::Connections => connections(to, time),
        Kind::Datagrams => datagrams(to, time),
        Kind::NewFlows => new_flows(to, time),
        Kind::Stream => stream(to, time),
        Kind::DatagramStream => datagram_stream(to, time),
    }
}

/// Repeats `work`, which tells how long its connect took, for some time.
fn repeat(time: Duration, mut work: impl FnMut() -> Result<Option<Duration>>) -> Result<Measured> {
    let begin = Instant::now();
    while begin.elapsed() < time / WARM_UP {
        work()?;
    }
    let (mut whole, mut connect) = (Vec::with_capacity(1 << 16), Vec::new());
    let begin = Instant::now();
    let mut last = begin;
    while last.duration_since(begin) < time {
        let connected = work()?;
        let now = Instant::now();
        whole.push(nanoseconds(now.duration_since(last)));
        connect.extend(connected.map(nanoseconds));
        last = now;
    }
    let rate = whole.len() as f64 / last.duration_since(begin).as_secs_f64();
    Ok(Measured { rate, whole: Quantiles::of(whole), connect: Quantiles::of(connect) })
}

fn nanoseconds(time: Duration) -> u32 {
    u32::try_from(time.as_nanos()).unwrap_or(u32::MAX)
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    // A blocking connect, as most programs do it; what listens answers at once.
    let stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn requests(to: SocketAddr, time: Duration) -> Result<Measured> {
    let mut stream = connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    repeat(time, || {
        stream.write_all(&[KEEP])?;
        stream.read_exact(&mut byte)?;
        Ok(None)
    })
}

fn connections(to: SocketAddr, time: Duration) -> Result<Measured> {
    let mut byte = [0];
    repeat(time, || {
        let begin = Instant::now();
        let mut stream = TcpStream::connect(to)?;
        let connected = begin.elapsed();
        stream.write_all(&[CLOSE])?;
        stream.read_exact(&mut byte)?;
        // The server closes first: the time that closed connections wait is spent on its side.
        ensure!(stream.read(&mut byte)? == 0, "the server was to close");
        Ok(Some(connected))
    })
}

fn socket(to: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket)
}

fn datagrams(to: SocketAddr, time: Duration) -> Result<Measured> {
    let socket = socket(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    repeat(time, || {
        socket.send(&[ASK])?;
        socket.recv(&mut byte)?;
        Ok(None)
    })
}

fn new_flows(to: SocketAddr, time: Duration) -> Result<Measured> {
    let mut byte = [0];
    repeat(time, || {
        let socket = socket(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(&[ASK])?;
        socket.recv(&mut byte)?;
        Ok(None)
    })
}

fn stream(to: SocketAddr, time: Duration) -> Result<Measured> {
    let mut stream = connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let chunk = vec![0; CHUNK];
    stream.write_all(&[BULK])?;
    let begin = Instant::now();
    while begin.elapsed() < time {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    Ok(Measured {
        rate: u64::from_be_bytes(count) as f64 / begin.elapsed().as_secs_f64(),
        whole: None,
        connect: None,
    })
}

fn datagram_stream(to: SocketAddr, time: Duration) -> Result<Measured> {
    let socket = socket(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let (mut plain, mut asking) = ([BULK; DATAGRAM], [BULK; DATAGRAM]);
    plain[1] = 0;
    asking[1] = ASK;
    let (mut byte, mut answered) = ([0], 0_u64);
    let window = || -> Result<()> {
        for _ in 1..WINDOW {
            socket.send(&plain)?;
        }
        Ok(socket.send(&asking).map(drop)?)
    };
    window()?;
    let begin = Instant::now();
    while begin.elapsed() < time {
        // One window is under way while the answer to the one before is waited for.
        window()?;
        socket.recv(&mut byte)?;
        answered += 1;
    }
    let seconds = begin.elapsed().as_secs_f64();
    socket.recv(&mut byte)?;
    let bytes = answered * (WINDOW * DATAGRAM) as u64;
    Ok(Measured { rate: bytes as f64 / seconds, whole: None, connect: None })
}
