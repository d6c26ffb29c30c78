//! Named network namespaces, made in this process, each with a thread and a tokio runtime of its own.
//!
//! A namespace is visible to `ip netns` as long as its [`Namespace`] lives (or longer, after [`Namespace::keep`]).
//! Its thread never leaves the namespace: every socket a future opens while it runs there belongs to the namespace, for
//! good, whichever runtime uses it afterwards.

pub(crate) mod links;
pub(crate) mod sys;

use std::{
    fmt, fs,
    fs::File,
    io,
    net::{IpAddr, SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::oneshot,
};

use links::Links;

/// Where iproute2 looks for named namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// Marks a local route in `/proc/net/ipv6_route` (`include/uapi/linux/ipv6_route.h`).
const RTF_LOCAL: u32 = 0x8000_0000;

/// How long the kernel may take for what it does later by itself: it waits for whoever changes devices, in any namespace.
pub(crate) const KERNEL_LIMIT: Duration = Duration::from_secs(30);

/// A named network namespace; clones are handles to the same one.
///
/// It is removed when the last handle goes, unless [`Namespace::keep`] was called.
#[derive(Clone)]
pub struct Namespace(Arc<Inner>);

struct Inner {
    name: String,
    file: File,
    handle: Handle,
    netlink: rtnetlink::Handle,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
    keep: AtomicBool,
}

/// What the namespace's thread reports once it stands.
struct Started {
    file: File,
    handle: Handle,
    netlink: rtnetlink::Handle,
}

impl Namespace {
    /// Makes a namespace called `name`, with the loopback device up and the given sysctls (name below `/proc/sys`,
    /// value) written before any device exists in it.
    ///
    /// # Errors
    /// The name is taken, privileges are missing, or a sysctl was refused.
    pub fn create(name: &str, sysctls: &[(&str, &str)]) -> anyhow::Result<Self> {
        let sysctls: Vec<(String, String)> =
            sysctls.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let path = mount_point(name)?;
        let namespace = Self::start(name, move || {
            sys::unshare(libc::CLONE_NEWNET).context("making a network namespace")?;
            let own = Path::new("/proc/thread-self/ns/net");
            sys::mount(&sys::c_path(own)?, &sys::c_path(&path)?, None, libc::MS_BIND)
                .with_context(|| format!("mounting a namespace at {}", path.display()))?;
            for (key, value) in &sysctls {
                write_sysctl(key, value)?;
            }
            Ok(())
        })?;
        namespace.block_on({
            let links = namespace.links();
            async move { links.up(1).await }
        })?;
        Ok(namespace)
    }

    fn start(
        name: &str,
        enter: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (started, report) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new()
            .name(format!("ns {name}"))
            .spawn(move || namespace_thread(enter, &started, stopped))?;
        match report.recv() {
            Ok(Ok(Started { file, handle, netlink })) => Ok(Self(Arc::new(Inner {
                name: name.to_owned(),
                file,
                handle,
                netlink,
                stop: Mutex::new(Some(stop)),
                thread: Mutex::new(Some(thread)),
                keep: AtomicBool::new(false),
            }))),
            Ok(Err(error)) => {
                unlink(name);
                Err(error.context(format!("namespace {name}")))
            }
            Err(_) => {
                unlink(name);
                Err(anyhow!("the thread of namespace {name} ended at once"))
            }
        }
    }

    /// The name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The namespace as a file, for `setns(2)` and netlink.
    pub fn file(&self) -> &File {
        &self.0.file
    }

    /// The runtime whose only thread lives in this namespace. Futures spawned here must not block.
    pub fn handle(&self) -> &Handle {
        &self.0.handle
    }

    pub(crate) fn links(&self) -> Links {
        Links::new(self.0.netlink.clone())
    }

    /// The rtnetlink connection of this namespace, for what the lab has no method for.
    pub fn netlink(&self) -> rtnetlink::Handle {
        self.0.netlink.clone()
    }

    /// Runs a future inside the namespace and waits for it, also from within another runtime.
    pub async fn run<F>(&self, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match self.0.handle.spawn(future).await {
            Ok(output) => output,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => panic!("namespace {} went away under a running future: {error}", self.name()),
            },
        }
    }

    /// Waits until packets to an address of this namespace are taken in. The kernel lets an IPv6 address be used as a source
    /// at once, but makes its local route on a work queue of its own: until then even a neighbour advertisement is dropped,
    /// and asked for again a second later.
    pub async fn wait_local(&self, address: IpAddr, device: &str) -> anyhow::Result<()> {
        let IpAddr::V6(address) = address else { return Ok(()) };
        let (wanted, device) = (format!("{:032x} 80 ", address.to_bits()), format!(" {device}"));
        let is_local = move || -> anyhow::Result<bool> {
            let routes = fs::read_to_string("/proc/thread-self/net/ipv6_route")?;
            let flags = |line: &str| {
                line.split_whitespace().nth(8).and_then(|flags| u32::from_str_radix(flags, 16).ok())
            };
            let mut own = routes
                .lines()
                .filter(|line| line.starts_with(&wanted) && line.ends_with(&device))
                .filter_map(flags);
            Ok(own.any(|flags| flags & RTF_LOCAL != 0))
        };
        self.run(async move {
            let begin = Instant::now();
            while begin.elapsed() < KERNEL_LIMIT {
                if is_local()? {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
            anyhow::bail!("the kernel made no local route for {address}")
        })
        .await
    }

    /// As [`Namespace::run`], but blocks the calling thread. Must not be called from the namespace's own thread.
    pub fn block_on<F>(&self, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (sender, receiver) = mpsc::channel();
        let task = self.0.handle.spawn(async move {
            // The receiver only disappears when the waiting thread itself is gone.
            let _gone = sender.send(future.await);
        });
        receiver.recv().unwrap_or_else(|_| {
            panic!(
                "a future in namespace {} did not finish (task ended: {})",
                self.name(),
                task.is_finished()
            )
        })
    }

    /// Writes a sysctl of this namespace (`net/ipv4/ip_forward`).
    ///
    /// # Errors
    /// No such sysctl, or the value was refused.
    pub fn sysctl(&self, key: &str, value: &str) -> anyhow::Result<()> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.block_on(async move { write_sysctl(&key, &value) })
    }

    /// A listening TCP socket of this namespace, ready to be handed to any tokio runtime.
    ///
    /// # Errors
    /// The address is taken or not of this namespace.
    pub fn tcp_listener(&self, address: SocketAddr) -> io::Result<StdTcpListener> {
        run_in(self, move || {
            let listener = StdTcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
    }

    /// A bound UDP socket of this namespace, ready to be handed to any tokio runtime.
    ///
    /// # Errors
    /// The address is taken or not of this namespace.
    pub fn udp_socket(&self, address: SocketAddr) -> io::Result<StdUdpSocket> {
        run_in(self, move || {
            let socket = StdUdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
    }

    /// Leaves the namespace standing, under its name, when the last handle goes.
    pub fn keep(&self) {
        self.0.keep.store(true, Ordering::Relaxed);
    }

    /// Removes the name and stops the namespace's thread. What other handles still hold open keeps the namespace itself
    /// alive; new work cannot be started in it.
    pub fn remove(&self) {
        self.0.remove();
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Namespace").field(&self.name()).finish()
    }
}

impl AsRef<Self> for Namespace {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl Inner {
    fn remove(&self) {
        if !self.keep.load(Ordering::Relaxed) {
            unlink(&self.name);
        }
        let stop = lock(&self.stop).take();
        let thread = lock(&self.thread).take();
        drop(stop);
        if let Some(thread) = thread
            && thread.thread().id() != thread::current().id()
        {
            // A panic of the thread was reported to whoever waited for the future that panicked.
            let _reported = thread.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Runs `work` on a helper thread inside `namespace` and returns what it returned.
///
/// # Panics
/// Passes on a panic of `work`; panics when the thread cannot enter the namespace.
pub fn run_in<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
    let enter = || {
        sys::enter_netns(namespace.0.file.as_fd())
            .unwrap_or_else(|error| panic!("entering namespace {}: {error}", namespace.name()));
        work()
    };
    thread::scope(|scope| match scope.spawn(enter).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Removes the named namespace `name` from `/run/netns`, whoever made it.
pub(crate) fn unlink(name: &str) {
    let path = Path::new(NETNS_DIR).join(name);
    if let Ok(target) = sys::c_path(&path) {
        // Neither a missing mount nor a missing file is worth a word: gone is what was wanted.
        let _unmounted = sys::unmount(&target);
    }
    let _removed = fs::remove_file(&path);
}

/// A netlink connection in the namespace of the calling thread. Its requests wait in the kernel until nobody else changes
/// devices: not on the namespace's own thread, where servers run.
fn netlink() -> anyhow::Result<rtnetlink::Handle> {
    static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
        Builder::new_multi_thread().worker_threads(2).thread_name("netlink").enable_all().build()
    });
    let runtime = RUNTIME.as_ref().map_err(|error| anyhow!("starting a thread: {error}"))?;
    let _entered = runtime.enter();
    let (connection, handle, _messages) = rtnetlink::new_connection().context("opening a netlink socket")?;
    runtime.spawn(connection);
    Ok(handle)
}

/// The namespace's thread: enters it, reports, and runs futures until it is told to stop.
fn namespace_thread(
    enter: impl FnOnce() -> anyhow::Result<()>,
    started: &mpsc::Sender<anyhow::Result<Started>>,
    stopped: oneshot::Receiver<()>,
) {
    let prepared = enter().and_then(|()| {
        let file = File::open("/proc/thread-self/ns/net")?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok((file, runtime, netlink()?))
    });
    match prepared {
        Ok((file, runtime, netlink)) => {
            let handle = runtime.handle().clone();
            if started.send(Ok(Started { file, handle, netlink })).is_ok() {
                // An error means that the sender was dropped: that is the signal.
                let _told = runtime.block_on(stopped);
            }
        }
        Err(error) => {
            // If nobody waits any more, nobody wants to know.
            let _gone = started.send(Err(error));
        }
    }
}

/// Makes the file a namespace is mounted on, and `/run/netns` itself the way iproute2 does.
fn mount_point(name: &str) -> anyhow::Result<PathBuf> {
    static DIRECTORY: Mutex<()> = Mutex::new(());
    let directory = Path::new(NETNS_DIR);
    let guard = lock(&DIRECTORY);
    fs::create_dir_all(directory)?;
    let target = sys::c_path(directory)?;
    // Shared, so that a name removed here disappears in other mount namespaces too and the namespace can go.
    let share = || sys::mount(c"", &target, None, libc::MS_SHARED | libc::MS_REC);
    if share().is_err() {
        sys::mount(&target, &target, None, libc::MS_BIND | libc::MS_REC)
            .and_then(|()| share())
            .with_context(|| format!("making {NETNS_DIR} a shared mount"))?;
    }
    drop(guard);
    let path = directory.join(name);
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(|| format!("creating {}", path.display()))?;
    Ok(path)
}

/// Writes a sysctl of the calling thread's network namespace.
pub(crate) fn write_sysctl(key: &str, value: &str) -> anyhow::Result<()> {
    fs::write(Path::new("/proc/sys").join(key), value).with_context(|| format!("sysctl {key}={value}"))
}

/// Locks a mutex whose data stays usable when a holder panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
