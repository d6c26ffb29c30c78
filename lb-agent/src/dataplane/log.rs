//! Log lines of the programs themselves (`--datapath-log`): one for each first packet, for debugging.

use std::future::Future;

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::error::{Error, Result};

/// Level at which the programs log nothing; the default of the library is everything.
pub(super) const SILENT: u8 = 0;
/// Level at which they log first packets.
pub(super) const FIRST_PACKETS: u8 = aya_log::Level::Debug as u8;

/// Forwards the programs' lines to the agent's log, target `lb_ebpf`, for as long as it is polled.
pub(super) fn forward(ebpf: &mut Ebpf) -> Result<impl Future<Output = ()> + Send + use<>> {
    let failed = |source| Error::path("read the programs' log from", "the map AYA_LOGS".as_ref(), source);
    let logger = EbpfLogger::init(ebpf).map_err(|error| failed(std::io::Error::other(error)))?;
    // SAFETY: the logger owns its ring buffer's descriptor, and nothing replaces or closes it while it is registered.
    let registered = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = registered.map_err(|error| failed(error.into()))?;
    Ok(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    })
}
