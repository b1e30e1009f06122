use std::fmt;

/// Who answers for a write: a user, a service, a connector or a migration.
///
/// Written to the outbox as `kind:name`, for example `user:7`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Actor(String);

impl Actor {
    /// A person, by the identifier that the application knows them by.
    pub fn user(id: impl fmt::Display) -> Self {
        Self(format!("user:{id}"))
    }

    /// A program, by its name.
    pub fn service(name: impl fmt::Display) -> Self {
        Self(format!("service:{name}"))
    }

    /// A connector, by its configured name.
    pub fn connector(name: impl fmt::Display) -> Self {
        Self(format!("connector:{name}"))
    }

    /// A schema or data migration, by its name.
    pub fn migration(name: impl fmt::Display) -> Self {
        Self(format!("migration:{name}"))
    }

    /// The text that the outbox stores.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Actor {
    /// The actor of a write that named none.
    fn default() -> Self {
        Self::service("app")
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which replica already has a write: a client instance or a connector. Used only to tell echo (promise I9).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin(String);

impl Origin {
    /// Names the replica.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The text that the outbox stores.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The identifier that a client gave its mutation, so that a retry takes effect once (promise I12).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MutationId(String);

impl MutationId {
    /// Wraps the client's identifier.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// The text that the outbox stores.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a recorder knows of a write beyond the statement: who answers for it, where it came from, which mutation it serves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Context {
    pub(crate) actor: Actor,
    pub(crate) origin: Option<Origin>,
    pub(crate) mutation_id: Option<MutationId>,
}
