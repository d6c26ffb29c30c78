//! Counters of Services and backends. Per-CPU rows: plain additions, no atomics.

use lb_common::layout::{BackendStat, ServiceStat};

use crate::access::{self, Context};
use crate::maps::SERVICE_STATS;
use crate::net::Net;

/// Counts a translated packet for its Service and its backend.
#[inline(always)]
pub fn packet<N: Net>(packet: impl Context, service: u32, backend: u32, reply: bool) {
    translated::<N>(packet.packets(), access::ip_bytes(packet), service, backend, reply);
}

/// As [`packet`], of a packet that stands for so many on the wire and has so many bytes from the IP header on.
#[inline(always)]
pub fn translated<N: Net>(packets: u64, bytes: u64, service: u32, backend: u32, reply: bool) {
    let (of_service, of_backend) = if reply {
        (ServiceStat::ReplyPackets as usize, BackendStat::ReplyPackets as usize)
    } else {
        (ServiceStat::Packets as usize, BackendStat::Packets as usize)
    };
    if let Some(row) = SERVICE_STATS.get_ptr_mut(service) {
        // SAFETY: a per-CPU row; only this CPU writes it. The indices are constants below the row's length.
        unsafe {
            (*row)[of_service] += packets;
            (*row)[of_service + 1] += bytes;
        }
    }
    if let Some(row) = N::backend_stats().get_ptr_mut(backend) {
        // SAFETY: as above.
        unsafe {
            (*row)[of_backend] += packets;
            (*row)[of_backend + 1] += bytes;
        }
    }
}

/// Counts one event of a Service.
#[inline(always)]
pub fn service(service: u32, stat: ServiceStat) {
    if let Some(row) = SERVICE_STATS.get_ptr_mut(service) {
        // SAFETY: as in `packet`.
        unsafe { (*row)[stat as usize] += 1 };
    }
}

/// Counts a new connection for its Service and its backend.
#[inline(always)]
pub fn connection<N: Net>(service_index: u32, backend: u32) {
    service(service_index, ServiceStat::Connections);
    if let Some(row) = N::backend_stats().get_ptr_mut(backend) {
        // SAFETY: as in `packet`.
        unsafe { (*row)[BackendStat::Connections as usize] += 1 };
    }
}
