//! What comparisons mean to PostgreSQL, as far as the predicate has to know it.

use std::sync::Arc;

use sqlx::PgConnection;

use super::{database_error, triggers};
use crate::{
    error::Result,
    filter::{Collation, Semantics},
    registry::{Catalog, EntityMeta},
};

/// Columns of enumerations, or arrays of them, with the values in their order; and those whose collation finds different texts equal.
const COLUMNS: &str = "
SELECT t.n - 1, a.attname::text, v.labels
FROM unnest($1::text[]) WITH ORDINALITY AS t (name, n)
  JOIN pg_attribute a ON a.attrelid = to_regclass(t.name) AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_type y ON y.oid = a.atttypid
  LEFT JOIN pg_collation c ON c.oid = a.attcollation
  CROSS JOIN LATERAL (
    SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) AS labels FROM pg_enum e WHERE e.enumtypid IN (y.oid, y.typelem)) v
WHERE v.labels IS NOT NULL OR NOT c.collisdeterministic";

pub(super) async fn semantics(conn: &mut PgConnection, catalog: &Catalog) -> Result<Semantics> {
    let tables: Vec<String> = catalog.entities().iter().map(triggers::qualified).collect();
    let found: Vec<(i64, String, Option<Vec<String>>)> =
        sqlx::query_as(COLUMNS).persistent(false).bind(tables).fetch_all(conn).await.map_err(database_error)?;
    let binary = |entity: &EntityMeta| vec![Collation::Binary; entity.columns.len()];
    let mut collations: Vec<Vec<Collation>> = catalog.entities().iter().map(binary).collect();
    for (entity, column, labels) in found {
        let entity = usize::try_from(entity).expect("numbers of entities");
        if let Some(column) = catalog.entities()[entity].columns.iter().position(|meta| meta.name == column) {
            collations[entity][column] = labels.map_or(Collation::Other, |labels| Collation::Listed(Arc::from(labels)));
        }
    }
    Ok(Semantics { collations, exact_decimals: true, one_form: true })
}
