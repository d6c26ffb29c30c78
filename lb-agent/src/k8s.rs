//! Kubernetes: the only place that names a Kubernetes type.
