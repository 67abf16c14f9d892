//! Pure picking policy: filters, scorers and the decision as a value.
