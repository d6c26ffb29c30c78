//! The environment variables a pod gets for the Services there are when it starts.

use serde_json::Value;

use crate::apiserver::{ApiHandle, text};

/// `X_SERVICE_HOST`, `X_SERVICE_PORT` and the Docker-link style variables of the namespace's Services with a ClusterIP, and
/// of `default/kubernetes`, as a kubelet makes them. With `enable_service_links` off only the latter.
pub fn service_env(api: &ApiHandle, namespace: &str, enable_service_links: bool) -> Vec<(String, String)> {
    let mut services = Vec::new();
    if let Ok(kubernetes) = api.value("services", "default", "kubernetes") {
        services.push(kubernetes);
    }
    if enable_service_links {
        let own = api.values("services", Some(namespace)).unwrap_or_default();
        let other = |it: &Value| namespace != "default" || text(it, "/metadata/name") != "kubernetes";
        services.extend(own.into_iter().filter(|it| other(it)));
    }
    services.iter().flat_map(|service| variables(service)).collect()
}

fn variables(service: &Value) -> Vec<(String, String)> {
    let host = text(service, "/spec/clusterIP");
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
    if host.is_empty() || host == "None" || ports.is_empty() {
        return Vec::new();
    }
    let name = variable_name(text(service, "/metadata/name"));
    let port_of = |port: &Value| port["port"].to_string();
    let mut variables = vec![
        (format!("{name}_SERVICE_HOST"), host.to_owned()),
        (format!("{name}_SERVICE_PORT"), port_of(&ports[0])),
    ];
    for port in ports.iter().filter(|port| !text(port, "/name").is_empty()) {
        variables
            .push((format!("{name}_SERVICE_PORT_{}", variable_name(text(port, "/name"))), port_of(port)));
    }
    let in_url = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    for (position, port) in ports.iter().enumerate() {
        let (number, protocol) = (port_of(port), text(port, "/protocol"));
        let url = format!("{}://{in_url}:{number}", protocol.to_lowercase());
        if position == 0 {
            variables.push((format!("{name}_PORT"), url.clone()));
        }
        let prefix = format!("{name}_PORT_{number}_{}", protocol.to_uppercase());
        variables.extend([
            (prefix.clone(), url),
            (format!("{prefix}_PROTO"), protocol.to_lowercase()),
            (format!("{prefix}_PORT"), number),
            (format!("{prefix}_ADDR"), host.to_owned()),
        ]);
    }
    variables
}

fn variable_name(name: &str) -> String {
    name.to_uppercase().replace(['-', '.'], "_")
}
