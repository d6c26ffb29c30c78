//! Where devices are followed: a thread of their own.
//!
//! The kernel lets one change a network device at a time, in any namespace of the node (its `rtnl` lock): to attach a program,
//! to look at a link to a device, and to send a netlink request, a thread waits until whoever else does so has finished.
//! Where hundreds of devices are removed that takes seconds. Services, health and metrics do not wait for it.

use std::io;

use tokio::runtime::{Builder, EnterGuard, Runtime};
use tokio::task::JoinHandle;

/// Threads of the kind that may wait for the kernel's network lock.
pub(super) struct Network(Option<Runtime>);

impl Network {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has none left.
    pub(super) fn start() -> io::Result<Self> {
        let runtime =
            Builder::new_multi_thread().worker_threads(1).thread_name("network").enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    fn runtime(&self) -> &Runtime {
        self.0.as_ref().unwrap_or_else(|| unreachable!("it is taken when this is dropped"))
    }

    /// While the guard lives, tasks are spawned and sockets registered there: what a netlink connection does when it is made.
    pub(super) fn enter(&self) -> EnterGuard<'_> {
        self.runtime().enter()
    }

    /// Runs a task there.
    pub(super) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.runtime().spawn(task)
    }
}

impl Drop for Network {
    /// Waits for nothing: the kernel may be holding the thread up.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
