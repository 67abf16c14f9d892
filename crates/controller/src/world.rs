//! The cluster as the controller knows it: checked objects, and what it was told about itself.

use std::collections::BTreeSet;

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
}
