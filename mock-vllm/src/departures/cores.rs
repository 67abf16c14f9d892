//! Keeps two threads on two cores. A kernel lets a thread run where its timer fires, even if another thread runs there
//! and the next core is idle, so that two threads which wake at the same time can stay on one core.

/// A core of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Core(usize);

/// Returns the core of the calling thread; `None` if it is not known.
#[cfg(target_os = "linux")]
pub(super) fn current() -> Option<Core> {
    nix::sched::sched_getcpu().ok().map(Core)
}

/// Lets the calling thread run on all of its process's cores except that one, unless it is the only one.
#[cfg(target_os = "linux")]
pub(super) fn avoid(core: Core) {
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    use nix::unistd::{Pid, getpid};
    let own_thread = Pid::from_raw(0);
    let others = || -> nix::Result<()> {
        let mut cores = sched_getaffinity(getpid())?;
        cores.unset(core.0)?;
        let has_any = (0..CpuSet::count()).any(|idx| cores.is_set(idx).unwrap_or(false));
        if has_any { sched_setaffinity(own_thread, &cores) } else { Ok(()) }
    };
    if let Err(error) = others() {
        tracing::debug!(%error, "Cannot choose the cores of a thread");
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn current() -> Option<Core> {
    None
}

#[cfg(not(target_os = "linux"))]
pub(super) fn avoid(_core: Core) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::{avoid, current};
    use nix::sched::{CpuSet, sched_getaffinity};
    use nix::unistd::getpid;
    use std::thread::spawn;

    /// Counts the cores that the process may use. (`available_parallelism` also takes a quota of time into account.)
    fn n_cores() -> usize {
        let cores = sched_getaffinity(getpid()).expect("the process knows its cores");
        (0..CpuSet::count()).filter(|idx| cores.is_set(*idx).unwrap_or(false)).count()
    }

    #[test]
    fn a_thread_leaves_a_core_when_there_is_another() {
        let (before, after) = spawn(|| {
            let before = current().unwrap();
            avoid(before);
            (before, current().unwrap())
        })
        .join()
        .unwrap();

        assert_eq!(before != after, n_cores() > 1);
    }
}
