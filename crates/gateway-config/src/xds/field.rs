//! Field numbers of the messages that are edited, by message.

pub(crate) mod cluster {
    pub(crate) const NAME: u32 = 1;
    pub(crate) const TYPE: u32 = 2;
    pub(crate) const EDS_CLUSTER_CONFIG: u32 = 3;
    pub(crate) const CIRCUIT_BREAKERS: u32 = 10;
    pub(crate) const DNS_REFRESH_RATE: u32 = 16;
    pub(crate) const METADATA: u32 = 25;
    pub(crate) const LOAD_ASSIGNMENT: u32 = 33;
    pub(crate) const TYPED_EXTENSION_PROTOCOL_OPTIONS: u32 = 36;
    pub(crate) const CLUSTER_TYPE: u32 = 38;
    pub(crate) const LOAD_BALANCING_POLICY: u32 = 41;
}

pub(crate) mod load_assignment {
    pub(crate) const CLUSTER_NAME: u32 = 1;
}

pub(crate) mod protocol_options {
    /// The ways of saying a protocol; one of them counts.
    pub(crate) const PROTOCOLS: [u32; 3] = [3, 4, 5];
}

/// An entry of a map.
pub(crate) mod map {
    pub(crate) const KEY: u32 = 1;
    pub(crate) const VALUE: u32 = 2;
}

pub(crate) mod circuit_breakers {
    pub(crate) const THRESHOLDS: u32 = 1;
    pub(crate) const MAX_CONNECTIONS: u32 = 2;
    pub(crate) const MAX_PENDING_REQUESTS: u32 = 3;
    pub(crate) const MAX_REQUESTS: u32 = 4;
}

pub(crate) mod route {
    pub(crate) const ROUTE: u32 = 2;
    pub(crate) const METADATA: u32 = 4;
    pub(crate) const NAME: u32 = 14;
}

pub(crate) mod route_action {
    pub(crate) const CLUSTER: u32 = 1;
    pub(crate) const WEIGHTED_CLUSTERS: u32 = 3;
    pub(crate) const RETRY_POLICY: u32 = 9;
}

/// Weighted clusters, and one of them.
pub(crate) mod weighted_cluster {
    pub(crate) const CLUSTERS: u32 = 1;
    pub(crate) const NAME: u32 = 1;
}

pub(crate) mod route_configuration {
    pub(crate) const NAME: u32 = 1;
    pub(crate) const VIRTUAL_HOSTS: u32 = 2;
    pub(crate) const RESPONSE_HEADERS_TO_ADD: u32 = 4;
    pub(crate) const ROUTES: u32 = 3;
}

pub(crate) mod listener {
    pub(crate) const FILTER_CHAINS: u32 = 3;
    pub(crate) const PER_CONNECTION_BUFFER_LIMIT_BYTES: u32 = 5;
    pub(crate) const DEFAULT_FILTER_CHAIN: u32 = 25;
    pub(crate) const FILTERS: u32 = 3;
}

/// An extension: its name, and an Any with its configuration.
pub(crate) mod extension {
    pub(crate) const NAME: u32 = 1;
    pub(crate) const TYPED_CONFIG: u32 = 4;
    pub(crate) const VALUE: u32 = 2;
}

pub(crate) mod connection_manager {
    pub(crate) const RDS: u32 = 3;
    pub(crate) const ROUTE_CONFIG_NAME: u32 = 2;
    pub(crate) const HTTP_FILTERS: u32 = 5;
    pub(crate) const ACCESS_LOG: u32 = 13;
    pub(crate) const ALWAYS_SET_REQUEST_ID_IN_RESPONSE: u32 = 37;
    pub(crate) const EARLY_HEADER_MUTATIONS: u32 = 52;
}
