use std::{fmt, sync::Arc};

use tidewire_outbox::{Catalog, EntityId, Filter, Select};

use crate::{
    error::{ApiError, Code},
    names::Names,
};

type Result<T> = std::result::Result<T, ApiError>;

/// What one viewer may do, with its claims put into the rules. Made once for all viewers that may do the same, and shared.
pub(crate) struct Access {
    scope: Scope,
    /// By entity; none where there are no policies, and everybody may do everything.
    rights: Option<Box<[Rights]>>,
}

/// What decides a viewer's rights, as text: two viewers with one scope may do the same.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Scope(pub(super) Arc<str>);

impl Scope {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// It holds claims, which are about a person.
impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scope")
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("limited", &self.rights.is_some()).finish_non_exhaustive()
    }
}

/// What may be done with the rows of one entity.
pub(super) struct Rights {
    /// Which rows, for each [`Action`].
    pub(super) rows: [Option<Filter>; 4],
    /// Which columns, for each [`Usage`].
    pub(super) columns: [Columns; 4],
}

/// What is done with rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Read,
    Insert,
    Update,
    Delete,
}

impl Action {
    fn participle(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Insert => "inserted",
            Self::Update => "updated",
            Self::Delete => "deleted",
        }
    }
}

/// What a column is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Usage {
    Read,
    /// To filter or order by it, or to compare it with what a client takes it to be.
    Filter,
    Insert,
    Update,
}

/// Columns of an entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Columns(pub(super) Box<[bool]>);

impl Columns {
    pub(super) fn all(count: usize) -> Self {
        Self(vec![true; count].into())
    }

    pub(super) fn none(count: usize) -> Self {
        Self(vec![false; count].into())
    }

    /// The first of these that is not among the others.
    pub(super) fn first_not_in(&self, others: &Self) -> Option<usize> {
        self.0.iter().zip(&others.0).position(|(one, other)| *one && !other)
    }

    /// Those that are among both.
    pub(super) fn and(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(&other.0).for_each(|(one, other)| *one &= *other);
        self
    }
}

impl Access {
    /// Where there are no policies.
    pub(super) fn unlimited() -> Self {
        Self { scope: Scope("".into()), rights: None }
    }

    pub(super) fn limited(scope: Scope, rights: Box<[Rights]>) -> Self {
        Self { scope, rights: Some(rights) }
    }

    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Whether there are policies at all.
    pub(crate) fn is_limited(&self) -> bool {
        self.rights.is_some()
    }

    fn rights(&self, entity: EntityId) -> Option<&Rights> {
        self.rights.as_ref().map(|rights| &rights[entity.index()])
    }

    /// Whether any row of the entity may be read.
    pub(crate) fn reads(&self, entity: EntityId) -> bool {
        self.rights(entity).is_none_or(|rights| rights.rows[Action::Read as usize].is_some())
    }

    /// The rows that something may be done with.
    pub(crate) fn rows(&self, action: Action, entity: EntityId, names: &Names) -> Result<Filter> {
        let Some(rights) = self.rights(entity) else { return Ok(Filter::all()) };
        rights.rows[action as usize].clone().ok_or_else(|| {
            let object = &names.entity(entity).object;
            forbidden(format!("rows of {object} may not be {} with the roles of this request", action.participle()))
        })
    }

    /// The refusal of a write that left a row which may not be written so.
    pub(crate) fn refusal(action: Action, entity: EntityId, names: &Names) -> ApiError {
        let (object, participle) = (&names.entity(entity).object, action.participle());
        forbidden(format!(
            "a row of {object} as it would be stored may not be {participle} with the roles of this request"
        ))
    }

    /// Rows that may be read, with nothing asked of them yet. Every select for a viewer begins here.
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    pub(crate) fn select(&self, entity: EntityId, names: &Names) -> Result<Select> {
        Ok(Select { filter: self.rows(Action::Read, entity, names)?, ..Select::new(entity) })
    }

    /// Whether a column may be used so.
    pub(crate) fn allows(&self, usage: Usage, entity: EntityId, column: usize) -> bool {
        self.rights(entity).is_none_or(|rights| rights.columns[usage as usize].0[column])
    }

    /// Refuses the use of a column that may not be used so.
    pub(crate) fn check(&self, usage: Usage, entity: EntityId, column: usize, names: &Names) -> Result<()> {
        if self.allows(usage, entity, column) {
            return Ok(());
        }
        let names = names.entity(entity);
        let may = match usage {
            Usage::Read => "may not be read",
            Usage::Filter => "may not be filtered or ordered by",
            Usage::Insert | Usage::Update => "may not be set",
        };
        Err(forbidden(format!("{}.{} {may} with the roles of this request", names.object, names.columns[column])))
    }

    /// Refuses a way that would tell what may not be read: through hidden columns, or to or through an entity of which no row may be read. Gives
    /// the rows in the middle that may be gone through.
    pub(crate) fn walk(&self, catalog: &Catalog, entity: EntityId, relation: usize, names: &Names) -> Result<Filter> {
        if self.rights.is_none() {
            return Ok(Filter::all());
        }
        let relation = &catalog.entity(entity).relations[relation];
        let check = |entity: EntityId, columns: &[usize]| {
            columns.iter().try_for_each(|&column| self.check(Usage::Read, entity, column, names))
        };
        check(entity, &relation.from)?;
        match &relation.junction {
            None => {
                self.rows(Action::Read, relation.target, names)?;
                check(relation.target, &relation.to)?;
                Ok(Filter::all())
            }
            Some(junction) => {
                let through = self.rows(Action::Read, junction.entity, names)?;
                check(junction.entity, &relation.to)?;
                check(junction.entity, &junction.from)?;
                check(relation.target, &junction.to)?;
                Ok(through)
            }
        }
    }
}

fn forbidden(message: String) -> ApiError {
    ApiError::new(Code::Forbidden, message)
}
