//! The parameters of a request, whichever way it comes.

use serde::Deserialize;
use serde_json::{Map, Value};
use tidewire_graphql::{Request, async_graphql::Variables};

use crate::persisted::Persisted;

/// The parameters of a request, as JSON has them.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Parameters {
    #[serde(default)]
    pub(crate) query: Option<String>,
    /// The id of an operation that the server knows, in place of its text.
    #[serde(rename = "documentId", default)]
    pub(crate) document_id: Option<String>,
    #[serde(rename = "operationName", default)]
    pub(crate) operation_name: Option<String>,
    #[serde(default)]
    pub(crate) variables: Option<Map<String, Value>>,
    #[serde(default)]
    pub(crate) extensions: Option<Map<String, Value>>,
}

/// Why parameters are no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) code: &'static str,
    pub(crate) message: &'static str,
}

impl Problem {
    pub(crate) const NO_QUERY: Self = Self { code: "BAD_REQUEST", message: "the request has no `query`" };

    /// The array of errors that it is told by.
    pub(crate) fn errors(self) -> String {
        serde_json::json!([{ "message": self.message, "extensions": { "code": self.code } }]).to_string()
    }
}

impl Parameters {
    /// What names an operation that the server may know: `documentId`, or `extensions.persistedQuery.sha256Hash`.
    pub(crate) fn id(&self) -> Option<&str> {
        let hash = || self.extensions.as_ref()?.get("persistedQuery")?.get("sha256Hash")?.as_str();
        self.document_id.as_deref().or_else(hash)
    }

    pub(crate) fn into_request(self, persisted: Option<&Persisted>) -> Result<Request, Problem> {
        let id = self.id().map(str::to_owned);
        let query = match persisted {
            Some(persisted) => persisted.text(self.query, id.as_deref())?,
            None => self.query.ok_or(if id.is_some() { Persisted::UNKNOWN } else { Problem::NO_QUERY })?,
        };
        let variables = self.variables.map(|variables| Variables::from_json(Value::Object(variables)));
        Ok(Request {
            query,
            operation_name: self.operation_name,
            variables: variables.unwrap_or_default(),
            ..Request::default()
        })
    }
}
