use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use async_graphql::Value as ConstValue;
use tidewire_outbox::{Catalog, EntityId, EntityMeta, Filter};

use super::{
    Access, Action, EVERYTHING, Policy, Rule, Scope, Written,
    access::{Columns, Rights},
    claims::{Fill, add_names, find},
};
use crate::{input::Reader, names::Names, viewer::Viewer};

/// The actions in the order of [`Rights::rows`].
const ACTIONS: [Action; 4] = [Action::Read, Action::Insert, Action::Update, Action::Delete];

/// How many viewers' rights are remembered. Those of more are made again.
const REMEMBERED: usize = 1_024;

/// All policies, read against the catalog.
#[derive(Debug)]
pub(crate) struct Policies {
    grants: Vec<Grant>,
    /// The roles that policies speak of, each with the claims that its rules ask for.
    roles: BTreeMap<String, BTreeSet<String>>,
    made: Mutex<HashMap<Scope, Arc<Access>>>,
    unlimited: Arc<Access>,
}

/// A policy on one entity. In its rules, claims stand where values will.
#[derive(Debug)]
struct Grant {
    role: String,
    entity: EntityId,
    rules: [Option<Filter>; 4],
    readable: Columns,
    filterable: Columns,
    writable: Columns,
}

impl Policies {
    /// Reads policies, or says all that is wrong with them.
    pub(crate) fn new(policies: &[Policy], catalog: &Catalog, names: &Names) -> Result<Self, Vec<String>> {
        let mut grants = Vec::new();
        let mut problems = Vec::new();
        for policy in policies {
            let entities: Vec<_> = if policy.entity == EVERYTHING {
                catalog.entities().iter().collect()
            } else {
                let by_field = names.by_field(&policy.entity).map(|id| catalog.entity(id));
                by_field.or_else(|| catalog.find(&policy.entity)).into_iter().collect()
            };
            if entities.is_empty() {
                problems.push(format!(
                    "the policy of the role {:?} is about {:?}, which is no registered entity",
                    policy.role, policy.entity
                ));
            }
            for entity in entities {
                match Grant::new(policy, entity, names) {
                    Ok(grant) => grants.push(grant),
                    Err(problem) => {
                        problems
                            .push(format!("the policy of the role {:?} on {:?}: {problem}", policy.role, entity.name));
                    }
                }
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut roles: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for grant in &grants {
            let claims = roles.entry(grant.role.clone()).or_default();
            grant.rules.iter().flatten().for_each(|rule| add_names(rule, claims));
        }
        Ok(Self { grants, roles, made: Mutex::default(), unlimited: Arc::new(Access::unlimited()) })
    }

    /// What a viewer may do.
    pub(crate) fn access(&self, viewer: &Viewer, catalog: &Catalog, names: &Names) -> Arc<Access> {
        if self.grants.is_empty() {
            return Arc::clone(&self.unlimited);
        }
        let scope = self.scope(viewer);
        if let Some(access) = self.made.lock().unwrap_or_else(PoisonError::into_inner).get(&scope) {
            return Arc::clone(access);
        }
        let rights = catalog.entities().iter().map(|entity| self.rights(viewer, entity, names)).collect();
        let access = Arc::new(Access::limited(scope.clone(), rights));
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.len() >= REMEMBERED {
            made.clear();
        }
        made.insert(scope, Arc::clone(&access));
        access
    }

    /// The viewer's roles that policies speak of, and the claims that those ask for.
    fn scope(&self, viewer: &Viewer) -> Scope {
        let roles: Vec<_> = viewer.roles.iter().filter_map(|role| self.roles.get_key_value(role)).collect();
        let asked: BTreeSet<&str> = roles.iter().flat_map(|(_, claims)| *claims).map(String::as_str).collect();
        let claims: BTreeMap<_, _> = asked.into_iter().map(|name| (name, find(&viewer.claims, name))).collect();
        let roles: Vec<_> = roles.into_iter().map(|(role, _)| role).collect();
        Scope(serde_json::to_string(&(roles, claims)).expect("texts and JSON can be written as JSON").into())
    }

    /// The grants that apply to what a viewer does, each with the rows that it allows.
    fn applying(&self, action: Action, viewer: &Viewer, entity: &EntityMeta, names: &Names) -> Vec<(&Grant, Filter)> {
        let fill = Fill { reader: Reader::of_claims(names, entity), claims: &viewer.claims };
        let own = self.grants.iter().filter(|grant| grant.entity == entity.id && viewer.roles.contains(&grant.role));
        own.filter_map(|grant| Some((grant, fill.rule(grant.rules[action as usize].as_ref()?)?))).collect()
    }

    /// Because of which roles a viewer may read which rows of an entity: those that one of these allows.
    pub(crate) fn reading(&self, viewer: &Viewer, entity: &EntityMeta, names: &Names) -> Vec<(&str, Filter)> {
        let grants = self.applying(Action::Read, viewer, entity, names).into_iter();
        grants.map(|(grant, rows)| (grant.role.as_str(), rows)).collect()
    }

    fn rights(&self, viewer: &Viewer, entity: &EntityMeta, names: &Names) -> Rights {
        let [read, insert, update, delete] = ACTIONS.map(|action| self.applying(action, viewer, entity, names));
        let columns = |grants: &[(&Grant, Filter)], of: fn(&Grant) -> &Columns| {
            let common = grants.iter().map(|(grant, _)| of(grant).clone()).reduce(|common, of| common.and(&of));
            common.unwrap_or_else(|| Columns::none(entity.columns.len()))
        };
        let columns = [
            columns(&read, |grant| &grant.readable),
            columns(&read, |grant| &grant.filterable),
            columns(&insert, |grant| &grant.writable),
            columns(&update, |grant| &grant.writable),
        ];
        let read = any(read);
        // Who writes a row learns what is in it, if only by the answer. So what may not be read may not be written either.
        let written = |rows: Vec<(&Grant, Filter)>| Some(read.clone()?.and(any(rows)?));
        let rows = [read.clone(), written(insert), written(update), written(delete)];
        Rights { rows, columns }
    }
}

/// The rows that one of the grants allows; none where there is none.
fn any(grants: Vec<(&Grant, Filter)>) -> Option<Filter> {
    let mut rows: Vec<Filter> = grants.into_iter().map(|(_, rows)| rows).collect();
    if rows.iter().any(Filter::is_all) {
        return Some(Filter::all());
    }
    match rows.len() {
        0 | 1 => rows.pop(),
        _ => Some(Filter::Any(rows)),
    }
}

impl Grant {
    fn new(policy: &Policy, entity: &EntityMeta, names: &Names) -> Result<Self, String> {
        let rule = |action: &str, rule: &Option<Rule>| -> Result<Option<Filter>, String> {
            let Some(Rule(written)) = rule else { return Ok(None) };
            let read = match written {
                Written::All => Ok(Filter::all()),
                Written::Condition(condition) => {
                    Filter::from_expr(entity, condition).map_err(|problem| problem.to_string())
                }
                Written::Input(input) => {
                    ConstValue::from_json(input.clone()).map_err(|problem| problem.to_string()).and_then(|input| {
                        Reader::of_rule(names, entity).filter(&input).map_err(|problem| problem.to_string())
                    })
                }
            };
            read.map(Some).map_err(|problem| format!("{action}: {problem}"))
        };
        let all = Columns::all(entity.columns.len());
        let mut readable = columns("readable", policy.readable.as_ref(), entity, names)?.unwrap_or(all);
        entity.key.iter().for_each(|&column| readable.0[column] = true);
        let writable = columns("writable", policy.writable.as_ref(), entity, names)?;
        let filterable = columns("filterable", policy.filterable.as_ref(), entity, names)?;
        if let Some(hidden) = filterable.as_ref().and_then(|columns| columns.first_not_in(&readable)) {
            let hidden = entity.columns[hidden].name;
            return Err(format!("{hidden:?} is filterable and not readable, so that its values could be guessed"));
        }
        Ok(Self {
            role: policy.role.clone(),
            entity: entity.id,
            rules: [
                rule("read", &policy.read)?,
                rule("insert", &policy.insert)?,
                rule("update", &policy.update)?,
                rule("delete", &policy.delete)?,
            ],
            filterable: filterable.unwrap_or_else(|| readable.clone()),
            writable: writable.unwrap_or_else(|| readable.clone()),
            readable,
        })
    }
}

/// Reads columns by the names that they have in GraphQL or in the database.
fn columns(
    setting: &str,
    listed: Option<&Vec<String>>,
    entity: &EntityMeta,
    names: &Names,
) -> Result<Option<Columns>, String> {
    let Some(listed) = listed else { return Ok(None) };
    let mut columns = Columns::none(entity.columns.len());
    for name in listed {
        let column = names.entity(entity.id).column(name).or_else(|| entity.column_index(name));
        let column = column.ok_or_else(|| format!("{setting} names {name:?}, which is no column"))?;
        columns.0[column] = true;
    }
    Ok(Some(columns))
}
