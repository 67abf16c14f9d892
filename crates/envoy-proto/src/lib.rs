//! Envoy's ext_proc protocol, its access log service and Envoy Gateway's extension service as generated Rust, reduced to what Warmpath needs.
//!
//! The protos under `proto/` keep Envoy's names and numbers; `bytes` fields are [`bytes::Bytes`], so that a body chunk
//! is passed on without a copy. The code under `generated/` is committed, so that a build needs neither protoc nor its
//! like; `just proto` writes it again, and a test fails when it is stale. Modules are named as the packages below `envoy`.

#![expect(clippy::allow_attributes_without_reason, clippy::struct_excessive_bools, reason = "generated code")]

pub mod config {
    pub mod core {
        pub mod v3 {
            include!("generated/envoy.config.core.v3.rs");
        }
    }
}

pub mod extensions {
    pub mod filters {
        pub mod http {
            pub mod ext_proc {
                pub mod v3 {
                    include!("generated/envoy.extensions.filters.http.ext_proc.v3.rs");
                }
            }
        }
    }
}

pub mod data {
    pub mod accesslog {
        pub mod v3 {
            include!("generated/envoy.data.accesslog.v3.rs");
        }
    }
}

pub mod service {
    pub mod accesslog {
        pub mod v3 {
            include!("generated/envoy.service.accesslog.v3.rs");
        }
    }
    pub mod ext_proc {
        pub mod v3 {
            include!("generated/envoy.service.ext_proc.v3.rs");
        }
    }
}

pub mod r#type {
    pub mod v3 {
        include!("generated/envoy.r#type.v3.rs");
    }
}

/// The service by which Envoy Gateway lets others edit the configuration that it makes.
#[cfg(feature = "envoy-gateway")]
#[expect(clippy::too_many_lines, reason = "generated code")]
pub mod envoygateway {
    pub mod extension {
        include!("generated/envoygateway.extension.rs");
    }
}

/// Descriptors of the configuration messages that Warmpath writes: an encoded `FileDescriptorSet`.
pub const XDS_DESCRIPTORS: &[u8] = include_bytes!("generated/xds.binpb");

pub mod google {
    //! The well-known types, under their own package's name.

    /// The generated code is bound to this version of the crate, so users take it from here.
    pub use prost_types as protobuf;
}
