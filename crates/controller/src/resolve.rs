//! The places of a pool's pods and picker, and the way in which the picker is attached.

use gateway_config::attachment::Responses;
use gateway_config::xds::{Picker, Pool, Trust};
use inference_api::object::ObjectKey;
use inference_api::pool::{BodyMode, InferencePool, PickerRef, PoolVersion};
use inference_api::{keys, model_rewrite};

use crate::facts::Facts;
use crate::names;

/// The picker of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PickerService {
    /// Made by the controller.
    Managed(ObjectKey),
    /// Somebody's Service, which the pool names.
    Named(ObjectKey),
    /// The pool names a Service that does not exist, and asks for no managed one.
    Missing(ObjectKey),
    /// The pool names no Service.
    Unnamed,
}

/// The picker of `pool`.
///
/// A v1alpha2 pool has a managed one unless the Service that it names exists. A v1 pool must name one that exists, or ask
/// for a managed one by an annotation.
#[must_use]
pub fn picker(pool: &InferencePool, facts: &Facts) -> PickerService {
    let Some(picker) = &pool.picker else { return PickerService::Unnamed };
    let named = ObjectKey::new(&pool.meta.namespace, &picker.name);
    let managed = || PickerService::Managed(facts.managed_picker(&named));
    let asks = pool.meta.annotations.get(keys::MANAGED_PICKER).is_some_and(|value| value == "true");
    match (pool.version, facts.services.contains(&named)) {
        (PoolVersion::V1, _) if asks => managed(),
        (PoolVersion::V1Alpha2 | PoolVersion::V1, true) => PickerService::Named(named),
        (PoolVersion::V1Alpha2, false) => managed(),
        (PoolVersion::V1, false) => PickerService::Missing(named),
    }
}

/// True if the picker of `pool` is, or would be, somebody else's.
#[must_use]
pub fn is_of_others(pool: &InferencePool, facts: &Facts) -> bool {
    match picker(pool, facts) {
        PickerService::Named(_) | PickerService::Missing(_) => true,
        PickerService::Managed(_) | PickerService::Unnamed => false,
    }
}

/// The body mode of somebody else's picker: the one that the pool's annotation says, or that was found out, or upstream's.
#[must_use]
pub fn body_mode(pool: &InferencePool, facts: &Facts) -> BodyMode {
    let said = pool.picker_body_mode().ok().flatten();
    let found = || facts.body_modes.get(&names::pods_service(&pool.key())).copied();
    said.or_else(found).unwrap_or_default()
}

/// `pool` as the hooks attach it; `None` if it names no picker.
///
/// Responses go past a managed picker unless it must change them. Somebody else's picker gets the whole protocol. One that
/// is missing is attached as if it existed: the pool's failure mode decides about requests until it does.
#[must_use]
pub fn pool(pool: &InferencePool, facts: &Facts) -> Option<Pool> {
    let PickerRef { name: _, port, failure_mode } = pool.picker.as_ref()?;
    let key = pool.key();
    let address = |service: &ObjectKey| names::address(service, &facts.place.domain);
    let (responses, picker) = match picker(pool, facts) {
        PickerService::Unnamed => return None,
        PickerService::Managed(service) => {
            let renames = model_rewrite::renames(&key, &facts.models, &facts.rewrites);
            let responses = if renames { Responses::Through } else { Responses::default() };
            let (host, certificates) = (names::host(&service), facts.authority.clone());
            let trust = Trust::Authority { host, certificates };
            let picker = Picker { address: address(&service), port: keys::DEFAULT_PICKER_PORT, trust };
            (responses, picker)
        }
        PickerService::Named(service) | PickerService::Missing(service) => {
            let picker =
                Picker { address: address(&service), port: *port, trust: Trust::Any(body_mode(pool, facts)) };
            (Responses::Through, picker)
        }
    };
    Some(Pool {
        failure_mode: *failure_mode,
        responses,
        app_protocol: pool.app_protocol,
        pods: address(&names::pods_service(&key)),
        ports: pool.target_ports.clone(),
        picker,
        key,
    })
}
