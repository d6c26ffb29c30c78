//! Packets that their device summed up (`CHECKSUM_COMPLETE`): the kernel compares the sum it kept with the packet after the
//! run.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};
use aya::programs::SchedClassifier;

use super::{Datapath, Outcome, Program, Verdict};

/// `BPF_PROG_TEST_RUN`, include/uapi/linux/bpf.h.
const TEST_RUN: libc::c_long = 10;
/// `BPF_F_TEST_SKB_CHECKSUM_COMPLETE` (Linux 6.17): the packet carries its sum, which has to be right afterwards.
const CHECKSUM_COMPLETE: u32 = 4;

/// `union bpf_attr` of that command.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    program: u32,
    verdict: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    zero: u32,
}

impl Datapath {
    /// As [`Datapath::run`], with a packet whose device summed it up; `None` on a kernel that cannot do that.
    ///
    /// # Errors
    /// As [`Datapath::run`]; and `EBADMSG` when the sum is wrong after the run.
    pub fn run_summed(&self, program: Program, packet: &[u8]) -> Result<Option<Outcome>> {
        let loaded: &SchedClassifier =
            self.ebpf.program(program.name()).context("program missing in the object")?.try_into()?;
        let mut out = vec![0; packet.len() + 256];
        let mut attributes = Attributes {
            program: loaded.fd()?.as_fd().as_raw_fd() as u32,
            size_in: packet.len() as u32,
            size_out: out.len() as u32,
            data_in: packet.as_ptr() as u64,
            data_out: out.as_mut_ptr() as u64,
            repeat: 1,
            flags: CHECKSUM_COMPLETE,
            ..Attributes::default()
        };
        // SAFETY: the attributes have the layout the kernel reads, of the size that is passed; it reads and writes the two
        // buffers within the sizes that stand there, and both outlive the call.
        let done =
            unsafe { libc::syscall(libc::SYS_bpf, TEST_RUN, &raw mut attributes, size_of::<Attributes>()) };
        if done != 0 {
            let error = io::Error::last_os_error();
            // Flags that a kernel does not know.
            return if error.raw_os_error() == Some(libc::EINVAL) { Ok(None) } else { Err(error.into()) };
        }
        out.truncate(attributes.size_out as usize);
        Ok(Some(Outcome { verdict: Verdict::of(program, attributes.verdict)?, packet: out }))
    }
}
