//! `cargo xtask image`: an OCI image archive of the agent, made without a container engine.
//!
//! - `agent`: the agent as one static program.
//! - `elf`: whether a program really is static, and for which machine.
//! - `archive`: layer, configuration, manifests, and the archive around them.
//! - `reference`: the image's name, as docker and containerd spell it.
//! - `origin`: commit and time the image is made of.
//!
//! The same commit gives the same bytes with the same compilers: entries are sorted, times are the commit's, and no path
//! of this machine gets into a program.

mod agent;
mod archive;
mod elf;
mod origin;
mod reference;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use self::agent::Libc;
use self::archive::{Contents, File};
use self::origin::Origin;
use self::reference::Reference;
use crate::compiler::Compiler;
use crate::host::Profile;
use crate::progress;
use crate::workspace::Workspace;

/// Texts that go with the program, as their licences ask.
const LICENCES: &[&str] = &["LICENSE-APACHE", "LICENSE-GPL-2.0"];

/// Flags of `cargo xtask image`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// File to write [default: target/image/lb-agent-VERSION.tar, with the architecture when it is not this machine's]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Name of the image, with registry and tag as wanted; a missing tag is the version
    #[arg(long, value_name = "NAME[:TAG]", default_value = "lb-agent")]
    tag: Reference,

    /// What the image runs on [default: this machine's]
    #[arg(long, value_enum)]
    platform: Option<Platform>,

    /// The C library that is linked in. auto: musl if its standard library is installed or rustup can install it, else
    /// this machine's glibc
    #[arg(long, value_enum, default_value_t)]
    libc: Libc,

    /// Not optimised: builds faster; for tests
    #[arg(long)]
    dev: bool,
}

/// What an image runs on, as OCI writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Platform {
    /// x86-64.
    #[value(name = "linux/amd64")]
    Amd64,
    /// 64-bit ARM.
    #[value(name = "linux/arm64")]
    Arm64,
}

impl Platform {
    /// OCI's (Go's) name of the architecture.
    fn architecture(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Rust's and GNU's name of the architecture.
    fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    fn of(compiler: &Compiler) -> Result<Self> {
        [Self::Amd64, Self::Arm64]
            .into_iter()
            .find(|platform| platform.machine() == compiler.arch())
            .with_context(|| format!("images are made for x86_64 and aarch64, not for {}", compiler.arch()))
    }
}

/// Builds the agent and packs it.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let started = Instant::now();
    let compiler = Compiler::detect()?;
    let own = Platform::of(&compiler)?;
    let platform = options.platform.unwrap_or(own);
    let origin = Origin::find(workspace.root())?;
    let profile = if options.dev { Profile::Dev } else { Profile::Release };
    let version = env!("CARGO_PKG_VERSION");
    let reference = options.tag.with_default_tag(version);

    let built = agent::build(workspace, &compiler, platform, options.libc, profile)?;
    let program = fs::read(&built.path).with_context(|| format!("read {}", built.path.display()))?;
    let mut files = vec![File { path: "lb-agent".into(), mode: 0o755, content: program }];
    for name in LICENCES {
        let content = fs::read(workspace.root().join(name)).with_context(|| format!("read {name}"))?;
        files.push(File { path: format!("licenses/{name}"), mode: 0o644, content });
    }
    let contents = Contents { files, platform, reference, origin, version };
    let image = archive::pack(&contents)?;

    let output = options.output.clone().unwrap_or_else(|| {
        let suffix = if platform == own { String::new() } else { format!("-{}", platform.architecture()) };
        workspace.image().join(format!("lb-agent-{version}{suffix}.tar"))
    });
    if let Some(directory) = output.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    }
    fs::write(&output, &image.archive).with_context(|| format!("write {}", output.display()))?;
    let megabytes = |bytes: usize| bytes as f64 / 1e6;
    progress::note(format_args!(
        "{} ({:.1} MB; lb-agent {:.1} MB, static with {}), {:.1} s",
        output.strip_prefix(workspace.root()).unwrap_or(&output).display(),
        megabytes(image.archive.len()),
        megabytes(contents.files[0].content.len()),
        built.libc,
        started.elapsed().as_secs_f64()
    ));
    println!("image     {}", contents.reference.familiar());
    println!("platform  linux/{}", platform.architecture());
    println!("revision  {}", contents.origin.revision);
    println!("digest    {}", image.digest);
    println!("archive   {} ({} bytes)", output.display(), image.archive.len());
    Ok(())
}
