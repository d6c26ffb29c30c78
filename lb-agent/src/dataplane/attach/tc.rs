//! Traffic control filters (kernels before 6.6): qdisc `clsact` and one direct-action filter a side of the device, known
//! by their priority, handle and name.

use std::os::fd::{AsRawFd, BorrowedFd};

use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};

use super::super::error::errno;
use super::super::load::Hook;
use super::super::sys::Side;

type Result<T> = std::result::Result<T, rtnetlink::Error>;

/// Handle of our filters within their priority.
const HANDLE: u32 = 0x6c62;
/// Before the filters of a network plugin, so that they see the translated flow.
const INGRESS_PRIORITY: u32 = 17;
/// After the filters of a network plugin, for the same reason.
const EGRESS_PRIORITY: u32 = 0xc0de;
/// `ETH_P_ALL` in network order.
const ALL_PROTOCOLS: u32 = 0x0300;
const CLSACT: &str = "clsact";
const BPF: &str = "bpf";

const fn parent(side: Side) -> TcHandle {
    let minor = match side {
        Side::Ingress => TcHandle::MIN_INGRESS,
        Side::Egress => TcHandle::MIN_EGRESS,
    };
    TcHandle { major: u16::MAX, minor }
}

const fn priority(side: Side) -> u32 {
    match side {
        Side::Ingress => INGRESS_PRIORITY,
        Side::Egress => EGRESS_PRIORITY,
    }
}

fn name(hook: Hook) -> String {
    format!("lb-agent/{}", hook.program())
}

/// A message about our filter on a side of a device. The hooks of all roles share it: a device has one role.
fn filter(interface: u32, side: Side) -> TcMessage {
    let mut message = TcMessage::with_index(interface as i32);
    message.header.parent = parent(side);
    message.header.handle = TcHandle::from(HANDLE);
    message.header.info = priority(side) << 16 | ALL_PROTOCOLS;
    message
}

async fn request(handle: &Handle, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut responses = handle.clone().request(request)?;
    while let Some(response) = responses.next().await {
        if let NetlinkPayload::Error(error) = response.payload
            && error.code.is_some()
        {
            return Err(rtnetlink::Error::NetlinkError(error));
        }
    }
    Ok(())
}

/// Adds the qdisc that carries filters, when the device has none.
async fn add_clsact(handle: &Handle, interface: u32) -> Result<()> {
    let mut message = TcMessage::with_index(interface as i32);
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    message.attributes.push(TcAttribute::Kind(CLSACT.to_owned()));
    let message = RouteNetlinkMessage::NewQueueDiscipline(message);
    match request(handle, message, NLM_F_CREATE | NLM_F_EXCL).await {
        Err(error) if errno(&error) == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Attaches a program, or gives the filter that is there the new program in one step.
pub(super) async fn attach(
    handle: &Handle,
    interface: u32,
    hook: Hook,
    program: BorrowedFd<'_>,
) -> Result<()> {
    add_clsact(handle, interface).await?;
    let mut message = filter(interface, hook.side());
    message.attributes.push(TcAttribute::Kind(BPF.to_owned()));
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd() as u32)),
        TcOption::Bpf(TcFilterBpfOption::ProgName(name(hook))),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    request(handle, RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE).await
}

/// Filters on a side of a device.
#[derive(Debug, Default)]
struct Filters {
    /// Ours: its hook and the id of its program.
    ours: Option<(Hook, u32)>,
    /// There are filters of others.
    others: bool,
}

async fn filters(handle: &Handle, interface: u32, side: Side) -> Result<Filters> {
    let filters = handle.traffic_filter(interface as i32);
    let request = { filters }.get();
    let request = match side {
        Side::Ingress => request.ingress(),
        Side::Egress => request.egress(),
    };
    let mut found = Filters::default();
    let mut dump = std::pin::pin!(request.execute());
    while let Some(message) = dump.try_next().await? {
        // Every filter comes twice: once as the head of its priority, with handle 0.
        if u32::from(message.header.handle) == 0 {
            continue;
        }
        match program_of(&message, side) {
            Some(program) => found.ours = Some(program),
            None => found.others = true,
        }
    }
    Ok(found)
}

/// Hook and program id when the message describes our filter on that side.
fn program_of(message: &TcMessage, side: Side) -> Option<(Hook, u32)> {
    if u32::from(message.header.handle) != HANDLE || message.header.info >> 16 != priority(side) {
        return None;
    }
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let hook = options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(found)) => {
            Hook::ALL.into_iter().find(|hook| hook.side() == side && *found == name(*hook))
        }
        _ => None,
    })?;
    let id = options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    });
    Some((hook, id.unwrap_or(0)))
}

/// True when the program is the one our filter runs.
pub(super) async fn is_attached(
    handle: &Handle,
    interface: u32,
    hook: Hook,
    program_id: u32,
) -> Result<bool> {
    Ok(filters(handle, interface, hook.side()).await?.ours == Some((hook, program_id)))
}

/// Our filters on a device: their hooks and the ids of their programs.
pub(super) async fn attached(handle: &Handle, interface: u32) -> Result<Vec<(Hook, u32)>> {
    let mut found = Vec::new();
    for side in [Side::Ingress, Side::Egress] {
        found.extend(filters(handle, interface, side).await?.ours);
    }
    Ok(found)
}

/// Removes our filters from a device, and the qdisc when nobody else has a filter there. True when there was one.
pub(super) async fn detach(handle: &Handle, interface: u32) -> Result<bool> {
    let (mut removed, mut in_use) = (false, false);
    for side in [Side::Ingress, Side::Egress] {
        let found = filters(handle, interface, side).await?;
        in_use |= found.others;
        if found.ours.is_some() {
            let message = RouteNetlinkMessage::DelTrafficFilter(filter(interface, side));
            request(handle, message, 0).await?;
            removed = true;
        }
    }
    if removed && !in_use {
        let mut message = TcMessage::with_index(interface as i32);
        message.header.parent = TcHandle::CLSACT;
        request(handle, RouteNetlinkMessage::DelQueueDiscipline(message), 0).await?;
    }
    Ok(removed)
}
