//! One listener of a health check node port.

use std::io;
use std::net::SocketAddr;

use tokio::task::AbortHandle;

use super::Health;
use super::answer::answer;
use crate::model::{Family, ObjectName};
use crate::serve::{Families, accept, listen};

/// An open listener; dropping it closes it and its connections.
#[derive(Debug)]
pub(super) struct Listener {
    service: ObjectName,
    task: AbortHandle,
}

impl Listener {
    /// Opens a listener that answers for a Service.
    pub(super) fn open(address: SocketAddr, service: ObjectName, health: Health) -> io::Result<Self> {
        let listener = listen(address, Families::One)?;
        let of = service.clone();
        let respond = move |local: SocketAddr, _| {
            let family = Family::of(local.ip());
            let answer = answer(&of, health.local_endpoints(&of, family), health.proxy_is_healthy(&of));
            std::future::ready(answer)
        };
        let task = tokio::spawn(accept(listener, service.clone(), respond)).abort_handle();
        Ok(Self { service, task })
    }

    /// The Service it answers for.
    pub(super) fn service(&self) -> &ObjectName {
        &self.service
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}
