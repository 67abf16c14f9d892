//! Settings of pickers, which the controller gives to all of its own: its arguments say them.

use anyhow::{Context as _, Result};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use lab::cluster::Fresh;
use lab::cluster::fault::Unavailable;
use serde_json::json;

use crate::api::{Access, ENVOY_GATEWAY};
use crate::settle;
use crate::wait::Look;

/// Label of the Deployments and pods of pickers.
pub(super) const PICKERS: &str = "app.kubernetes.io/name=epp";
const CONTROLLER: &str = "warmpath-controller";
const EXPLAIN: &str = "--explain-to-clients";

/// The controller's arguments as they were found.
#[derive(Clone, Debug)]
pub(super) struct Controller {
    container: String,
    arguments: Vec<String>,
}

impl Controller {
    /// Reads the arguments.
    ///
    /// # Errors
    /// When there is no controller.
    pub(super) async fn find(access: &Access) -> Result<Self> {
        let found =
            access.of::<Deployment>(ENVOY_GATEWAY).get(CONTROLLER).await.context("read the controller")?;
        let (container, arguments) = first_container(&found).context("the controller has no container")?;
        Ok(Self { container, arguments })
    }

    /// Gives the controller further arguments, or none.
    ///
    /// # Errors
    /// When the API server refuses.
    pub(super) async fn set(&self, access: &Access, further: &[String]) -> Result<()> {
        let api = access.of::<Deployment>(ENVOY_GATEWAY);
        let wanted = [&self.arguments[..], further].concat();
        if first_container(&api.get(CONTROLLER).await?).is_some_and(|(_, present)| present == wanted) {
            return Ok(());
        }
        let containers = json!([{ "name": self.container, "args": wanted }]);
        let patch = json!({ "spec": { "template": { "spec": { "containers": containers } } } });
        let patched = api.patch(CONTROLLER, &PatchParams::default(), &Patch::Strategic(&patch)).await;
        patched.context("change the controller's arguments").map(drop)
    }
}

/// Looks if the controller runs with its new arguments, and every pool's picker with those that end so.
///
/// # Errors
/// When the API server does not answer.
pub(super) async fn look(access: &Access, fresh: &Fresh) -> Result<Look<()>> {
    if let Some(controller) = access.of::<Deployment>(ENVOY_GATEWAY).get_opt(CONTROLLER).await?
        && let Some(why) = settle::unready(&controller)
    {
        return Ok(Look::Missing(why));
    }
    if let Some(why) = settle::without_picker(access).await?.into_iter().next() {
        return Ok(Look::Missing(why));
    }
    let explain = fresh.explains.then(|| EXPLAIN.to_owned());
    let end: Vec<String> = explain.into_iter().chain(fresh.picker_args.iter().cloned()).collect();
    for picker in access.list::<Deployment>(ENVOY_GATEWAY, PICKERS).await? {
        let (_, arguments) = first_container(&picker).unwrap_or_default();
        let explains = arguments.iter().any(|argument| argument == EXPLAIN);
        let peer = arguments.iter().position(|argument| argument.starts_with("--peer="));
        if explains != fresh.explains || arguments[peer.map_or(0, |idx| idx + 1)..] != end {
            return Ok(Look::Missing("the controller has not changed its pickers yet".to_owned()));
        }
    }
    Ok(Look::Done(()))
}

/// Returns the controller's arguments for these settings of pickers.
///
/// # Errors
/// When it has none for them.
pub(super) fn arguments(fresh: &Fresh) -> Result<Vec<String>, Unavailable> {
    let Fresh { engine_args: _, picker_args, explains, responses, pickers: _, relayed } = fresh;
    if *relayed {
        return Err(Unavailable("nothing can come between Envoy and the pickers' Services".to_owned()));
    }
    if responses.is_some_and(|responses| responses != <_>::default()) {
        return Err(Unavailable("the controller chooses the way of responses".to_owned()));
    }
    let explain = explains.then(|| EXPLAIN.to_owned());
    let further = picker_args.iter().map(|argument| format!("--picker-arg={argument}"));
    Ok(explain.into_iter().chain(further).collect())
}

fn first_container(deployment: &Deployment) -> Option<(String, Vec<String>)> {
    let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
    let container = pod.containers.first()?;
    Some((container.name.clone(), container.args.clone().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use lab::cluster::Fresh;

    use super::arguments;

    #[test]
    fn settings_of_pickers_are_the_controllers_arguments() {
        let picker_args = ["--tokenize-timeout", "10s"].map(str::to_owned).to_vec();
        let fresh = Fresh { picker_args, ..Fresh::default() };
        let wanted = ["--explain-to-clients", "--picker-arg=--tokenize-timeout", "--picker-arg=10s"];
        assert_eq!(arguments(&fresh).unwrap(), wanted);
        let silent = Fresh { explains: false, ..Fresh::default() };
        assert!(arguments(&silent).unwrap().is_empty());
    }
}
