//! Requests in flight as pickers count them, against the requests that the pods have. When all users have their answers,
//! both are 0: a request whose end no picker learnt would count longer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use tokio::time::sleep;

use crate::cluster::Cluster;
use crate::evidence::pod;
use crate::patience::{self, Patience};

const POLL: Duration = Duration::from_millis(100);

/// Requests by the address of the pod that has them.
type Counts = BTreeMap<String, u64>;

/// The part of a picker's page that is read.
#[derive(Debug, Deserialize)]
struct PickerPage {
    pools: Vec<Pool>,
}

#[derive(Debug, Deserialize)]
struct Pool {
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    endpoint: String,
    in_flight: u64,
}

/// The requests in flight to each pod.
#[derive(Debug, PartialEq, Eq)]
pub struct InFlight {
    /// The counts of all pickers together; each picker counts its own requests.
    counted: Counts,
    /// The pods' own counts.
    real: Counts,
}

impl InFlight {
    /// Reads the pages of pickers and pods.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub async fn read(cluster: &Cluster) -> Result<Self> {
        let (pages, real) = tokio::try_join!(cluster.picker_pages("/debug/pools"), real(cluster))?;
        Ok(Self { counted: counted(&pages)?, real })
    }

    /// Waits until pods have `n_requests` together and pickers count the same requests, at least as long as a picker
    /// waits for a report. Returns what is read last.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub async fn with(cluster: &Cluster, n_requests: u64) -> Result<Self> {
        let is_awaited = |found: &Self| found.differences().is_empty() && found.n_requests() == n_requests;
        Self::until(cluster, is_awaited).await
    }

    /// Waits until pods have `n_requests` together, whatever pickers count. Returns what is read last.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub async fn at_pods(cluster: &Cluster, n_requests: u64) -> Result<Self> {
        Self::until(cluster, |found| found.n_requests() == n_requests).await
    }

    /// Waits until pickers count `n_requests` together, whatever pods have. Returns what is read last.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub async fn at_pickers(cluster: &Cluster, n_requests: u64) -> Result<Self> {
        Self::until(cluster, |found| found.n_counted() == n_requests).await
    }

    async fn until(cluster: &Cluster, is_awaited: impl Fn(&Self) -> bool) -> Result<Self> {
        let mut patience = Patience::start(patience::PROGRAMS);
        loop {
            let found = Self::read(cluster).await?;
            if is_awaited(&found) || !patience.lasts((found.counted.clone(), found.real.clone())) {
                return Ok(found);
            }
            sleep(POLL).await;
        }
    }

    /// Number of requests that the pods have.
    pub fn n_requests(&self) -> u64 {
        self.real.values().sum()
    }

    /// Number of requests that pickers count.
    pub fn n_counted(&self) -> u64 {
        self.counted.values().sum()
    }

    /// A sentence for each pod that pickers count other requests to than it has.
    pub fn differences(&self) -> Vec<String> {
        compare(&self.counted, &self.real)
    }
}

/// Returns the counts of all pickers together from their pages.
fn counted(pages: &[String]) -> Result<Counts> {
    let mut counts = Counts::new();
    for page in pages {
        let page: PickerPage = serde_json::from_str(page).context("read a picker's pools")?;
        for Endpoint { endpoint, in_flight } in page.pools.into_iter().flat_map(|pool| pool.endpoints) {
            *counts.entry(endpoint).or_default() += in_flight;
        }
    }
    Ok(counts)
}

/// Returns the pods' own counts.
async fn real(cluster: &Cluster) -> Result<Counts> {
    let mut counts = Counts::new();
    for pod in cluster.pods() {
        let page = cluster.pod_page(&pod, "/metrics").await?;
        let mut n_requests = 0.0;
        for name in ["vllm:num_requests_running", "vllm:num_requests_waiting"] {
            n_requests += pod::sum(&page, name).with_context(|| format!("{} lacks {name}", pod.name))?;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of requests")]
        counts.insert(pod.address.to_string(), n_requests as u64);
    }
    Ok(counts)
}

fn compare(counted: &Counts, real: &Counts) -> Vec<String> {
    let of = |counts: &Counts, pod: &String| counts.get(pod).copied().unwrap_or(0);
    let pods: BTreeSet<&String> = counted.keys().chain(real.keys()).collect();
    let differing = pods.into_iter().map(|pod| (pod, of(counted, pod), of(real, pod)));
    let differing = differing.filter(|(_, counted, real)| counted != real);
    differing
        .map(|(pod, counted, real)| {
            format!("pickers count {counted} requests in flight to {pod}, which has {real}")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Counts, compare, counted};

    fn page(in_flight: [u64; 2]) -> String {
        let [a, b] = in_flight;
        format!(
            r#"{{"pools":[{{"pool":"default/qwen","endpoints":[{{"endpoint":"a","in_flight":{a}}},{{"endpoint":"b","in_flight":{b}}}]}}],"models":[]}}"#
        )
    }

    #[test]
    fn the_counts_of_all_pickers_are_those_of_the_pods() {
        let real = Counts::from([("a".to_owned(), 3), ("b".to_owned(), 0)]);
        for (pages, n_differences) in
            [([[1, 0], [2, 0]], 0), ([[1, 0], [1, 0]], 1), ([[3, 1], [0, 0]], 1), ([[0, 0], [0, 1]], 2)]
        {
            let counted = counted(&pages.map(page)).unwrap();
            assert_eq!(compare(&counted, &real).len(), n_differences, "{pages:?}");
        }
    }

    #[test]
    fn a_pod_that_only_one_side_knows_has_no_requests_on_the_other() {
        let one = Counts::from([("a".to_owned(), 1)]);
        assert_eq!(compare(&one, &Counts::new()), ["pickers count 1 requests in flight to a, which has 0"]);
        assert_eq!(compare(&Counts::new(), &one).len(), 1);
        assert_eq!(compare(&Counts::from([("a".to_owned(), 0)]), &Counts::new()), [""; 0]);
    }
}
