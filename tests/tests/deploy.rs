//! What is handed to people who run this on a cluster: manifests, chart, image, and the page that says how.

#[path = "deploy/chart.rs"]
mod chart;
#[path = "deploy/container.rs"]
mod container;
#[path = "deploy/docs.rs"]
mod docs;
#[path = "deploy/kustomize.rs"]
mod kustomize;
#[path = "deploy/manifests.rs"]
mod manifests;
#[path = "deploy/monitoring.rs"]
mod monitoring;
#[path = "deploy/rbac.rs"]
mod rbac;
#[path = "deploy/schema.rs"]
mod schema;
