//! Provider of a cluster: what starts and ends its parts, and answers for them. The local provider is one; others are in
//! crates of their own.
//!
//! A provider writes the evidence of a run to the files of [`RunFiles`], in the formats of the local provider, so that
//! records outlive the pods that made them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use futures::future::LocalBoxFuture;

use crate::cluster::fault::{Fault, Unavailable};
use crate::cluster::manifests::Manifests;
use crate::cluster::run_files::RunFiles;
use crate::cluster::{Fresh, Picker, Pod, Status};
use crate::engine::Engine;

/// Answer of a provider that takes time.
pub type Answer<'a, T> = LocalBoxFuture<'a, Result<T>>;

/// Server of a cluster that has pages.
#[derive(Clone, Copy, Debug)]
pub enum Server<'a> {
    /// The picker's port of metrics.
    Picker(&'a Picker),
    Pod(&'a Pod),
    /// Envoy's admin port.
    Envoy,
}

/// Parts of a cluster, as [`Cluster`](super::Cluster) describes them. Dropping the value ends everything without waiting.
pub trait Provider: fmt::Debug {
    fn engine(&self) -> Engine;

    fn files(&self) -> &RunFiles;

    fn status(&self) -> Arc<Status>;

    fn settled(&self) -> Answer<'_, Arc<Status>>;

    fn restart(&self, fresh: Fresh) -> Answer<'_, ()>;

    fn manifests(&self) -> Manifests;

    fn apply<'a>(&'a self, manifests: &'a Manifests) -> Answer<'a, ()>;

    fn reset_manifests(&self) -> Answer<'_, ()>;

    /// Says if the provider can cause a fault.
    ///
    /// # Errors
    /// When it cannot, with the reason.
    fn can(&self, fault: &Fault) -> Result<(), Unavailable>;

    fn inflict<'a>(&'a self, fault: &'a Fault) -> Answer<'a, ()>;

    fn end<'a>(&'a self, fault: &'a Fault) -> Answer<'a, ()>;

    /// Returns an address on this machine or its network that leads to a pod's.
    fn reach(&self, address: SocketAddr) -> Answer<'_, SocketAddr>;

    /// Returns a page of a server; an answer without success is an error.
    fn page<'a>(&'a self, server: Server<'a>, path: &'a str) -> Answer<'a, String>;

    fn stop(self: Box<Self>) -> Answer<'static, ()>;
}
