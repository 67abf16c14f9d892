//! The watches of a picker, and the index that they feed.

use std::future::Future;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ApiResource};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::runtime::watcher;
use kube::{Client, Config};
use pool_index::index::Index;
use pool_index::snapshot::Reader;
use tokio::sync::watch;

use crate::connect::{self, ConnectError};
use crate::view::{NamespaceView, PoolScope, Seen, Watch};
use crate::watches::{self, Delivery, Events, WatchState, Watches};

/// A source of pools, models and endpoints.
pub struct Source {
    client: Client,
    view: NamespaceView,
    index: Index,
    watches: Watches<Watch, Seen>,
}

/// A source, and what it feeds.
#[derive(Debug)]
pub struct Connected {
    pub source: Source,
    pub reader: Reader,
    pub watch_state: watch::Receiver<WatchState>,
}

// === impl Source ===

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("view", &self.view).finish_non_exhaustive()
    }
}

impl Source {
    /// A source that connects as `config` says.
    ///
    /// # Errors
    /// If no client can be made of the configuration, for example because it names a certificate that is none.
    pub fn try_new(config: Config, scope: PoolScope) -> Result<Connected, ConnectError> {
        let (index, reader) = Index::new();
        let (watches, watch_state) = Watches::new();
        let source =
            Self { client: connect::client(config)?, view: NamespaceView::new(scope), index, watches };
        Ok(Connected { source, reader, watch_state })
    }

    /// Follows the API server until `shutdown` resolves.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            let Self { client, view, watches, .. } = &mut self;
            watches.follow(&view.watches(), |watch| stream(client, &view.scope().namespace, watch));
            tokio::select! {
                () = &mut shutdown => return,
                deliveries = watches.next() => {
                    let mut is_news = false;
                    for (watch, delivery) in deliveries {
                        is_news |= match delivery {
                            Delivery::Event(seen) => view.apply(&watch, seen),
                            Delivery::NoKind => view.clear(&watch),
                        };
                    }
                    if is_news {
                        self.publish();
                    }
                }
            }
        }
    }

    /// Tells the index what is known, unless a list is still missing.
    fn publish(&mut self) {
        let is_listed = self.view.is_listed();
        if is_listed {
            self.index.apply(self.view.changes());
        }
        self.watches.note(is_listed, self.view.refused().count());
    }
}

fn stream(client: &Client, namespace: &str, watch: &Watch) -> Events<Seen> {
    match watch {
        Watch::Pods(selector) => {
            let api = Api::<Pod>::namespaced(client.clone(), namespace);
            let pods = watches::events(api, watcher::Config::default().labels(selector));
            pods.map(|event| event.map(|event| Seen::Pod(Box::new(event)))).boxed()
        }
        Watch::PoolsV1Alpha2 | Watch::PoolsV1 | Watch::Models | Watch::Objectives(_) | Watch::Rewrites(_) => {
            let (api_version, kind) = watch.kind();
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
            let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource);
            let objects = watches::events(api, watcher::Config::default());
            objects.map(|event| event.map(|event| Seen::Object(Box::new(event)))).boxed()
        }
    }
}
