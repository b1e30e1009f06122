//! Authentication as the settings have it, and keys for services.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use tidewire_axum::{ApiKey, Authentication, Jwks, TokenKey};

use crate::config::Auth;

/// What `tidewire key` can do.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key, print it once, and what the settings need to know it
    Create {
        /// The service that it is for; its writes have the actor `service:NAME`
        #[arg(long)]
        name: String,
        /// What the service may act as; may be given several times
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<String>,
    },
}

/// Runs a `tidewire key` command, and gives what it prints.
///
/// # Errors
/// The key cannot be made.
pub fn key(command: &KeyCommand) -> Result<String> {
    let KeyCommand::Create { name, roles } = command;
    let (key, sha256) = ApiKey::generate()?;
    ApiKey::new(name, roles, &sha256)?;
    // JSON writes texts, and lists of them, as TOML does.
    let (name, roles) = (serde_json::to_string(name)?, serde_json::to_string(roles)?);
    Ok(format!(
        "The key, which is not kept and not shown again:\n\n{key}\n\nFor the settings:\n\n\
         [[auth.api_keys]]\nname = {name}\nroles = {roles}\nsha256 = \"{sha256}\"\n"
    ))
}

/// How clients say who they are; `None` where no key is set.
pub(crate) fn authentication(settings: &Auth) -> Result<Option<Authentication>> {
    let mut authentication = Authentication::default();
    authentication.keys = token_keys(settings)?;
    if !settings.jwks_url.is_empty() {
        let jwks = Jwks::new(&settings.jwks_url).context("`jwks_url` in [auth]")?;
        let [refresh, pause, patience] =
            [settings.jwks_refresh_ms, settings.jwks_pause_ms, settings.jwks_timeout_ms].map(Duration::from_millis);
        authentication.jwks = Some(jwks.timed(refresh, pause, patience));
    }
    for key in &settings.api_keys {
        let known = ApiKey::new(&key.name, &key.roles, &key.sha256.0);
        authentication.api_keys.push(known.with_context(|| format!("the API key {:?} in [auth]", key.name))?);
    }
    ensure!(
        settings.explain_role != tidewire_graphql::Viewer::ANONYMOUS,
        "`explain_role` in [auth] is \"anonymous\": whoever came would see the keys of all rows"
    );
    if authentication.keys.is_empty() && authentication.jwks.is_none() && authentication.api_keys.is_empty() {
        ensure!(!settings.required, "`required` in [auth] is set, and no key: nobody could come in");
        ensure!(
            settings.metrics_role.is_empty(),
            "`metrics_role` in [auth] is set, and no key: nobody could read them"
        );
        ensure!(settings.explain_role.is_empty(), "`explain_role` in [auth] is set, and no key: nobody could ask");
        return Ok(None);
    }
    ensure!(!settings.roles_claim.is_empty(), "`roles_claim` in [auth] is empty");
    authentication.audiences.clone_from(&settings.audiences);
    authentication.issuers.clone_from(&settings.issuers);
    authentication.leeway = Duration::from_secs(settings.leeway_s);
    authentication.require_exp = settings.require_exp;
    authentication.roles_claim.clone_from(&settings.roles_claim);
    authentication.token_roles.clone_from(&settings.token_roles);
    authentication.required = settings.required;
    authentication.metrics_role = Some(settings.metrics_role.clone()).filter(|role| !role.is_empty());
    Ok(Some(authentication))
}

fn token_keys(settings: &Auth) -> Result<Vec<TokenKey>> {
    let mut keys = Vec::new();
    match (settings.secret.0.as_str(), settings.secret_file.as_str()) {
        ("", "") => {}
        (secret, "") => keys.push(TokenKey::secret(secret.as_bytes()).context("`secret` in [auth]")?),
        ("", file) => {
            let secret = std::fs::read(file).with_context(|| format!("`secret_file` in [auth], {file}"))?;
            keys.push(TokenKey::secret(secret.trim_ascii_end()).context("`secret_file` in [auth]")?);
        }
        _ => bail!("`secret` and `secret_file` in [auth] are both set, and only one can be it"),
    }
    for file in &settings.public_key_files {
        let name = || format!("`public_key_files` in [auth], {file}");
        let pem = std::fs::read(file).with_context(name)?;
        keys.push(TokenKey::pem(&pem).with_context(name)?);
    }
    Ok(keys)
}

/// Which authentication is on, in a line.
pub(crate) fn describe(authentication: &Authentication) -> String {
    let mut known = Vec::new();
    if !authentication.keys.is_empty() {
        known.push(format!("tokens by {} keys", authentication.keys.len()));
    }
    if authentication.jwks.is_some() {
        known.push("tokens by published keys".to_owned());
    }
    if !authentication.api_keys.is_empty() {
        known.push(format!("{} API keys", authentication.api_keys.len()));
    }
    let others = if authentication.required { "refused" } else { "anonymous" };
    format!("clients are known by {}; others are {others}", known.join(", "))
}
