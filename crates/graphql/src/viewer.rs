use std::{collections::BTreeSet, fmt};

use serde_json::{Map, Value};
use tidewire_outbox::Actor;

/// Who sends a request, as its transport has established it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Viewer {
    /// Who answers for what the request writes; the recorder's default if none.
    pub actor: Option<Actor>,
    /// What the viewer may act as. Never empty: who is nobody in particular is [`ANONYMOUS`](Self::ANONYMOUS).
    pub roles: BTreeSet<String>,
    /// What else is known of the viewer, by the names of a token's claims (`sub`, `org_id`, …).
    pub claims: Map<String, Value>,
}

impl Viewer {
    /// The role of those who did not say who they are.
    pub const ANONYMOUS: &str = "anonymous";

    /// Somebody with roles. None of them makes the viewer anonymous.
    pub fn with_roles<R: Into<String>>(roles: impl IntoIterator<Item = R>) -> Self {
        let mut roles: BTreeSet<String> = roles.into_iter().map(Into::into).collect();
        if roles.is_empty() {
            roles.insert(Self::ANONYMOUS.into());
        }
        Self { actor: None, roles, claims: Map::new() }
    }

    /// The same viewer, whose writes this actor answers for.
    #[must_use]
    pub fn acting_as(mut self, actor: Actor) -> Self {
        self.actor = Some(actor);
        self
    }

    /// The same viewer, signed in as this user: as if by a token whose `sub` it is.
    #[must_use]
    pub fn signed_in_as(self, sub: &str) -> Self {
        self.acting_as(Actor::user(sub)).claim("sub", sub)
    }

    /// The same viewer, of whom this is known too.
    #[must_use]
    pub fn claim(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.claims.insert(name.into(), value.into());
        self
    }
}

impl Default for Viewer {
    fn default() -> Self {
        Self::with_roles::<String>([])
    }
}

/// Claims are about a person, and stay out of logs.
impl fmt::Debug for Viewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let claims: Vec<_> = self.claims.keys().collect();
        f.debug_struct("Viewer")
            .field("actor", &self.actor)
            .field("roles", &self.roles)
            .field("claims", &claims)
            .finish()
    }
}
