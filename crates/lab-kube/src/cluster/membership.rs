//! Envoy's own view of its endpoints, from `/clusters`: when it has taken in which pods and pickers there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// Addresses that serve, and those that did before.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    pub(super) present: BTreeSet<SocketAddr>,
    pub(super) gone: BTreeSet<SocketAddr>,
}

/// Envoy's clusters that have had pods or pickers, with their port: one of these without any waits for its new ones.
#[derive(Debug, Default)]
pub(super) struct Holders(BTreeMap<String, u16>);

impl Holders {
    /// Returns what Envoy's page still lacks: each of its clusters with one of the present addresses must have all that
    /// belong together, which have one port; none may have an address that is gone; and none may have lost all.
    pub(super) fn lacks(&mut self, page: &str, endpoints: &Endpoints) -> Option<String> {
        let mut clusters: BTreeMap<&str, BTreeSet<SocketAddr>> = BTreeMap::new();
        for line in page.lines() {
            let mut parts = line.split("::");
            let (Some(name), Some(address)) = (parts.next(), parts.next()) else { continue };
            let members = clusters.entry(name).or_default();
            if let Ok(address) = address.parse() {
                members.insert(address);
                if line.contains("::health_flags::/failed_active_hc") && endpoints.present.contains(&address)
                {
                    return Some(format!("Envoy finds {address} down"));
                }
            }
        }
        for address in &endpoints.present {
            if !clusters.values().any(|members| members.contains(address)) {
                return Some(format!("Envoy does not know {address}"));
            }
        }
        for (name, members) in &clusters {
            if let Some(gone) = members.iter().find(|member| endpoints.gone.contains(member)) {
                return Some(format!("Envoy has {gone} in {name}, which is gone"));
            }
            let held = self.0.get(*name).filter(|_| members.is_empty());
            if held.is_some_and(|port| endpoints.present.iter().any(|address| address.port() == *port)) {
                return Some(format!("Envoy has nobody in {name}"));
            }
            let Some(one) = members.iter().find(|member| endpoints.present.contains(member)) else {
                continue;
            };
            self.0.insert((*name).to_owned(), one.port());
            let mut alike = endpoints.present.iter().filter(|address| address.port() == one.port());
            if let Some(missing) = alike.find(|address| !members.contains(address)) {
                return Some(format!("Envoy lacks {missing} in {name}"));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::SocketAddr;

    use super::{Endpoints, Holders};

    const PAGE: &str = "a::10.0.0.1:8000::health_flags::healthy\n\
                        a::10.0.0.2:8000::health_flags::healthy\n\
                        a::10.0.0.2:8000::weight::1\n\
                        b::10.0.0.1:8000::health_flags::healthy\n\
                        p::10.0.0.9:9002::health_flags::healthy\n\
                        xds::10.96.0.1:18000::health_flags::healthy\n";

    fn set(addresses: &[&str]) -> BTreeSet<SocketAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    fn lacks(page: &str, endpoints: &Endpoints) -> Option<String> {
        Holders::default().lacks(page, endpoints)
    }

    #[test]
    fn a_cluster_that_has_lost_all_waits_for_others() {
        let page = "a::added_via_api::true\na::10.0.0.1:8000::health_flags::healthy\n\
                    b::added_via_api::true\nb::10.0.0.1:8000::health_flags::healthy\nnever::added_via_api::true\n";
        let present = |address: &str| Endpoints { present: set(&[address]), gone: set(&[]) };
        let mut holders = Holders::default();
        assert_eq!(holders.lacks(page, &present("10.0.0.1:8000")), None);
        let emptied = "a::added_via_api::true\nb::10.0.0.2:8000::health_flags::healthy\n";
        let seen = holders.lacks(emptied, &present("10.0.0.2:8000"));
        assert_eq!(seen.unwrap(), "Envoy has nobody in a");
        assert_eq!(
            holders.lacks(emptied, &present("10.0.0.2:9002")).unwrap(),
            "Envoy does not know 10.0.0.2:9002"
        );
        let others = format!("{emptied}p::10.0.0.9:9002::health_flags::healthy\n");
        assert_eq!(
            holders.lacks(&others, &present("10.0.0.9:9002")),
            None,
            "there is no pod that it could have"
        );
        let removed = "b::10.0.0.2:8000::health_flags::healthy\n";
        assert_eq!(holders.lacks(removed, &present("10.0.0.2:8000")), None, "it is gone with its route");
    }

    #[test]
    fn every_cluster_must_have_all_and_only_the_present_ones() {
        let page = PAGE.to_owned() + "b::10.0.0.2:8000::health_flags::healthy\n";
        let present = set(&["10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.9:9002"]);
        let endpoints = Endpoints { present, gone: set(&["10.0.0.3:8000"]) };
        assert_eq!(lacks(&page, &endpoints), None);
        assert_eq!(lacks(PAGE, &endpoints).unwrap(), "Envoy lacks 10.0.0.2:8000 in b");
        let stale = page.clone() + "a::10.0.0.3:8000::health_flags::healthy\n";
        assert!(lacks(&stale, &endpoints).unwrap().contains("10.0.0.3:8000 in a, which is gone"));
        let down = page.replace(
            "10.0.0.9:9002::health_flags::healthy",
            "10.0.0.9:9002::health_flags::/failed_active_hc",
        );
        assert_eq!(lacks(&down, &endpoints).unwrap(), "Envoy finds 10.0.0.9:9002 down");
        let new = Endpoints { present: set(&["10.0.0.4:8000"]), gone: set(&[]) };
        assert_eq!(lacks(&page, &new).unwrap(), "Envoy does not know 10.0.0.4:8000");
    }
}
