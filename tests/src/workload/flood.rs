//! Frames as they are, many of them: what no socket of the kernel would send.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::Frames;

/// Frames without end, as fast as one thread goes, until it is stopped.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, u64)>,
}

impl Flood {
    /// Starts it; `next` writes the frame of that number in place of the last one.
    pub fn start(sender: Frames, mut next: impl FnMut(u64, &mut Vec<u8>) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut frame, mut sent, mut failed) = (Vec::new(), 0, 0);
            while !stopped.load(Ordering::Relaxed) {
                next(sent + failed, &mut frame);
                match sender.send(&frame) {
                    Ok(()) => sent += 1,
                    Err(_) => failed += 1,
                }
            }
            (sent, failed)
        });
        Self { stop, thread }
    }

    /// Ends it: how many frames were sent, and how many the kernel did not take.
    ///
    /// # Panics
    /// When the thread panicked.
    pub fn stop(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the flood ends")
    }
}
