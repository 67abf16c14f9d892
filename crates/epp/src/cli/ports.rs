//! Flags of the ports that the picker serves, and of how it stops serving them.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::values::{parse_duration, parse_wait};
use crate::server::tls::{Security, local_names};

#[derive(Args, Debug)]
#[command(next_help_heading = "Ports (0 takes any free one)")]
pub(super) struct PortArgs {
    /// Address of the ext_proc and health ports
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub(super) host: IpAddr,
    /// Port of Envoy's ext_proc protocol (gRPC)
    #[arg(long, value_name = "PORT", default_value_t = 9002)]
    pub(super) grpc_port: u16,
    /// Port of gRPC health checks
    #[arg(long, value_name = "PORT", default_value_t = 9003)]
    pub(super) health_port: u16,
    /// Address of the metrics port. Its pages show pods and requests to anyone who asks. Prometheus, readiness probes and
    /// other pickers (--peer) on other machines need an address that they can reach
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub(super) metrics_host: IpAddr,
    /// Port of /metrics, /healthz, /readyz and /debug/decisions (HTTP)
    #[arg(long, value_name = "PORT", default_value_t = 9090)]
    pub(super) metrics_port: u16,
    /// Serve ext_proc over TLS, with the certificate of --cert-path or one that is made at the start
    #[arg(long)]
    secure_serving: bool,
    /// Directory with tls.crt and tls.key (PEM), as a Kubernetes Secret is mounted
    #[arg(long, value_name = "DIR", requires = "secure_serving", hide_short_help = true)]
    cert_path: Option<PathBuf>,
    /// DNS name or IP address for the certificate that is made; may be given several times
    /// [default: localhost, 127.0.0.1, ::1]
    #[arg(
        long = "cert-name",
        value_name = "NAME",
        requires = "secure_serving",
        conflicts_with = "cert_path",
        hide_short_help = true
    )]
    cert_names: Vec<String>,
    /// Write the certificate that is made to this file, so that the proxy can trust it
    #[arg(
        long,
        value_name = "FILE",
        requires = "secure_serving",
        conflicts_with = "cert_path",
        hide_short_help = true
    )]
    cert_out: Option<PathBuf>,
    /// Write the bound addresses to this file, as JSON, once all of them are bound
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub(super) port_file: Option<PathBuf>,
    /// Longest time that open streams may take to end after the first SIGTERM or SIGINT; a second signal ends them at once
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "25s",
        value_parser = parse_duration,
        hide_short_help = true
    )]
    pub(super) grace_period: Duration,
    /// Time for which new streams are still accepted after that signal, while health checks already fail. Envoy needs two
    /// checks, one second apart and each up to a second long, to notice
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "3s",
        value_parser = parse_wait,
        hide_short_help = true
    )]
    pub(super) drain_delay: Duration,
}

impl PortArgs {
    /// The protection of the ext_proc port.
    pub(super) fn security(&self) -> Security {
        match (self.secure_serving, &self.cert_path) {
            (false, _) => Security::Plain,
            (true, Some(dir)) => Security::Directory(dir.clone()),
            (true, None) => Security::Made {
                names: if self.cert_names.is_empty() { local_names() } else { self.cert_names.clone() },
                certificate_file: self.cert_out.clone(),
            },
        }
    }
}
