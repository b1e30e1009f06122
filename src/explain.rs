use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Map, Value};
use tidewire_graphql::{Api, Request, Viewer, async_graphql::Variables};
use tidewire_outbox::Cursor;

use crate::config::Config;

/// Which subscriber, and since when.
#[derive(Debug, Clone, Args)]
pub struct ExplainOptions {
    /// The cursor that the subscriber has; `start` for the beginning of the log
    #[arg(long, visible_alias = "cursor", value_name = "CURSOR")]
    pub after: String,
    /// The subscriber's document
    #[arg(long, value_name = "DOCUMENT")]
    pub subscription: String,
    /// The values of its variables
    #[arg(long, value_name = "JSON", default_value = "{}")]
    pub variables: String,
    /// Whose token the subscriber shows, by its `sub`
    #[arg(long, value_name = "NAME")]
    pub actor: Option<String>,
    /// What the subscriber may act as; may be given several times. Without one, it is anonymous
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<String>,
    /// What the subscriber's token claims
    #[arg(long, value_name = "JSON", default_value = "{}")]
    pub claims: String,
    /// How many transactions
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub limit: usize,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Says why a subscriber gets the changes after a cursor, or does not.
///
/// # Errors
/// The database cannot be read, the settings or options are wrong, or the document is no subscription.
pub async fn explain(config: &Config, options: ExplainOptions) -> Result<String> {
    ensure!(options.limit > 0, "`--limit` must be 1 or more");
    let mut viewer = Viewer::with_roles(options.roles);
    if let Some(sub) = &options.actor {
        viewer = viewer.signed_in_as(sub);
    }
    viewer.claims.extend(object(&options.claims).context("`--claims` must be a JSON object")?);
    let variables = object(&options.variables).context("`--variables` must be a JSON object")?;
    let request = Request {
        query: options.subscription,
        variables: Variables::from_json(variables.into()),
        viewer: viewer.into(),
        ..Request::default()
    };
    let after = if options.after == "start" { Cursor::start().to_string() } else { options.after };
    let recorder = crate::connect(config).await?;
    let api = Api::builder(recorder.clone()).options(config.graphql()).policies(config.policy.clone()).finish()?;
    let explanation = api.explain(request, &after, options.limit).await;
    recorder.close().await;
    let explanation = explanation?;
    Ok(if options.json { serde_json::to_string(&explanation)? + "\n" } else { explanation.to_string() })
}

/// What the text says is not repeated: it may be about a person.
fn object(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(text).ok()
}
