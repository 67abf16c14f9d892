//! Envoy Gateway's own configuration, in which the controller is named as its extension server. Everything else there
//! belongs to who installed Envoy Gateway.

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::api::{Access, ENVOY_GATEWAY};

/// The ConfigMap with the configuration, and its only entry.
pub const CONFIGURATION: &str = "envoy-gateway-config";
const FILE: &str = "envoy-gateway.yaml";
const EXTENSION: &str = "extensionManager";

/// The extension server in a ConfigMap of this kind.
///
/// # Errors
/// When the ConfigMap has none.
pub fn extension(configuration: &Value) -> Result<Value> {
    let text = configuration["data"][FILE].as_str().context("the ConfigMap has no configuration")?;
    let mut own: Value = serde_saphyr::from_str(text)?;
    let extension = own.as_object_mut().and_then(|own| own.remove(EXTENSION));
    extension.context("the configuration has no extension server")
}

/// Puts the extension server into the cluster's configuration, or takes it out, and starts Envoy Gateway again if that
/// changes anything.
///
/// # Errors
/// When the cluster has an extension server of somebody else, or the API server refuses.
pub async fn configure(access: &Access, extension: Option<Value>) -> Result<()> {
    let api = access.of::<ConfigMap>(ENVOY_GATEWAY);
    let found = api.get(CONFIGURATION).await.context("read Envoy Gateway's configuration")?;
    let text = found.data.and_then(|data| data.get(FILE).cloned()).context("it has no configuration")?;
    let Some(edited) = edited(&text, extension)? else { return Ok(()) };
    let patch = Patch::Merge(json!({ "data": { FILE: edited } }));
    api.patch(CONFIGURATION, &PatchParams::default(), &patch)
        .await
        .context("change Envoy Gateway's configuration")?;
    let restart = ["--namespace", ENVOY_GATEWAY, "rollout", "restart", "deployment/envoy-gateway"];
    access.kubectl(&restart, "").await.map(drop)
}

/// The configuration with another extension server; `None` if it has this one already.
fn edited(text: &str, extension: Option<Value>) -> Result<Option<String>> {
    let mut own: Value = serde_saphyr::from_str(text).context("read Envoy Gateway's configuration")?;
    let fields = own.as_object_mut().context("Envoy Gateway's configuration is not an object")?;
    let host = |extension: &Value| extension["service"]["fqdn"]["hostname"].as_str().map(str::to_owned);
    let before = fields.remove(EXTENSION);
    if before == extension {
        return Ok(None);
    }
    if let (Some(before), Some(extension)) = (&before, &extension)
        && host(before) != host(extension)
    {
        bail!("Envoy Gateway has another extension server already: {}", before["service"]);
    }
    fields.extend(extension.map(|extension| (EXTENSION.to_owned(), extension)));
    Ok(Some(serde_saphyr::to_string(&own)?))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{edited, extension};
    use crate::files;

    const OWN: &str =
        "provider:\n  type: Kubernetes\n  kubernetes:\n    shutdownManager:\n      image: gateway:v1\n";

    fn ours() -> Value {
        let (_, text) =
            files::COMPONENTS.iter().find(|(name, _)| name.ends_with("envoy-gateway.yaml")).unwrap();
        let objects: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
        extension(objects.iter().find(|object| object["kind"] == "ConfigMap").unwrap()).unwrap()
    }

    fn read(text: &str) -> Value {
        serde_saphyr::from_str(text).unwrap()
    }

    #[test]
    fn the_rest_of_the_configuration_stays() {
        let with = edited(OWN, Some(ours())).unwrap().unwrap();
        assert_eq!(read(&with)["provider"], read(OWN)["provider"]);
        assert_eq!(read(&with)["extensionManager"], ours());
        assert_eq!(edited(&with, Some(ours())).unwrap(), None, "nothing changes a second time");
        assert_eq!(read(&edited(&with, None).unwrap().unwrap()), read(OWN));
        assert_eq!(edited(OWN, None).unwrap(), None);
    }

    #[test]
    fn somebody_elses_extension_server_stays() {
        let others =
            json!({ "extensionManager": { "service": { "fqdn": { "hostname": "ai", "port": 1 } } } });
        let error = edited(&others.to_string(), Some(ours())).unwrap_err().to_string();
        assert!(error.contains("another extension server already") && error.contains("ai"), "{error}");
    }
}
