//! What is handed to people who run this on a cluster: manifests, chart, image, and the page that says how.

#[path = "deploy/chart.rs"]
mod chart;
#[path = "deploy/kustomize.rs"]
mod kustomize;
#[path = "deploy/manifests.rs"]
mod manifests;
#[path = "deploy/schema.rs"]
mod schema;
