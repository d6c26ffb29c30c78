//! Who may use a load balancer address (S-34).

use std::net::IpAddr;

use serde_json::Value;

use super::{Machine, object};

/// Whether a client may use the Service's load balancer addresses.
pub(super) fn allows(service: &Value, client: IpAddr) -> bool {
    let ranges = of_family(service, client.is_ipv4());
    ranges.is_empty() || ranges.iter().any(|(network, length)| contains(*network, *length, client))
}

/// Whether the processes of a node may: when the node itself may.
pub(super) fn allows_host(service: &Value, here: &Machine, ipv4: bool) -> bool {
    let ranges = of_family(service, ipv4);
    let own = here.addresses.iter().filter(|address| address.is_ipv4() == ipv4);
    ranges.is_empty()
        || own.into_iter().any(|own| ranges.iter().any(|(network, length)| contains(*network, *length, *own)))
}

/// The ranges of one family. Ranges of the other family alone, or one that contains everybody, restrict nobody (S-14).
fn of_family(service: &Value, ipv4: bool) -> Vec<(IpAddr, u32)> {
    let mut ranges = Vec::new();
    for written in object::texts(service, "/spec/loadBalancerSourceRanges") {
        let Some((network, length)) = written.trim().split_once('/') else { continue };
        let (Some(network), Ok(length)) = (object::address(network), length.parse::<u32>()) else { continue };
        if network.is_ipv4() == ipv4 {
            ranges.push((network, length));
        }
    }
    if ranges.iter().any(|(_, length)| *length == 0) {
        ranges.clear();
    }
    ranges
}

/// Whether an address begins with the same `length` bits as a network.
fn contains(network: IpAddr, length: u32, address: IpAddr) -> bool {
    let (network, address) = (bits(network), bits(address));
    network.len() == address.len() && (0..length as usize).all(|bit| network[bit] == address[bit])
}

/// An address bit by bit, from the left.
fn bits(address: IpAddr) -> Vec<bool> {
    let octets: Vec<u8> = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    octets.iter().flat_map(|octet| (0..8).map(move |bit| octet & (0x80 >> bit) != 0)).collect()
}
