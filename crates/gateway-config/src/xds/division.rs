//! Rules that divide their requests among several backends, pools among them.
//!
//! Envoy Gateway makes one cluster for such a rule, with the pods of its Services, and forgets the weights of its pools.
//! The edit of the route gives each pool a weighted cluster. The cluster gets a mark, from which the translation makes
//! the clusters of the pools.

use prost::bytes::Bytes;
use prost::encoding;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::Malformed;
use crate::render::filters::filter_names;
use crate::render::route::enabled;
use crate::wire::Message;
use crate::xds::field::{cluster, route, route_action, weighted_cluster};
use crate::xds::{Editor, Pool, mark};

const CLUSTER_WEIGHT: &str = "envoy.config.route.v3.WeightedCluster.ClusterWeight";

/// The backends of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Division {
    /// Name of the cluster that Envoy Gateway makes for the whole rule.
    pub rule: String,
    pub pools: Vec<Portion>,
    /// Weight of the backends that are no pools.
    pub others: u32,
}

/// A pool that takes a part of a rule's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Portion {
    /// Name of the cluster that Envoy Gateway makes for this backend if it makes one for each.
    pub cluster: String,
    pub weight: u32,
    /// The pool; `None` if it cannot be attached: its part of the requests fails.
    pub pool: Option<Pool>,
}

impl Division {
    /// The pool that takes all requests; `None` if they are divided.
    fn alone(&self) -> Option<&Pool> {
        match self.pools.as_slice() {
            [Portion { cluster: _, weight: _, pool }] if self.others == 0 => pool.as_ref(),
            _ => None,
        }
    }
}

impl Editor {
    /// Attaches the pools of a rule to its `envoy.config.route.v3.Route`.
    ///
    /// # Errors
    /// If `route` is not a protobuf message.
    pub fn divided_route(&self, route: &[u8], division: &Division) -> Result<Vec<u8>, Malformed> {
        let mut message = Message::decode(route)?;
        let action = message.bytes(route::ROUTE).map(Message::decode).transpose()?;
        let names_one = action.is_some_and(|action| action.has(route_action::CLUSTER));
        match division.alone() {
            Some(pool) if names_one => return self.route(route, pool),
            Some(_) | None => {}
        }
        message.edit(route::ROUTE, |action| self.divided(action, division).map(Some))?;
        let pools = division.pools.iter().filter_map(|portion| portion.pool.as_ref());
        self.marked_route(&message.encode(), pools, &[])
    }

    /// Attaches a pool of a rule to the `envoy.config.cluster.v3.Cluster` that is made for it, or marks the one of the
    /// whole rule. Other clusters stay as they are.
    ///
    /// # Errors
    /// If `cluster` is not a protobuf message.
    pub fn divided_cluster(&self, cluster: &[u8], division: &Division) -> Result<Vec<u8>, Malformed> {
        let mut message = Message::decode(cluster)?;
        let name = message.text(cluster::NAME);
        let own = division.pools.iter().find(|portion| portion.cluster == name);
        let own = own.and_then(|portion| portion.pool.as_ref());
        let is_whole = name == division.rule;
        match own.or(division.alone().filter(|_| is_whole)) {
            Some(pool) => return self.cluster(cluster, pool),
            None if !is_whole => return Ok(cluster.to_vec()),
            None => {}
        }
        mark::remove(&mut message, cluster::METADATA)?;
        let mark = mark::render(mark::DIVISION, &json!(json!(division).to_string()));
        let part = self.parts.encode("envoy.config.cluster.v3.Cluster", &json!({ "metadata": mark }));
        message.merge(&part)?;
        Ok(message.encode())
    }

    /// The clusters, in which each pool of a marked one has its own.
    pub(super) fn with_portions(&self, clusters: Vec<Bytes>) -> Result<Vec<Bytes>, Malformed> {
        let mut all = Vec::with_capacity(clusters.len());
        for bytes in clusters {
            let mut message = Message::decode(&bytes)?;
            let mark = mark::read(&message, cluster::METADATA, mark::DIVISION)?;
            let Some(division) = mark.and_then(|text| serde_json::from_str::<Division>(&text).ok()) else {
                all.push(bytes);
                continue;
            };
            mark::remove(&mut message, cluster::METADATA)?;
            let plain = message.encode();
            let attachable = |portion: &Portion| Some((portion.cluster.clone(), portion.pool.clone()?));
            for (name, pool) in division.pools.iter().filter_map(attachable) {
                let mut renamed = Message::decode(&plain)?;
                let mut part = Vec::new();
                encoding::string::encode(cluster::NAME, &name, &mut part);
                renamed.remove(&[cluster::NAME]);
                renamed.merge(&part)?;
                all.push(self.cluster(&renamed.encode(), &pool)?.into());
            }
            if division.others > 0 {
                all.push(plain.into());
            }
        }
        Ok(all)
    }

    /// The `envoy.config.route.v3.RouteAction` with a weighted cluster for each pool.
    fn divided(&self, action: &[u8], division: &Division) -> Result<Vec<u8>, Malformed> {
        let mut action = Message::decode(action)?;
        let before = action.bytes(route_action::WEIGHTED_CLUSTERS).unwrap_or_default().to_vec();
        let mut weighted = Message::decode(&before)?;
        weighted.remove_if(weighted_cluster::CLUSTERS, |entry| {
            let entry = Message::decode(entry)?;
            let name = entry.text(weighted_cluster::NAME);
            Ok(division.pools.iter().any(|portion| portion.cluster == name))
        })?;
        let mut added = Vec::new();
        if action.has(route_action::CLUSTER) && division.others > 0 {
            let others = json!({ "name": division.rule, "weight": division.others });
            let others = self.parts.encode(CLUSTER_WEIGHT, &others);
            encoding::bytes::encode(weighted_cluster::CLUSTERS, &others, &mut added);
        }
        for Portion { cluster, weight, pool } in &division.pools {
            let mut entry = self.parts.encode(CLUSTER_WEIGHT, &json!({ "name": cluster, "weight": weight }));
            for name in pool.iter().flat_map(|pool| filter_names(&pool.attachment())) {
                let config = json!({ "typed_per_filter_config": { name: enabled() } });
                entry.extend(self.parts.encode(CLUSTER_WEIGHT, &config));
            }
            encoding::bytes::encode(weighted_cluster::CLUSTERS, &entry, &mut added);
        }
        weighted.merge(&added)?;
        let mut part = Vec::new();
        encoding::bytes::encode(route_action::WEIGHTED_CLUSTERS, &weighted.encode(), &mut part);
        action.remove(&[route_action::CLUSTER, route_action::WEIGHTED_CLUSTERS]);
        action.merge(&part)?;
        Ok(action.encode())
    }
}
