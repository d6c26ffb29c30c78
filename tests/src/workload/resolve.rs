//! Name resolution as a program in the pod would do it.

use std::{fs, net::IpAddr, path::Path};

use hickory_resolver::{
    Resolver, config::ResolveHosts, net::runtime::TokioRuntimeProvider, system_conf::parse_resolv_conf,
};

use super::NetError;
use crate::netns::Namespace;

/// The addresses of `host` (an address or a name), by the name servers and search domains of the `resolv.conf` of this
/// place. Every call asks anew.
///
/// # Errors
/// [`NetError::Dns`].
pub async fn resolve(at: &impl AsRef<Namespace>, host: &str) -> Result<Vec<IpAddr>, NetError> {
    let namespace = at.as_ref();
    let (name, host) = (namespace.name().to_owned(), host.to_owned());
    namespace.run(async move { lookup(&name, &host).await }).await
}

/// Resolves from the namespace of the current thread, which is called `namespace`.
pub(crate) async fn lookup(namespace: &str, host: &str) -> Result<Vec<IpAddr>, NetError> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return Ok(vec![address]);
    }
    let failed = |error: &dyn std::fmt::Display| NetError::Dns(format!("{host}: {error}"));
    let path = Path::new("/etc/netns").join(namespace).join("resolv.conf");
    let text = fs::read_to_string(&path).map_err(|error| failed(&error))?;
    let (config, mut options) = parse_resolv_conf(text).map_err(|error| failed(&error))?;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    let resolver = builder.build().map_err(|error| failed(&error))?;
    let found = resolver.lookup_ip(host).await.map_err(|error| failed(&error))?;
    Ok(found.iter().collect())
}
