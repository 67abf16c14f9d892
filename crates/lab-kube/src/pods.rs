//! The pods of a cluster, for people: a line for each, and logs by name.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use futures::AsyncBufReadExt as _;
use futures::stream::{self, Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use load::table::new_table;

use crate::api::{Access, DEFAULT, ENVOY_GATEWAY};
use crate::images::Image;
use crate::node;
use crate::settle;
use crate::wait::{is_ready, state};

/// Namespaces in which the lab's pods are.
const NAMESPACES: [&str; 2] = [DEFAULT, ENVOY_GATEWAY];

/// A container that has a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub namespace: String,
    pub pod: String,
    pub container: String,
}

/// Describes Gateways and pods, and which images stand for others; and says if all pods are ready.
///
/// # Errors
/// When the API server does not answer.
pub async fn describe(access: &Access) -> Result<(String, bool)> {
    let mut table = new_table(&["what", "name", "address", "state"], 4);
    for settle::Listener { gateway, name, address, port } in settle::listeners(access).await? {
        let address = format!("{address}:{port}");
        table.add_row(["gateway", &format!("{DEFAULT}/{gateway} {name}"), &address, "programmed"]);
    }
    let held = node::images(access).await?;
    let (mut n_pods, mut n_ready, mut stands_for) = (0, 0, Vec::new());
    for namespace in NAMESPACES {
        for pod in access.list::<Pod>(namespace, "").await? {
            let address = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap_or_default();
            let name = format!("{namespace}/{}", pod.metadata.name.as_deref().unwrap_or_default());
            table.add_row(["pod", &name, &address, &state(&pod)]);
            n_pods += 1;
            n_ready += u32::from(is_ready(&pod));
            let images = pod
                .spec
                .iter()
                .flat_map(|spec| &spec.containers)
                .filter_map(|container| container.image.clone());
            stands_for.extend(images.filter_map(|image| Image::behind(&image, &held)));
        }
    }
    let mut text = format!("{table}\n");
    stands_for.dedup();
    for image in stands_for {
        let _ = writeln!(
            text,
            "{} is our {} on nodes of kind",
            image.stands_for().unwrap_or_default(),
            image.name()
        );
    }
    Ok((text, n_pods > 0 && n_ready == n_pods))
}

/// The logs of pods whose names contain `part`.
///
/// # Errors
/// When the API server does not answer.
pub async fn logs(access: &Access, part: &str) -> Result<Vec<Log>> {
    let mut found = Vec::new();
    for namespace in NAMESPACES {
        for pod in access.list::<Pod>(namespace, "").await? {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let containers =
                pod.spec.into_iter().flat_map(|spec| spec.containers).filter(|_| name.contains(part));
            found.extend(containers.map(|container| Log {
                namespace: namespace.to_owned(),
                pod: name.clone(),
                container: container.name,
            }));
        }
    }
    Ok(found)
}

/// The lines of logs: one log after the other, or all of them as they come.
///
/// # Errors
/// When a log cannot be opened.
pub async fn lines(
    access: &Access,
    logs: Vec<Log>,
    follow: bool,
) -> Result<impl Stream<Item = std::io::Result<String>> + use<>> {
    let mut streams = Vec::new();
    for Log { namespace, pod, container } in logs {
        let params = LogParams { follow, container: Some(container), ..LogParams::default() };
        let opened = access.of::<Pod>(&namespace).log_stream(&pod, &params).await;
        let lines = opened.with_context(|| format!("read the log of {pod}"))?.lines();
        streams.push(lines.boxed_local());
    }
    let n_at_once = if follow { streams.len().max(1) } else { 1 };
    Ok(stream::iter(streams).flatten_unordered(n_at_once))
}
