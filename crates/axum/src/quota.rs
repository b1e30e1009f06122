//! How much one address, and one actor, may ask for. What is counted is bounded by what is open; the rest is forgotten.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::{Extensions, HeaderMap};
use ipnet::IpNet;
use tidewire_graphql::Viewer;
use tokio::time::Instant;

use crate::address;

/// What one client may ask for. Default: whatever it likes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Quota {
    /// How many WebSockets and event streams it may have open at once.
    pub connections: Option<usize>,
    /// How many operations may run for it at once, over all of its connections.
    pub operations: Option<usize>,
    /// How many operations it may begin.
    pub rate: Option<Rate>,
}

/// So many a second, and so many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Operations a second, in the long run; more than 0.
    pub per_second: f64,
    /// Operations at once; at least 1.
    pub burst: u32,
}

/// Quotas by whom they hold for. A request has to be within both.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Quotas {
    /// For each address; of IPv6, for each network of 64 bits. Without effect where an application serves the routes without `ConnectInfo`.
    pub address: Quota,
    /// For each actor. Those who are nobody have none.
    pub actor: Quota,
    /// The proxies that are believed when they tell a client's address (`Forwarded`, `X-Forwarded-For`).
    pub trusted_proxies: Vec<IpNet>,
}

/// Who asks, as far as quotas are concerned.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Client(Option<IpAddr>);

/// Something is asked for too often, or too much of it.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) problem: String,
    /// When to try again. Those who are refused together are told different times, so that they do not come back together.
    pub(crate) retry_after: Duration,
}

impl Refusal {
    /// The array of errors that it is told by on a WebSocket.
    pub(crate) fn errors(self) -> String {
        let wait = u64::try_from(self.retry_after.as_millis()).unwrap_or(u64::MAX);
        let extensions = serde_json::json!({ "code": "LIMIT_EXCEEDED", "retryAfterMs": wait });
        serde_json::json!([{ "message": self.problem, "extensions": extensions }]).to_string()
    }
}

/// What is open for a client. Closed with the value.
#[derive(Debug)]
#[must_use]
pub(crate) struct Grant {
    _address: Option<Held<IpAddr>>,
    _actor: Option<Held<String>>,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Connection,
    Operation,
}

/// The quotas of a server, and what counts against them.
#[derive(Debug)]
pub(crate) struct Admission {
    trusted_proxies: Vec<IpNet>,
    addresses: Arc<Ledger<IpAddr>>,
    actors: Arc<Ledger<String>>,
}

impl Admission {
    /// `max_connections` bounds what may be open, so that the rest can be forgotten in time.
    pub(crate) fn new(quotas: &Quotas, max_connections: usize) -> Self {
        let most = max_connections.saturating_mul(2).max(MIN_ACCOUNTS);
        Self {
            trusted_proxies: quotas.trusted_proxies.clone(),
            addresses: Arc::new(Ledger::new("address", quotas.address, most)),
            actors: Arc::new(Ledger::new("actor", quotas.actor, most)),
        }
    }

    pub(crate) fn client(&self, extensions: &Extensions, headers: &HeaderMap) -> Client {
        Client(address::of(extensions, headers, &self.trusted_proxies))
    }

    /// Lets a client open something, if that is within its quotas.
    pub(crate) fn open(&self, kind: Kind, client: Client, viewer: &Viewer) -> Result<Grant, Refusal> {
        let address = client.0.map(|address| self.addresses.open(kind, address)).transpose()?;
        let actor = viewer.actor.as_ref().map(|actor| self.actors.open(kind, actor.to_string())).transpose()?;
        Ok(Grant { _address: address.flatten(), _actor: actor.flatten() })
    }
}

/// Fewer accounts than this are not worth tidying.
const MIN_ACCOUNTS: usize = 1 << 16;

#[derive(Debug)]
struct Ledger<K> {
    of: &'static str,
    quota: Quota,
    most: usize,
    accounts: Mutex<HashMap<K, Account>>,
}

#[derive(Debug)]
struct Account {
    connections: usize,
    operations: usize,
    /// How many operations may begin now, as of `at`.
    tokens: f64,
    at: Instant,
}

impl Account {
    fn new(rate: Option<Rate>) -> Self {
        let tokens = rate.map_or(0.0, |rate| f64::from(rate.burst.max(1)));
        Self { connections: 0, operations: 0, tokens, at: Instant::now() }
    }

    fn count(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Connection => &mut self.connections,
            Kind::Operation => &mut self.operations,
        }
    }

    fn is_idle(&self) -> bool {
        self.connections == 0 && self.operations == 0
    }

    /// Fills up what time has brought. A bucket is full at the burst.
    fn refill(&mut self, rate: Rate) {
        let now = Instant::now();
        let brought = now.duration_since(self.at).as_secs_f64() * rate.per_second;
        self.tokens = (self.tokens + brought).min(f64::from(rate.burst.max(1)));
        self.at = now;
    }

    fn take(&mut self, rate: Rate) -> Result<(), Duration> {
        self.refill(rate);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::try_from_secs_f64((1.0 - self.tokens) / rate.per_second).unwrap_or(Duration::MAX))
    }
}

impl<K: Eq + Hash + Clone> Ledger<K> {
    fn new(of: &'static str, quota: Quota, most: usize) -> Self {
        Self { of, quota, most, accounts: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(self: &Arc<Self>, kind: Kind, key: K) -> Result<Option<Held<K>>, Refusal> {
        let Quota { connections, operations, rate } = self.quota;
        let (most, what, rate) = match kind {
            Kind::Connection => (connections, "connections", None),
            Kind::Operation => (operations, "operations at once", rate),
        };
        if most.is_none() && rate.is_none() {
            return Ok(None);
        }
        let mut accounts = self.lock();
        if accounts.len() >= self.most && !accounts.contains_key(&key) {
            self.tidy(&mut accounts);
        }
        let account = accounts.entry(key.clone()).or_insert_with(|| Account::new(self.quota.rate));
        if let Some(most) = most
            && *account.count(kind) >= most
        {
            let problem = format!("one {} may have at most {most} {what}", self.of);
            return Err(Refusal { problem, retry_after: jittered(Duration::from_secs(5)) });
        }
        if let Some(rate) = rate {
            account.take(rate).map_err(|wait| Refusal {
                problem: format!("one {} may begin at most {} operations a second", self.of, rate.per_second),
                retry_after: jittered(wait.clamp(Duration::from_millis(100), Duration::from_hours(1))),
            })?;
        }
        *account.count(kind) += 1;
        drop(accounts);
        Ok(Some(Held { ledger: Arc::clone(self), key, kind }))
    }

    /// Forgets accounts with nothing open: those that owe nothing, or all if that is not enough. At most half of the accounts have something
    /// open, so this is done once in many times.
    fn tidy(&self, accounts: &mut HashMap<K, Account>) {
        if let Some(rate) = self.quota.rate {
            accounts.retain(|_, account| {
                account.refill(rate);
                !account.is_idle() || account.tokens < f64::from(rate.burst.max(1))
            });
        }
        if accounts.len() > self.most / 4 * 3 {
            accounts.retain(|_, account| !account.is_idle());
        }
    }
}

/// Something that is open, and counted.
#[derive(Debug)]
struct Held<K: Eq + Hash + Clone> {
    ledger: Arc<Ledger<K>>,
    key: K,
    kind: Kind,
}

impl<K: Eq + Hash + Clone> Drop for Held<K> {
    fn drop(&mut self) {
        let mut accounts = self.ledger.lock();
        if let Some(account) = accounts.get_mut(&self.key) {
            *account.count(self.kind) -= 1;
            // Without a rate there is nothing to remember.
            if account.is_idle() && self.ledger.quota.rate.is_none() {
                accounts.remove(&self.key);
            }
        }
    }
}

/// Up to twice as long.
pub(crate) fn jittered(wait: Duration) -> Duration {
    let random = RandomState::new().hash_one(0_u8);
    wait + wait.mul_f64(f64::from(u32::try_from(random >> 32).unwrap_or_default()) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use tidewire_outbox::Actor;

    use super::*;

    fn client(last: u8) -> Client {
        Client(Some(IpAddr::from([192, 0, 2, last])))
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_empties_and_fills_again() {
        let rate = Rate { per_second: 2.0, burst: 3 };
        let address = Quota { rate: Some(rate), ..Quota::default() };
        let admission = Admission::new(&Quotas { address, ..Quotas::default() }, 10);
        let nobody = Viewer::default();
        let ask = |last| admission.open(Kind::Operation, client(last), &nobody);
        for _ in 0..3 {
            drop(ask(1));
        }
        let refusal = ask(1).expect_err("the burst is over");
        assert!(refusal.retry_after >= Duration::from_millis(500) && refusal.retry_after <= Duration::from_secs(1));
        assert!(ask(2).is_ok(), "another address");
        tokio::time::advance(Duration::from_millis(1_000)).await;
        assert!(ask(1).is_ok() && ask(1).is_ok());
        assert!(ask(1).is_err());
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert_eq!((0..10).filter(|_| ask(1).is_ok()).count(), 3, "a pause brings no more than the burst");
    }

    #[tokio::test]
    async fn what_is_open_counts_until_it_is_closed() {
        let quota = Quota { connections: Some(1), operations: Some(2), rate: None };
        let admission = Admission::new(&Quotas { address: quota, actor: quota, ..Quotas::default() }, 10);
        let ada = Viewer::default().acting_as(Actor::user("ada"));
        let open = |kind, last| admission.open(kind, client(last), &ada);
        let connection = open(Kind::Connection, 1);
        assert!(connection.is_ok());
        let refusal = open(Kind::Connection, 2).expect_err("one of the actor's is open elsewhere");
        assert_eq!(refusal.problem, "one actor may have at most 1 connections");
        let (first, second) = (open(Kind::Operation, 1), open(Kind::Operation, 2));
        assert!(first.is_ok() && second.is_ok() && open(Kind::Operation, 3).is_err());
        drop((connection, first, second));
        assert!(open(Kind::Connection, 2).is_ok() && open(Kind::Operation, 3).is_ok());
        assert!(admission.addresses.lock().is_empty() && admission.actors.lock().is_empty());
    }

    #[tokio::test]
    async fn as_many_addresses_as_there_are_fit_into_bounded_memory() {
        let address = Quota { operations: Some(1), rate: Some(Rate { per_second: 1.0, burst: 1 }), connections: None };
        let admission = Admission::new(&Quotas { address, ..Quotas::default() }, 10);
        let nobody = Viewer::default();
        let held = admission.open(Kind::Operation, client(1), &nobody);
        for n in 0..3 * u32::try_from(MIN_ACCOUNTS).expect("small") {
            let client = Client(Some(IpAddr::from(n.to_be_bytes())));
            drop(admission.open(Kind::Operation, client, &nobody));
            assert!(admission.addresses.lock().len() <= MIN_ACCOUNTS);
        }
        assert!(admission.open(Kind::Operation, client(1), &nobody).is_err(), "what is open is not forgotten");
        drop(held);
    }
}
