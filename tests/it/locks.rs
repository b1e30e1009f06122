//! Who may know whom, and who reads the environment.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// What each package may know of the workspace, and what it may never know of the world. The demo's packages and the examples may know
/// everything that is meant for reuse.
const ALLOWED: [(&str, &[&str]); 6] = [
    ("entity", &["tidewire-outbox"]),
    ("migration", &["tidewire-outbox"]),
    ("tidewire-outbox", &[]),
    ("tidewire-graphql", &["tidewire-outbox"]),
    ("tidewire-axum", &["tidewire-graphql", "tidewire-outbox"]),
    ("tidewire-testkit", &["tidewire-outbox"]),
];
const FORBIDDEN: [(&str, &[&str]); 4] = [
    ("entity", &["async-graphql", "axum"]),
    ("migration", &["async-graphql", "axum"]),
    ("tidewire-outbox", &["async-graphql", "axum", "hyper", "tower"]),
    ("tidewire-graphql", &["axum", "hyper", "tower"]),
];

fn metadata() -> Metadata {
    MetadataCommand::new().no_deps().exec().unwrap()
}

fn normal_dependencies(metadata: &Metadata, name: &str) -> BTreeSet<String> {
    let package = metadata.workspace_packages().into_iter().find(|package| package.name == name);
    let package = package.unwrap_or_else(|| panic!("{name} is not in the workspace"));
    let normal = package.dependencies.iter().filter(|dependency| dependency.kind != DependencyKind::Development);
    normal.map(|dependency| dependency.name.clone()).collect()
}

#[test]
fn packages_know_only_whom_they_may() {
    let metadata = metadata();
    let own: BTreeSet<_> = metadata.workspace_packages().iter().map(|package| package.name.to_string()).collect();
    for (name, allowed) in ALLOWED {
        let known = normal_dependencies(&metadata, name);
        let unwanted: Vec<_> = known.intersection(&own).filter(|known| !allowed.contains(&known.as_str())).collect();
        assert!(unwanted.is_empty(), "{name} must not know {unwanted:?}");
    }
    for (name, forbidden) in FORBIDDEN {
        let known = normal_dependencies(&metadata, name);
        let unwanted: Vec<_> = forbidden.iter().filter(|unwanted| known.contains(**unwanted)).collect();
        assert!(unwanted.is_empty(), "{name} must not know {unwanted:?}");
    }
}

#[test]
fn the_testkit_is_nobodys_normal_dependency() {
    let metadata = metadata();
    for package in metadata.workspace_packages() {
        let known = normal_dependencies(&metadata, &package.name);
        assert!(!known.contains("tidewire-testkit"), "{}", package.name);
    }
}

#[test]
fn every_package_is_covered_by_a_rule() {
    let metadata = metadata();
    let root = metadata.workspace_root.as_std_path();
    for package in metadata.workspace_packages() {
        let folder = package.manifest_path.parent().unwrap().as_std_path();
        let free = folder == root || folder.starts_with(root.join("examples")) || folder == root.join("benches");
        assert!(free || ALLOWED.iter().any(|(name, _)| package.name == *name), "{} has no rule", package.name);
    }
}

#[test]
fn only_the_config_reads_the_environment() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut readers = BTreeMap::new();
    for folder in ["src", "entity/src", "migration/src", "crates/outbox/src", "crates/graphql/src", "crates/axum/src"] {
        for file in sources(&root.join(folder)) {
            let text = fs::read_to_string(&file).unwrap();
            if let Some(line) = text.lines().find(|line| line.contains("env::var") || line.contains("env::vars")) {
                readers.insert(file.strip_prefix(root).unwrap().to_owned(), line.to_owned());
            }
        }
    }
    let files: Vec<_> = readers.keys().collect();
    assert_eq!(files, [Path::new("src/config.rs")], "{readers:?}");
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    assert!(!found.is_empty(), "{} holds no sources", folder.display());
    found
}
