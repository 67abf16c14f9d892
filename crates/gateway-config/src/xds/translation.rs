//! The translation of one Gateway: the pickers' clusters, and their filters on the listeners that lead to marked routes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::bytes::Bytes;
use serde_json::json;

use crate::attachment::Responses;
use crate::error::Malformed;
use crate::render::filters::HELD_BODY_BYTES;
use crate::render::listener::{decision_header, without_forbidden_headers};
use crate::wire::Message;
use crate::xds::pool_parts::{MANAGER, PoolParts};
use crate::xds::{Editor, Pool, field, mark};

const CONNECTION_MANAGER: &str = "envoy.filters.network.http_connection_manager";

/// Everything that one Gateway's proxies get, as encoded messages. The answer replaces what was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub clusters: Vec<Bytes>,
    pub listeners: Vec<Bytes>,
    pub route_configurations: Vec<Bytes>,
}

/// Marked pools by name, the names of the pools by their clusters, and for each route configuration those of the pools that
/// its routes lead to.
#[derive(Debug, Default)]
struct Marks {
    pools: BTreeMap<String, Arc<PoolParts>>,
    by_cluster: BTreeMap<String, String>,
    by_route_configuration: BTreeMap<String, Vec<String>>,
}

impl Marks {
    fn read(resources: &Resources, editor: &Editor) -> Result<Self, Malformed> {
        let mut marks = Self::default();
        for cluster in &resources.clusters {
            let cluster = Message::decode(cluster)?;
            let mark = mark::read(&cluster, field::cluster::METADATA, mark::POOL)?;
            if let Some(pool) = mark.and_then(|text| serde_json::from_str::<Pool>(&text).ok()) {
                let name = pool.key.to_string();
                marks.by_cluster.insert(cluster.text(field::cluster::NAME).to_owned(), name.clone());
                marks.pools.insert(name, editor.pool_parts(&pool));
            }
        }
        for configuration in &resources.route_configurations {
            use field::route_configuration as number;
            let configuration = Message::decode(configuration)?;
            let mut names: Vec<String> = Vec::new();
            for host in configuration.all(number::VIRTUAL_HOSTS) {
                for route in Message::decode(host)?.all(number::ROUTES) {
                    let mark = mark::read(&Message::decode(route)?, field::route::METADATA, mark::POOL)?;
                    for name in mark.iter().flat_map(|mark| mark::names(mark)) {
                        if marks.pools.contains_key(name) && !names.iter().any(|known| known == name) {
                            names.push(name.to_owned());
                        }
                    }
                }
            }
            marks.by_route_configuration.insert(configuration.text(number::NAME).to_owned(), names);
        }
        Ok(marks)
    }

    /// Pools that the routes of this configuration lead to, each once.
    fn pools(&self, route_configuration: &str) -> Vec<&PoolParts> {
        let names = self.by_route_configuration.get(route_configuration);
        names.into_iter().flatten().filter_map(|name| self.pools.get(name).map(|parts| &**parts)).collect()
    }
}

impl Editor {
    /// Attaches the marked pools. What is there already is not added again.
    ///
    /// # Errors
    /// If one of the resources is not a protobuf message.
    pub fn translation(&self, resources: Resources) -> Result<Resources, Malformed> {
        let clusters = self.with_portions(resources.clusters)?;
        let resources = Resources { clusters, ..resources };
        let marks = Marks::read(&resources, self)?;
        let Resources { clusters, listeners, route_configurations } = resources;
        let pickers: BTreeSet<&str> = marks.pools.values().map(|parts| parts.picker_name.as_str()).collect();
        let mut kept = Vec::with_capacity(clusters.len() + pickers.len());
        for cluster in clusters {
            if !pickers.contains(Message::decode(&cluster)?.text(field::cluster::NAME)) {
                kept.push(cluster);
            }
        }
        kept.extend(marks.pools.values().map(|parts| Bytes::from(parts.picker.clone())));
        let listeners = listeners
            .into_iter()
            .map(|listener| self.listener(listener, &marks))
            .collect::<Result<_, _>>()?;
        let route_configurations = route_configurations
            .into_iter()
            .map(|configuration| self.route_configuration(configuration, &marks))
            .collect::<Result<_, _>>()?;
        Ok(Resources { clusters: kept, listeners, route_configurations })
    }

    fn route_configuration(&self, bytes: Bytes, marks: &Marks) -> Result<Bytes, Malformed> {
        use field::route_configuration as number;
        let mut configuration = Message::decode(&bytes)?;
        let pools = marks.pools(configuration.text(number::NAME));
        if !pools.iter().any(|parts| parts.pool.responses != Responses::Through) {
            return Ok(bytes);
        }
        configuration.edit(number::VIRTUAL_HOSTS, |host| {
            let mut host = Message::decode(host)?;
            host.remove_if(number::ROUTES, |route| {
                mark::is_made(&Message::decode(route)?, field::route::METADATA)
            })?;
            host.insert_before_each(number::ROUTES, |route| self.reporting(route, marks))?;
            Ok(Some(host.encode()))
        })?;
        let header = json!({ "response_headers_to_add": [decision_header()] });
        let part = self.parts.encode("envoy.config.route.v3.RouteConfiguration", &header);
        if self.explains {
            merge_once(&mut configuration, number::RESPONSE_HEADERS_TO_ADD, &part)?;
        }
        Ok(configuration.encode().into())
    }

    /// The route for the share of a marked route's requests of which the bodies of responses are reported.
    fn reporting(&self, route: &[u8], marks: &Marks) -> Result<Option<Vec<u8>>, Malformed> {
        use field::route_action::WEIGHTED_CLUSTERS;
        let mut route = Message::decode(route)?;
        let mark = mark::read(&route, field::route::METADATA, mark::POOL)?;
        let mut pools =
            mark.iter().flat_map(|mark| mark::names(mark)).filter_map(|name| marks.pools.get(name));
        // Shares do not differ: the operator names one for all pools.
        let Some(reports) = pools.find_map(|parts| parts.body_reports.as_ref()) else { return Ok(None) };
        let action = route.bytes(field::route::ROUTE).map(Message::decode).transpose()?;
        let is_divided = action.is_some_and(|action| action.has(WEIGHTED_CLUSTERS));
        if is_divided {
            route.edit(field::route::ROUTE, |action| {
                let mut action = Message::decode(action)?;
                action.edit(WEIGHTED_CLUSTERS, |weighted| reporting_portions(weighted, marks))?;
                Ok(Some(action.encode()))
            })?;
        } else {
            route.merge(&reports.route)?;
        }
        route.merge(&reports.share)?;
        Ok(Some(route.encode()))
    }

    fn listener(&self, bytes: Bytes, marks: &Marks) -> Result<Bytes, Malformed> {
        use field::listener as number;
        let mut listener = Message::decode(&bytes)?;
        let mut holds_bodies = false;
        let mut is_edited = false;
        for chains in [number::FILTER_CHAINS, number::DEFAULT_FILTER_CHAIN] {
            is_edited |= listener.edit(chains, |chain| {
                let mut chain = Message::decode(chain)?;
                let is_edited = chain.edit(number::FILTERS, |filter| {
                    let mut filter = Message::decode(filter)?;
                    if filter.text(field::extension::NAME) != CONNECTION_MANAGER {
                        return Ok(None);
                    }
                    let is_edited = filter.edit(field::extension::TYPED_CONFIG, |any| {
                        let mut any = Message::decode(any)?;
                        let is_edited = any.edit(field::extension::VALUE, |manager| {
                            let (manager, holds) = self.manager(manager, marks)?;
                            holds_bodies |= holds;
                            Ok(manager)
                        })?;
                        Ok(is_edited.then(|| any.encode()))
                    })?;
                    Ok(is_edited.then(|| filter.encode()))
                })?;
                Ok(is_edited.then(|| chain.encode()))
            })?;
        }
        if !is_edited {
            return Ok(bytes);
        }
        let limit = json!({ "per_connection_buffer_limit_bytes": HELD_BODY_BYTES });
        let limit = self.parts.encode("envoy.config.listener.v3.Listener", &limit);
        if holds_bodies {
            listener.remove(&[number::PER_CONNECTION_BUFFER_LIMIT_BYTES]);
            listener.merge(&limit)?;
        }
        Ok(listener.encode().into())
    }

    /// The connection manager with the filters of the pools that its routes lead to, and whether Envoy holds bodies for one of them.
    /// The manager is `None` if they lead to no pool.
    fn manager(&self, bytes: &[u8], marks: &Marks) -> Result<(Option<Vec<u8>>, bool), Malformed> {
        use field::connection_manager as number;
        let mut manager = Message::decode(bytes)?;
        let rds = manager.bytes(number::RDS).map(Message::decode).transpose()?.unwrap_or_default();
        let pools = marks.pools(rds.text(number::ROUTE_CONFIG_NAME));
        if pools.is_empty() {
            return Ok((None, false));
        }
        let filters = || pools.iter().flat_map(|parts| &parts.filters);
        let names: BTreeSet<&str> = filters().map(|(name, _)| name.as_str()).collect();
        manager.remove_if(number::HTTP_FILTERS, |filter| {
            Ok(names.contains(Message::decode(filter)?.text(field::extension::NAME)))
        })?;
        // The last filter is the router.
        for (_, filter) in filters() {
            manager.insert_before_last(number::HTTP_FILTERS, filter.clone());
        }
        let removed =
            json!({ "early_header_mutation_extensions": [without_forbidden_headers(self.explains)] });
        let removed = self.parts.encode(MANAGER, &removed);
        merge_once(&mut manager, number::EARLY_HEADER_MUTATIONS, &removed)?;
        let logs = || pools.iter().filter_map(|parts| parts.access_log.as_ref());
        let names: BTreeSet<&str> = logs().map(|(name, _)| name.as_str()).collect();
        manager.remove_if(number::ACCESS_LOG, |log| {
            Ok(names.contains(Message::decode(log)?.text(field::extension::NAME)))
        })?;
        for (_, part) in logs() {
            manager.merge(part)?;
        }
        let request_id = json!({ "always_set_request_id_in_response": true });
        let request_id = self.parts.encode(MANAGER, &request_id);
        if pools.iter().any(|parts| parts.pool.responses != Responses::Through) {
            manager.remove(&[number::ALWAYS_SET_REQUEST_ID_IN_RESPONSE]);
            manager.merge(&request_id)?;
        }
        let holds_bodies = pools.iter().any(|parts| parts.pool.attachment().holds_bodies());
        Ok((Some(manager.encode()), holds_bodies))
    }
}

/// Weighted clusters, in which those of pools report the bodies of responses.
fn reporting_portions(weighted: &[u8], marks: &Marks) -> Result<Option<Vec<u8>>, Malformed> {
    use field::weighted_cluster as number;
    let mut weighted = Message::decode(weighted)?;
    weighted.edit(number::CLUSTERS, |entry| {
        let mut entry = Message::decode(entry)?;
        let pool = marks.by_cluster.get(entry.text(number::NAME)).and_then(|name| marks.pools.get(name));
        let Some(reports) = pool.and_then(|parts| parts.body_reports.as_ref()) else { return Ok(None) };
        entry.merge(&reports.portion)?;
        Ok(Some(entry.encode()))
    })?;
    Ok(Some(weighted.encode()))
}

/// Merges a part with one value of the repeated field `number`, unless the message has that value.
fn merge_once<'a>(message: &mut Message<'a>, number: u32, part: &'a [u8]) -> Result<(), Malformed> {
    let decoded = Message::decode(part)?;
    let is_there = message.all(number).any(|value| Some(value) == decoded.bytes(number));
    if is_there { Ok(()) } else { message.merge(part) }
}
