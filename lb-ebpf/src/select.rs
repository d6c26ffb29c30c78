//! Which endpoint a new connection gets: affinity first, then chance or the client's hash.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use lb_common::address::Address;
use lb_common::byteorder::Be16;
use lb_common::layout::{AffinityEntry, AffinityKey, Algorithm, Class, Client, FrontendValue, Policy};
use lb_common::lookup::{self, Choice};
use lb_common::reason::Reason;
use lb_common::tuple::client_hash;

use crate::net::Net;
use crate::tables::KernelTables;

/// Chooses a backend for a new connection of a client at a frontend: the one its affinity names (S-40), otherwise one
/// of the class's, at random or by the client's hash (S-41). `port` is the client's, `None` where it has none yet: then chance
/// decides. An affinity is the client's whatever its port is, and so is its hash then. `now` in monotonic seconds.
///
/// # Errors
/// Why there is none, see [`lookup::choose`].
#[inline(always)]
pub fn select<N: Net>(
    frontend: FrontendValue,
    policy: Policy,
    client: Client,
    source: N::Addr,
    port: Option<Be16>,
    now: u32,
) -> Result<Choice<N::Addr>, Reason> {
    let class = Class::of(frontend.kind, client);
    let service = frontend.service;
    if policy.affinity_timeout == 0 {
        return choose::<N>(service, class, source, port);
    }
    let client = if matches!(client, Client::Host) { N::Addr::UNSPECIFIED } else { source };
    let key = AffinityKey { client, service, generation: policy.generation() };
    if let Some(choice) = held::<N>(&key, class, policy, now) {
        return Ok(choice);
    }
    let choice = choose::<N>(service, class, client, Some(Be16::from_raw(0)))?;
    let entry = AffinityEntry {
        address: choice.backend.address,
        backend: choice.index,
        last_new: now,
        port: choice.backend.port,
        zero: [0; 3],
    };
    if N::affinities().insert(&key, &entry, BPF_NOEXIST as u64).is_err() {
        // Over, or another CPU was quicker: then its choice stands.
        if let Some(choice) = held::<N>(&key, class, policy, now) {
            return Ok(choice);
        }
        let _ = N::affinities().insert(&key, &entry, BPF_ANY as u64);
    }
    Ok(choice)
}

#[inline(always)]
fn choose<N: Net>(
    service: u32,
    class: Class,
    client: N::Addr,
    port: Option<Be16>,
) -> Result<Choice<N::Addr>, Reason> {
    lookup::choose::<N, _>(&KernelTables, service, class, |algorithm| match (algorithm, port) {
        (Algorithm::Maglev, Some(port)) => client_hash(client, port),
        // SAFETY: a helper without arguments.
        _ => unsafe { bpf_get_prandom_u32() },
    })
}

/// The backend that a valid affinity names; the time begins anew.
#[inline(always)]
fn held<N: Net>(
    key: &AffinityKey<N::Addr>,
    class: Class,
    policy: Policy,
    now: u32,
) -> Option<Choice<N::Addr>> {
    let entry = N::affinities().get_ptr_mut(key)?;
    // SAFETY: a live element of the map. Another CPU may write it meanwhile; `holds` compares all of it with the row.
    let affinity = unsafe { *entry };
    let backend = N::backend(&KernelTables, affinity.backend)?;
    if !affinity.holds(&backend, key.service, class, now, policy.affinity_timeout) {
        return None;
    }
    // SAFETY: as above.
    unsafe { (*entry).last_new = now };
    Some(Choice { index: affinity.backend, backend })
}
