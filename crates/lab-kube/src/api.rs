//! Access to a cluster: the API server's client, and kubectl for what is applied from files.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use http::Request;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, LogParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use tokio::process::Command;

use crate::tool::Tool;

/// Namespace of the tutorial's objects.
pub const DEFAULT: &str = "default";
/// Namespace of Envoy Gateway, its proxies, the controller and the pickers.
pub const ENVOY_GATEWAY: &str = "envoy-gateway-system";

/// A cluster that can be asked and changed.
#[derive(Clone)]
pub struct Access {
    pub client: Client,
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("context", &self.context).finish_non_exhaustive()
    }
}

impl Access {
    /// Reads the kubeconfig, the user's if none is given, and its current context if none is given.
    ///
    /// # Errors
    /// When there is no such kubeconfig or context.
    pub async fn new(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Self> {
        let file = match kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let file = file.context("read the kubeconfig: set KUBECONFIG, or use --on kind")?;
        let context = context.map(str::to_owned);
        let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
        let config = Config::from_custom_kubeconfig(file, &options).await;
        let config = config.context("find the cluster in the kubeconfig")?;
        let client = Client::try_from(config).context("make a client for the API server")?;
        Ok(Self { client, kubeconfig: kubeconfig.map(Path::to_owned), context })
    }

    /// Runs kubectl against the cluster, with this input.
    ///
    /// # Errors
    /// When kubectl fails.
    pub async fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String> {
        let arguments = [self.context_flag(), arguments.to_vec()].concat();
        Tool::Kubectl.run_with(&arguments, self.kubeconfig.as_deref(), input).await
    }

    /// A command of kubectl against the cluster, for one that lasts.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(Tool::Kubectl.name());
        command.args(self.context_flag()).args(arguments);
        if let Some(kubeconfig) = &self.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        command
    }

    fn context_flag(&self) -> Vec<&str> {
        self.context.iter().flat_map(|context| ["--context", context]).collect()
    }

    /// Returns a page of a pod, through the API server.
    ///
    /// # Errors
    /// When the API server or the pod does not answer with success.
    pub async fn pod_page(&self, namespace: &str, (pod, port): (&str, u16), path: &str) -> Result<String> {
        let uri = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{path}");
        let request = Request::get(&uri).body(Vec::new())?;
        self.client.request_text(request).await.with_context(|| format!("get {path} of {pod}"))
    }

    /// Applies objects, and takes over the fields that somebody else has set.
    ///
    /// # Errors
    /// When the API server refuses them.
    pub async fn apply(&self, objects: &str) -> Result<()> {
        let arguments = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        self.kubectl(&arguments, objects).await.map(drop)
    }

    /// An API of one of Kubernetes' own kinds.
    #[must_use]
    pub fn of<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The objects of one of Kubernetes' own kinds with these labels.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn list<K>(&self, namespace: &str, labels: &str) -> Result<Vec<K>>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + fmt::Debug,
        K::DynamicType: Default,
    {
        let found = self.of::<K>(namespace).list(&ListParams::default().labels(labels)).await;
        let kind = K::kind(&K::DynamicType::default()).into_owned();
        Ok(found.with_context(|| format!("list {kind} objects of {namespace}"))?.items)
    }

    /// The objects of a kind that a definition gives, in a namespace; none while the definition is missing.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn custom(&self, gvk: (&str, &str, &str), namespace: &str) -> Result<Vec<DynamicObject>> {
        let (group, version, kind) = gvk;
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        match api.list(&ListParams::default()).await {
            Ok(list) => Ok(list.items),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| format!("list {kind} objects of {namespace}")),
        }
    }

    /// The last lines of a container's log, or why there are none.
    pub async fn log_tail(&self, namespace: &str, (pod, container): (&str, &str), n_lines: i64) -> String {
        let container = Some(container.to_owned());
        let params = LogParams { tail_lines: Some(n_lines), container, ..LogParams::default() };
        match self.of::<Pod>(namespace).logs(pod, &params).await {
            Ok(text) => text,
            Err(error) => format!("no log: {error}\n"),
        }
    }
}
