//! Servers will not run as root: then an ordinary user of the machine's runs them.

use std::{
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::Path,
    process::Command,
};

/// The ids of the first of these users that there is and of its group; none where this process is not root's.
pub(crate) fn id(names: &[&str]) -> Option<(u32, u32)> {
    let me = fs::metadata("/proc/self").map(|me| me.uid()).unwrap_or(1);
    if me != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let user = |name: &&str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    names.iter().find_map(user)
}

/// A program's command, run by that user.
pub(crate) fn command(program: &Path, user: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    if let Some((user, group)) = user {
        command.uid(user).gid(group);
    }
    command
}
