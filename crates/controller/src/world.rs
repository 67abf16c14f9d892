//! The cluster as the controller knows it: checked objects, and what it was told about itself.

use std::collections::BTreeSet;

use inference_api::gateway::{Gateway, GatewayClass, HttpRoute};
use inference_api::object::ObjectKey;
use inference_api::pool::InferenceModel;

/// Everything that the rules need.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// Namespace of the controller, in which managed pickers run.
    pub namespace: String,
    /// PEM of the authority that signs the certificates of managed pickers.
    pub authority: String,
    pub models: Vec<InferenceModel>,
    /// All Services, except those that the controller has made.
    pub services: BTreeSet<ObjectKey>,
    pub classes: Vec<GatewayClass>,
    pub gateways: Vec<Gateway>,
    pub routes: Vec<HttpRoute>,
    pub grants: BTreeSet<Grant>,
}

/// A permission that a ReferenceGrant gives: HTTPRoutes of the namespace may lead to the pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    pub route_namespace: String,
    pub pool: ObjectKey,
}
