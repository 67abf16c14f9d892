//! Settings of the operator for the controller and the pickers that it manages.

use std::num::NonZeroU16;

/// Settings of managed pickers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Image of the picker.
    pub image: String,
    /// Pickers per Deployment; `None` leaves the number to whoever scales it, from one on.
    pub replicas: Option<NonZeroU16>,
    /// Arguments of the picker after the controller's own.
    pub arguments: Vec<String>,
    /// True if clients may ask a picker for its reasons.
    pub explains: bool,
}
