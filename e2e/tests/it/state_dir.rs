//! The state of `e2e up` is kept in the directory that is asked for, or in the user's.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use std::process::Command;

const USERS: &str = ".local/state/warmpath";
const XDG: &str = "xdg/warmpath";
const OWN: &str = "own";

/// Returns the directories, of those above, in which a command with these variables looked. Their values are relative to
/// the home directory.
fn looked_in(variables: &[(&str, &str)]) -> Vec<&'static str> {
    let home = tempfile::tempdir().unwrap();
    let all = [USERS, XDG, OWN];
    for dir in all {
        std::fs::create_dir_all(home.path().join(dir)).unwrap();
    }
    let mut status = Command::new(env!("CARGO_BIN_EXE_e2e"));
    status
        .arg("status")
        .env("HOME", home.path())
        .env_remove("XDG_STATE_HOME")
        .env_remove("WARMPATH_STATE_DIR");
    for (name, value) in variables {
        status.env(name, if value.is_empty() { value.into() } else { home.path().join(value) });
    }
    let ended = status.output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "nothing is up: {}", String::from_utf8_lossy(&ended.stderr));
    // A command locks the directory.
    let is_used = |dir: &&str| std::fs::read_dir(home.path().join(dir)).unwrap().next().is_some();
    all.into_iter().filter(is_used).collect()
}

#[test]
fn state_is_kept_where_it_is_asked_for_or_with_the_user() {
    assert_eq!(looked_in(&[]), [USERS]);
    assert_eq!(looked_in(&[("XDG_STATE_HOME", "xdg")]), [XDG]);
    assert_eq!(looked_in(&[("XDG_STATE_HOME", "")]), [USERS], "an empty variable is none");
    assert_eq!(looked_in(&[("XDG_STATE_HOME", "xdg"), ("WARMPATH_STATE_DIR", "own")]), [OWN]);
}
