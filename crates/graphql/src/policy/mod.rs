//! Who may see and do what.
//!
//! A [`Policy`] is written down once, for an entity and a role. When the API is built, [`Policies`] reads all of them against the catalog. For each request
//! it makes the [`Access`] of its viewer: filters and columns, with the viewer's claims put in. Whatever reads or writes rows for a
//! viewer begins with an `Access`; there is no other door to a [`Select`](tidewire_outbox::Select), and clippy holds the crate to that.

mod access;
mod claims;
mod grants;

use sea_orm::{
    Condition, EntityTrait, IdenStatic,
    sea_query::{Enum, Expr, OptionEnum, Value},
};
use serde::Deserialize;

pub(crate) use self::{
    access::{Access, Action, Scope, Usage},
    claims::{WrittenClaim, written_claim},
    grants::Policies,
};

/// What one role may do with the rows of one entity.
///
/// As soon as an [`Api`](crate::Api) has one policy, it refuses whatever no policy of the viewer's roles allows. Those who did not say who they are have the
/// role [`ANONYMOUS`](crate::Viewer::ANONYMOUS), which is given rights like any other.
///
/// ```
/// # mod task { use sea_orm::entity::prelude::*;
/// # #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)] #[sea_orm(table_name = "task")]
/// # pub struct Model { #[sea_orm(primary_key)] pub id: i32, pub owner_id: i32, pub title: String, pub done: bool }
/// # #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)] pub enum Relation {}
/// # impl ActiveModelBehavior for ActiveModel {} }
/// use sea_orm::ColumnTrait;
/// use tidewire_graphql::{Policy, Rule, claim};
///
/// let own = task::Column::OwnerId.eq(claim("sub"));
/// let member = Policy::of::<task::Entity>("member").read(Rule::all()).insert(own.clone()).update(own);
/// let guest = Policy::of::<task::Entity>("anonymous")
///     .read(task::Column::Done.eq(true))
///     .readable([task::Column::Title]);
/// let admin = Policy::on_everything("admin").anything();
/// # let _ = (member, guest, admin);
/// ```
///
/// Where several of a viewer's roles have a rule for the same, rows that one of them allows are allowed, but only the columns that all of
/// them allow. A rule with a claim that the viewer does not have, or that does not fit its column, allows nothing.
///
/// It can be deserialized from a table with these names, with rules in the form of the API's filter inputs and `"$name"` for a claim.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    entity: String,
    role: String,
    read: Option<Rule>,
    insert: Option<Rule>,
    update: Option<Rule>,
    delete: Option<Rule>,
    readable: Option<Vec<String>>,
    writable: Option<Vec<String>>,
    filterable: Option<Vec<String>>,
}

/// Stands for all entities where one is named.
const EVERYTHING: &str = "*";

impl Policy {
    /// What a role may do with an entity: nothing, as long as nothing is added.
    pub fn of<E: EntityTrait>(role: impl Into<String>) -> Self {
        Self::named(E::default().table_name(), role)
    }

    /// As [`of`](Self::of), for all entities.
    pub fn on_everything(role: impl Into<String>) -> Self {
        Self::named(EVERYTHING, role)
    }

    fn named(entity: &str, role: impl Into<String>) -> Self {
        Self {
            entity: entity.to_owned(),
            role: role.into(),
            read: None,
            insert: None,
            update: None,
            delete: None,
            readable: None,
            writable: None,
            filterable: None,
        }
    }

    /// Lets the role see these rows.
    #[must_use]
    pub fn read(mut self, rule: impl Into<Rule>) -> Self {
        self.read = Some(rule.into());
        self
    }

    /// Lets the role add rows that are such once they are stored, and that it may read.
    #[must_use]
    pub fn insert(mut self, rule: impl Into<Rule>) -> Self {
        self.insert = Some(rule.into());
        self
    }

    /// Lets the role change rows that are such, and that it may read, both before and after the change.
    #[must_use]
    pub fn update(mut self, rule: impl Into<Rule>) -> Self {
        self.update = Some(rule.into());
        self
    }

    /// Lets the role delete such rows that it may read.
    #[must_use]
    pub fn delete(mut self, rule: impl Into<Rule>) -> Self {
        self.delete = Some(rule.into());
        self
    }

    /// Lets the role read, insert, update and delete all rows.
    #[must_use]
    pub fn anything(self) -> Self {
        self.read(Rule::all()).insert(Rule::all()).update(Rule::all()).delete(Rule::all())
    }

    /// The columns that the role sees; all of them if this is not said. Those of the primary key are always among them.
    #[must_use]
    pub fn readable<C: IdenStatic>(mut self, columns: impl IntoIterator<Item = C>) -> Self {
        self.readable = Some(names(columns));
        self
    }

    /// The columns that the role sets, whether it sees them or not; those that it sees if this is not said.
    #[must_use]
    pub fn writable<C: IdenStatic>(mut self, columns: impl IntoIterator<Item = C>) -> Self {
        self.writable = Some(names(columns));
        self
    }

    /// The columns that the role filters and orders by, of those that it sees; all of these if this is not said.
    #[must_use]
    pub fn filterable<C: IdenStatic>(mut self, columns: impl IntoIterator<Item = C>) -> Self {
        self.filterable = Some(names(columns));
        self
    }
}

fn names<C: IdenStatic>(columns: impl IntoIterator<Item = C>) -> Vec<String> {
    columns.into_iter().map(|column| column.as_str().to_owned()).collect()
}

/// Which rows a policy is about: a condition of SeaORM's on columns of the entity, or all.
///
/// Comparisons of columns with values and [`claim`]s, `LIKE`, `IN`, `BETWEEN`, `IS NULL`, and `AND`, `OR`, `NOT` of them can be rules;
/// building the [`Api`](crate::Api) refuses others.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule(Written);

#[derive(Debug, Clone, PartialEq)]
enum Written {
    All,
    Condition(Expr),
    Input(serde_json::Value),
}

impl Rule {
    /// All rows.
    pub fn all() -> Self {
        Self(Written::All)
    }
}

impl From<Expr> for Rule {
    fn from(condition: Expr) -> Self {
        Self(Written::Condition(condition))
    }
}

impl From<Condition> for Rule {
    fn from(condition: Condition) -> Self {
        Expr::from(condition).into()
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde_json::Value::deserialize(deserializer).map(|input| Self(Written::Input(input)))
    }
}

/// Something that is known of the viewer, in the place of a value of a [`Rule`]: `task::Column::OwnerId.eq(claim("sub"))`.
///
/// What the claim holds is converted to the column's type. Dots lead into nested claims (`"realm.org"`), unless there is a claim of that
/// whole name. In `is_in([claim("teams")])` it may be a list.
pub fn claim(name: impl Into<String>) -> Claim {
    Claim(name.into())
}

/// See [`claim`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim(String);

/// The type that tells a claim among values. No column is of it.
const CLAIM: &str = "tidewire claim";

impl From<Claim> for Value {
    fn from(claim: Claim) -> Self {
        Self::Enum(OptionEnum::Some(Box::new(Enum { type_name: CLAIM.into(), value: claim.0.into() })))
    }
}

impl Claim {
    /// The name of the claim that a value stands for, if it stands for one.
    fn named_by(value: &Value) -> Option<&str> {
        match value {
            Value::Enum(OptionEnum::Some(value)) if &*value.type_name == CLAIM => Some(&value.value),
            _ => None,
        }
    }
}
