//! Large TCP transfers whose every byte is checked.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use super::{
    NetError, in_time,
    netexec::listen_tcp,
    tcp::{self, TcpOptions},
};
use crate::netns::Namespace;

/// Bytes a write: more than a super-packet holds, which is never longer than what one write left to send where the receiver
/// keeps up.
const CHUNK: usize = 1 << 20;

/// Which end sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The client sends.
    Upload,
    /// The server sends.
    Download,
}

/// The outcome of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkReport {
    /// Bytes transferred.
    pub bytes: u64,
    /// Checksum of the content, the same at both ends.
    pub checksum: u64,
    /// From connecting to the receiver's confirmation.
    pub elapsed: Duration,
}

impl BulkReport {
    /// Gigabits a second.
    pub fn gbit_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / 1e9 / self.elapsed.as_secs_f64()
    }
}

/// A server for large transfers. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct Bulk {
    _tasks: JoinSet<()>,
}

impl Bulk {
    /// Starts it on `port` of all addresses. It listens when this returns.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn start(at: &impl AsRef<Namespace>, port: u16) -> anyhow::Result<Self> {
        at.as_ref()
            .run(async move {
                let listener = listen_tcp(None, port).await.with_context(|| format!("TCP port {port}"))?;
                let mut tasks = JoinSet::new();
                tasks.spawn(async move {
                    let mut connections = JoinSet::new();
                    while let Ok((stream, _)) = listener.accept().await {
                        while connections.try_join_next().is_some() {}
                        connections.spawn(async move {
                            // The client sees how it ended.
                            let _served = serve(stream).await;
                        });
                    }
                });
                Ok(Self { _tasks: tasks })
            })
            .await
    }

    /// Transfers `bytes` bytes of content made from `seed` between `at` and the server at `to`, and checks that the
    /// receiver got exactly them.
    ///
    /// # Errors
    /// The connection failed, took longer than `limit`, or the content differs ([`NetError::BadAnswer`]).
    pub async fn transfer(
        at: &impl AsRef<Namespace>,
        to: SocketAddr,
        direction: Direction,
        bytes: u64,
        seed: u64,
        limit: Duration,
    ) -> Result<BulkReport, NetError> {
        at.as_ref().run(async move { in_time(limit, transfer(to, direction, bytes, seed)).await }).await
    }
}

async fn transfer(
    to: SocketAddr,
    direction: Direction,
    bytes: u64,
    seed: u64,
) -> Result<BulkReport, NetError> {
    let begin = Instant::now();
    let mut stream = tcp::connect(to, TcpOptions::default()).await?;
    stream.write_u8(u8::from(direction == Direction::Download)).await?;
    stream.write_u64(bytes).await?;
    stream.write_u64(seed).await?;
    let (ours, theirs) = match direction {
        Direction::Upload => (send(&mut stream, bytes, seed).await?, stream.read_u64().await?),
        Direction::Download => {
            let theirs = receive(&mut stream, bytes).await?;
            (checksum_of(bytes, seed), theirs)
        }
    };
    if ours != theirs {
        return Err(NetError::BadAnswer(format!("content has checksum {theirs:x} instead of {ours:x}")));
    }
    Ok(BulkReport { bytes, checksum: ours, elapsed: begin.elapsed() })
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let download = stream.read_u8().await? == 1;
    let (bytes, seed) = (stream.read_u64().await?, stream.read_u64().await?);
    if download {
        send(&mut stream, bytes, seed).await?;
    } else {
        let checksum = receive(&mut stream, bytes).await?;
        stream.write_u64(checksum).await?;
    }
    stream.shutdown().await
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: u64, seed: u64) -> std::io::Result<u64> {
    let (mut content, mut checksum, mut buffer) = (Content(seed), Checksum::default(), vec![0; CHUNK]);
    let mut left = bytes;
    while left > 0 {
        let length = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        content.fill(&mut buffer);
        checksum.add(&buffer[..length]);
        stream.write_all(&buffer[..length]).await?;
        left -= length as u64;
    }
    Ok(checksum.finish())
}

async fn receive(stream: &mut (impl AsyncRead + Unpin), bytes: u64) -> std::io::Result<u64> {
    let (mut checksum, mut buffer) = (Checksum::default(), vec![0; CHUNK]);
    let mut left = bytes;
    while left > 0 {
        // Chunks of the same size at both ends: the checksum depends on where they end.
        let length = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        stream.read_exact(&mut buffer[..length]).await?;
        checksum.add(&buffer[..length]);
        left -= length as u64;
    }
    Ok(checksum.finish())
}

fn checksum_of(bytes: u64, seed: u64) -> u64 {
    let (mut content, mut checksum, mut buffer) = (Content(seed), Checksum::default(), vec![0; CHUNK]);
    let mut left = bytes;
    while left > 0 {
        let length = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        content.fill(&mut buffer);
        checksum.add(&buffer[..length]);
        left -= length as u64;
    }
    checksum.finish()
}

/// Pseudo-random content: a sequence in which misplaced, repeated and missing bytes show.
struct Content(u64);

impl Content {
    fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_exact_mut(8) {
            // A step of splitmix64.
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word.copy_from_slice(&(mixed ^ (mixed >> 27)).to_le_bytes());
        }
    }
}

/// FNV-1a over words of eight bytes: order and content matter.
struct Checksum(u64);

impl Default for Checksum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = (self.0 ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_sees_one_flipped_bit_and_swapped_words() {
        let mut content = vec![0; 4096];
        Content(7).fill(&mut content);
        let sum = |bytes: &[u8]| {
            let mut checksum = Checksum::default();
            checksum.add(bytes);
            checksum.finish()
        };
        let right = sum(&content);
        assert_eq!(right, checksum_of(4096, 7));
        assert_ne!(right, checksum_of(4096, 8));
        for position in [0, 1000, 4095] {
            let mut wrong = content.clone();
            wrong[position] ^= 1;
            assert_ne!(sum(&wrong), right, "bit at {position}");
        }
        content.swap(0, 8);
        assert_ne!(sum(&content), right);
    }
}
