use std::time::Duration;

use crate::wire::TimeFormat;

/// How the API answers and what it refuses.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// How times are written. Default: as Seaography writes them.
    pub times: TimeFormat,
    /// The most rows of one list; a list without pagination then becomes a page of so many. Default: no limit.
    pub max_rows: Option<u64>,
    /// The most rows that one mutation may change. Default 10,000.
    pub max_mutation_rows: u64,
    /// The longest document, in bytes. Default 256 KiB.
    pub max_document_bytes: usize,
    /// How many tokens (names, values, punctuation) a document may have. Default 15,000.
    pub max_tokens: usize,
    /// How deeply brackets of a document may nest, whatever they enclose; and selection sets, fragments spread. Default 64.
    pub max_nesting: usize,
    /// How many operations and fragments together a document may define. Default 100.
    pub max_definitions: usize,
    /// How deeply fields may nest. Default 20.
    pub max_depth: usize,
    /// How many fields an operation may select, fragments spread. Default 2,000.
    pub max_fields: usize,
    /// How many fields an operation may select at its root, fragments spread. Default 50.
    pub max_root_fields: usize,
    /// How many fields of an operation may have an alias, fragments spread. Default 100.
    pub max_aliases: usize,
    /// How many directives one field, fragment or operation may have. Default 8.
    pub max_directives: usize,
    /// How many directives an operation may have in all, fragments spread. Default 100.
    pub max_operation_directives: usize,
    /// How large the variables of a request may be, in bytes of their JSON, near enough. Default 1 MiB.
    pub max_variables_bytes: usize,
    /// How many fields the answer may have, if every list is as long as its page may be. A list without a page counts as
    /// [`max_rows`](Self::max_rows), or as 100 rows where there is no such limit. Default: no limit.
    pub max_complexity: Option<u64>,
    /// Whether clients may ask for the schema. Default true.
    pub introspection: bool,
    /// Whether errors may propose names that are spelt alike. Default true.
    pub suggestions: bool,
    /// How many compiled operations are kept. Default 1,024.
    pub plan_cache: usize,
    /// How many rows of a snapshot one event carries. Default 500.
    pub snapshot_rows: usize,
    /// How long a subscription may go without an event while the log goes on, before it is told the newest cursor. Default 30 s.
    pub cursor_interval: Duration,
    /// The role whose viewers may ask `explainChanges` why a subscriber gets changes, or does not. They see the keys of all rows, whatever policies
    /// say. Default: there is no such field.
    pub explain_role: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            times: TimeFormat::default(),
            max_rows: None,
            max_mutation_rows: 10_000,
            max_document_bytes: 256 << 10,
            max_tokens: 15_000,
            max_nesting: 64,
            max_definitions: 100,
            max_depth: 20,
            max_fields: 2_000,
            max_root_fields: 50,
            max_aliases: 100,
            max_directives: 8,
            max_operation_directives: 100,
            max_variables_bytes: 1 << 20,
            max_complexity: None,
            introspection: true,
            suggestions: true,
            plan_cache: 1_024,
            snapshot_rows: 500,
            cursor_interval: Duration::from_secs(30),
            explain_role: None,
        }
    }
}
