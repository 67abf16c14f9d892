//! Skips: decides which checks a cluster gives no chance to make, and keeps the reason.

use std::sync::{MutexGuard, PoisonError};

use anyhow::{Result, bail};

use crate::check::{Check, Claim};
use crate::cluster::fault::Unavailable;
use crate::scenario::lab::Lab;

impl Lab<'_> {
    /// Announces checks that need a fault or a number of pods: they are skipped if the cluster does not have it.
    pub fn announce<const N: usize>(&self, claims: [Claim; N]) -> [Claim; N] {
        self.announce_all(claims.iter().cloned());
        claims
    }

    /// Announces checks like [`Lab::announce`], of which there is any number.
    pub fn announce_all(&self, claims: impl IntoIterator<Item = Claim>) {
        self.announced().extend(claims);
    }

    /// Says if so many pods are ready.
    pub fn needs_pods(&self, n_needed: usize) -> Result<(), Unavailable> {
        let n_ready = self.cluster.pods().len();
        let reason = || format!("{n_needed} pods are needed, and {n_ready} ready: --replicas {n_needed}");
        (n_ready >= n_needed).then_some(()).ok_or_else(|| Unavailable(reason()))
    }

    /// Ends a part whose check as a whole is `runs`: if the cluster cannot give what the part needs, its checks are
    /// skipped; another error fails it.
    pub(in crate::scenario) fn end_part(&self, done: Result<()>, runs: Claim) {
        let Err(error) = done.and_then(|()| self.all_made()) else { return };
        match error.downcast_ref::<Unavailable>() {
            Some(unavailable) => self.skip(runs, unavailable),
            None => self.check(runs.broken(&error)),
        }
    }

    /// Notes that `check` was made.
    pub(super) fn note_made(&self, check: &Check) {
        self.announced().retain(|claim| !claim.is_of(check));
    }

    /// Skips the announced checks that have not been made, or the check of the whole part if none is announced.
    fn skip(&self, whole: Claim, unavailable: &Unavailable) {
        let announced = std::mem::take(&mut *self.announced());
        let claims = if announced.is_empty() { vec![whole] } else { announced };
        for claim in claims {
            self.check(claim.skipped(unavailable));
        }
    }

    /// Says if every announced check was made.
    ///
    /// # Errors
    /// When one was not; the error names it.
    fn all_made(&self) -> Result<()> {
        match self.announced().first() {
            Some(claim) => bail!("the announced check {claim} was not made"),
            None => Ok(()),
        }
    }

    fn announced(&self) -> MutexGuard<'_, Vec<Claim>> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
