//! Stands a cluster up, in an order in which nothing waits for what comes later: images, cluster, definitions, Envoy
//! Gateway, controller, Envoy Gateway's configuration, the tutorial's objects. What is there already stays.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use lab::cluster::manifests::{KUSTOMIZATIONS, Manifests};
use lab::cluster::programs::ProgramOptions;
use lab::cluster::{Progress, ProgressEvent};
use lab::engine::Engine;
use serde_json::Value;
use tokio::try_join;

use crate::api::{Access, ENVOY_GATEWAY};
use crate::envoy_gateway;
use crate::files;
use crate::images::{self, Image, PREFIX};
use crate::kind::Kind;
use crate::node;
use crate::settle::{self, Addresses, Conditions};
use crate::tool::Tool;

/// The release of Envoy Gateway that is installed if there is none.
pub const INSTALL: &str = "https://github.com/envoyproxy/gateway/releases/download/v1.9.1/install.yaml";
const CONTROLLER: &str = "warmpath-controller";
const GATEWAY: &str = "envoy-gateway";
/// Label of what the controller makes.
const MADE: &str = "app.kubernetes.io/managed-by=warmpath-controller";

/// The cluster to use.
#[derive(Clone, Debug)]
pub enum Target {
    /// A cluster of kind, made if it is not there.
    Kind(Kind),
    /// A cluster that is there, by its context in the user's kubeconfig; `None` for the current one.
    Existing(Option<String>),
}

/// Parts of a cluster to stand up.
#[derive(Clone, Debug)]
pub struct Plan {
    pub target: Target,
    /// Program that the pods of pools run.
    pub engine: Engine,
    /// Prefix of published images; `None` for images of the programs of this machine.
    pub images: Option<String>,
    /// File or URL of Envoy Gateway's objects.
    pub envoy_gateway: String,
    pub programs: ProgramOptions,
    /// Version of the running program, with its revision in brackets.
    pub version: String,
    /// Folder for generated files.
    pub run_dir: PathBuf,
}

/// A cluster that is up.
#[derive(Clone, Debug)]
pub struct Standing {
    pub access: Access,
    pub conditions: Conditions,
}

/// Sees that the programs that the target needs are there, before anything is made.
///
/// # Errors
/// When one is missing; the error says where to get it.
pub async fn check(target: &Target) -> Result<()> {
    Tool::Kubectl.check().await?;
    if let Target::Kind(_) = target {
        Tool::Docker.check().await?;
        Tool::Kind.check().await?;
    }
    Ok(())
}

/// Stands up everything but the tutorial's objects.
///
/// # Errors
/// When a step fails; the error names it.
pub async fn components(plan: &Plan, progress: &Progress) -> Result<Standing> {
    let (access, prepared) = match &plan.target {
        Target::Kind(kind) => on_kind(plan, kind, progress).await?,
        Target::Existing(context) => {
            let access = Access::new(None, context.as_deref()).await?;
            install_envoy_gateway(&access, &plan.envoy_gateway, progress).await?;
            let images = prefixed(plan.images.as_deref().unwrap_or(PREFIX));
            (access, images)
        }
    };
    let objects = rendered(&access, &plan.run_dir, &prepared).await?;
    apply_in_order(&access, objects, progress).await?;
    let addresses = match plan.target {
        Target::Kind(_) => Addresses::OfNodes,
        Target::Existing(_) => Addresses::OfCluster,
    };
    Ok(Standing { access, conditions: Conditions { addresses, engine: plan.engine } })
}

/// Applies the objects of files and folders, and waits until they serve.
///
/// # Errors
/// When the API server refuses them, or they are not ready in time.
pub async fn objects(standing: &Standing, manifests: &[PathBuf], progress: &Progress) -> Result<()> {
    for source in manifests {
        progress(ProgressEvent::Step(format!("applying {}", source.display())));
        let (flag, path) = named(source)?;
        standing.access.kubectl(&["apply", flag, path], "").await?;
    }
    settle::settle(&standing.access, standing.conditions, progress).await
}

/// Returns the arguments by which kubectl takes a file or a folder: as a kustomization if it is one.
fn named(source: &Path) -> Result<(&'static str, &str)> {
    let flag = if is_kustomization(source) { "-k" } else { "-f" };
    Ok((flag, source.to_str().context("a path of the manifests is not UTF-8")?))
}

/// Reads files and folders like kubectl, which builds kustomizations.
///
/// # Errors
/// When a source cannot be read, or not be built.
pub async fn read(access: &Access, sources: &[PathBuf]) -> Result<Manifests> {
    let (kustomizations, others): (Vec<PathBuf>, Vec<PathBuf>) =
        sources.iter().cloned().partition(|source| is_kustomization(source));
    let mut manifests = if others.is_empty() { Manifests::default() } else { Manifests::read(&others)? };
    for source in kustomizations {
        let (_, path) = named(&source)?;
        let built = access.kubectl(&["kustomize", path], "").await?;
        manifests.files.insert(path.to_owned(), built);
    }
    Ok(manifests)
}

fn is_kustomization(source: &Path) -> bool {
    KUSTOMIZATIONS.iter().any(|name| source.join(name).is_file())
}

/// Image references in the components' manifests, and what takes their place.
type References = Vec<(String, String)>;

fn prefixed(prefix: &str) -> References {
    Image::ALL.iter().map(|image| (image.reference(PREFIX), image.reference(prefix))).collect()
}

/// Makes the cluster while images are built, and installs Envoy Gateway while they are loaded.
async fn on_kind(plan: &Plan, kind: &Kind, progress: &Progress) -> Result<(Access, References)> {
    let prefix = plan.images.as_deref().unwrap_or(PREFIX);
    let images = async {
        match &plan.images {
            Some(_) => {
                for image in Image::ALL {
                    progress(ProgressEvent::Step(format!("pulling {}", image.reference(prefix))));
                    Tool::Docker.run(&["pull", "--quiet", &image.reference(prefix)]).await?;
                }
            }
            None => {
                let context = plan.run_dir.join("images");
                images::build(&plan.programs, &plan.version, &context, progress).await?;
            }
        }
        anyhow::Ok(())
    };
    try_join!(images, kind.ensure(progress))?;
    let access = Access::new(kind.kubeconfig.as_deref(), Some(&kind.context())).await?;
    node::until_told(&access, progress).await?;
    let install = install_envoy_gateway(&access, &plan.envoy_gateway, progress);
    let (references, ()) = try_join!(load(plan, kind, prefix, progress), install)?;
    match plan.engine {
        Engine::Mock => node::advertise_gpus(&access).await?,
        Engine::Vllm => {}
    }
    Ok((access, references))
}

/// Gives every image to the nodes: ours under a tag that changes with the content, so that a new one is rolled out, and
/// those that stand for others under their names. Real engines have nothing that stands for them.
async fn load(plan: &Plan, kind: &Kind, prefix: &str, progress: &Progress) -> Result<References> {
    progress(ProgressEvent::Step("loading the images into the cluster".to_owned()));
    let (mut references, mut tags) = (Vec::new(), Vec::new());
    let is_wanted = |image: &Image| plan.engine == Engine::Mock || *image != Image::MockVllm;
    for image in Image::ALL.into_iter().filter(is_wanted) {
        let reference = image.reference(prefix);
        let id = Tool::Docker.run(&["image", "inspect", "--format", "{{.Id}}", &reference]).await?;
        let tag = match image.stands_for() {
            Some(other) => other.to_owned(),
            None => format!("{}-{}", reference, short(&id)),
        };
        Tool::Docker.run(&["tag", &reference, &tag]).await?;
        // A node that has an image by its own name as well shows what stands there.
        tags.extend([reference, tag.clone()]);
        references.push((image.reference(PREFIX), tag));
    }
    kind.load(&tags.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    Ok(references)
}

/// The first digits of an image's id.
fn short(id: &str) -> &str {
    let digits = id.trim().trim_start_matches("sha256:");
    digits.get(..12).unwrap_or(digits)
}

/// Installs Envoy Gateway if there is none. The wait for it comes later: it is started again with its configuration, and
/// a pod that has led until then holds its lease for 15 s.
async fn install_envoy_gateway(access: &Access, install: &str, progress: &Progress) -> Result<()> {
    if access.of::<Deployment>(ENVOY_GATEWAY).get_opt(GATEWAY).await?.is_none() {
        progress(ProgressEvent::Step("installing Envoy Gateway".to_owned()));
        let applied = access.kubectl(&["apply", "--server-side", "-f", install], "").await;
        applied.context("install Envoy Gateway: --envoy-gateway names its install.yaml")?;
    }
    Ok(())
}

/// The objects of the components, with other images, and without definitions that the cluster has.
async fn rendered(access: &Access, run_dir: &Path, images: &References) -> Result<Vec<Value>> {
    let mut folder = run_dir.join("components");
    for (name, text) in files::COMPONENTS {
        files::write(&folder.join(name), text)?;
    }
    folder.push("manifests/components");
    let mut text = access.kubectl(&["kustomize", folder.to_str().context("not UTF-8")?], "").await?;
    for (from, to) in images {
        text = text.replace(from, to);
    }
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).context("read the components' objects")?;
    let mut kept = Vec::new();
    for object in objects {
        if object["kind"] != "CustomResourceDefinition" || !is_defined(access, &object).await? {
            kept.push(object);
        }
    }
    Ok(kept)
}

/// True if the cluster has a definition of this name with all its versions, ours or somebody else's.
async fn is_defined(access: &Access, definition: &Value) -> Result<bool> {
    let api: Api<CustomResourceDefinition> = Api::all(access.client.clone());
    let name = definition["metadata"]["name"].as_str().unwrap_or_default();
    let Some(found) = api.get_opt(name).await? else { return Ok(false) };
    let mut versions = definition["spec"]["versions"].as_array().into_iter().flatten();
    Ok(versions.all(|version| found.spec.versions.iter().any(|found| version["name"] == *found.name)))
}

/// Applies everything but Envoy Gateway's configuration, then adds the controller to that when it answers the hooks: until
/// then Envoy Gateway would translate nothing, for any Gateway.
async fn apply_in_order(access: &Access, objects: Vec<Value>, progress: &Progress) -> Result<()> {
    let (configuration, others): (Vec<Value>, Vec<Value>) = objects.into_iter().partition(is_configuration);
    progress(ProgressEvent::Step("applying the components".to_owned()));
    access.apply(&yaml(&others)).await?;
    settle::deployment(access, ENVOY_GATEWAY, CONTROLLER, progress).await?;
    let ours = configuration.first().context("the components have no configuration of Envoy Gateway")?;
    let extension = envoy_gateway::extension(ours)?;
    envoy_gateway::configure(access, Some(extension)).await?;
    settle::deployment(access, ENVOY_GATEWAY, GATEWAY, progress).await
}

fn is_configuration(object: &Value) -> bool {
    object["metadata"]["name"] == envoy_gateway::CONFIGURATION
}

/// The objects as one text. JSON is YAML.
pub fn yaml(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("---\n{object}\n")).collect()
}

/// Removes what [`components`] and [`objects`] applied to a cluster of somebody else's: not Envoy Gateway, which asks no
/// controller any more, nor the definitions, with which everybody's pools would go.
///
/// # Errors
/// When the API server refuses.
pub async fn remove(access: &Access, run_dir: &Path, manifests: &Path, progress: &Progress) -> Result<()> {
    progress(ProgressEvent::Step("removing the objects".to_owned()));
    let (flag, path) = named(manifests)?;
    access.kubectl(&["delete", "--ignore-not-found", flag, path], "").await?;
    let mut objects = rendered(access, run_dir, &Vec::new()).await?;
    objects.retain(|object| object["kind"] != "CustomResourceDefinition");
    objects.retain(|object| !is_configuration(object));
    envoy_gateway::configure(access, None).await?;
    settle::deployment(access, ENVOY_GATEWAY, GATEWAY, progress).await?;
    access.kubectl(&["delete", "--ignore-not-found", "-f", "-"], &yaml(&objects)).await?;
    let made =
        ["delete", "deployments,services,serviceaccounts,secrets", "--namespace", ENVOY_GATEWAY, "-l", MADE];
    access.kubectl(&made, "").await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn an_image_is_told_by_the_beginning_of_its_id() {
        assert_eq!(short("sha256:0123456789abcdef\n"), "0123456789ab");
        assert_eq!(short("sha256:01"), "01");
    }
}
