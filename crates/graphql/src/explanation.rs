//! Why a subscriber gets changes, or does not: what an operator is answered.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;
use serde_json::Value;

/// Why a subscriber gets the changes after a cursor, or does not.
///
/// It is for operators alone: it has the keys of rows, and what is known of the viewer, whatever policies say. Shown, it is a text for people; as
/// JSON, it has the fields of the type `Explanation` in GraphQL.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Why there is no such subscription for this viewer, with its code.
    pub(crate) refusal: Option<String>,
    /// What was asked for, without what the policy adds.
    pub(crate) filter: Option<String>,
    pub(crate) transactions: Vec<ExplainedTransaction>,
    /// Why the subscriber has to start over after these.
    pub(crate) resync: Option<&'static str>,
    /// Where one stands after these.
    pub(crate) cursor: Option<String>,
    /// Whether there are no more.
    pub(crate) up_to_date: bool,
}

/// The changes that committed together.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExplainedTransaction {
    /// Where one stands who has seen it.
    pub(crate) cursor: String,
    pub(crate) changes: Vec<ExplainedChange>,
    /// How many of its changes are left out, because there are so many.
    pub(crate) omitted: usize,
}

/// A change, and what became of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExplainedChange {
    pub(crate) entity: String,
    pub(crate) key: Value,
    pub(crate) operation: &'static str,
    /// How it is found to concern the subscription; none where no change of its entity does.
    pub(crate) index: Option<ExplainedIndex>,
    pub(crate) before: Option<ExplainedImage>,
    pub(crate) after: Option<ExplainedImage>,
    pub(crate) hidden_fields: Vec<String>,
    /// What the subscriber is told.
    pub(crate) event: Option<&'static str>,
    pub(crate) outcome: Outcome,
    /// The outcome as a sentence.
    pub(crate) reason: String,
}

/// How a change is found to concern a subscription.
#[derive(Serialize)]
pub(crate) struct ExplainedIndex {
    pub(crate) by: IndexedBy,
    /// The conditions that are looked up, of which a row has to meet one.
    pub(crate) keys: Vec<String>,
    /// Whether the row as it was leads to the subscription.
    pub(crate) before: bool,
    /// Whether the row as it is does.
    pub(crate) after: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum IndexedBy {
    /// Conditions are looked up.
    Keys,
    /// The filter is evaluated for each change.
    Each,
    /// Every change of the entity is told.
    Entity,
}

/// What filter and policy make of a row as it was, or is.
#[derive(Serialize)]
pub(crate) struct ExplainedImage {
    /// Whether it passes the filter; `None` where only the database knows.
    pub(crate) filter: Option<bool>,
    /// The conditions of the filter that decide that.
    pub(crate) deciding: Vec<String>,
    /// Whether the policy lets the viewer see it; `None` where only the database knows.
    pub(crate) policy: Option<bool>,
    /// The rules that apply to the viewer; none where there are no policies.
    pub(crate) rules: Vec<ExplainedRule>,
}

/// What a rule of a policy makes of a row.
#[derive(Serialize)]
pub(crate) struct ExplainedRule {
    pub(crate) role: String,
    pub(crate) rule: Option<String>,
    pub(crate) passes: Option<bool>,
    pub(crate) deciding: Vec<String>,
}

/// What became of a change.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Outcome {
    /// The subscriber is told of it.
    Delivered,
    /// A live query is read again because of it.
    ReadAgain,
    /// It is of an entity that the subscription has nothing to do with.
    OtherEntity,
    /// The row passes the filter neither before nor after.
    Filter,
    /// The policy hides the row, or the entity.
    Policy,
    /// The subscription asks for other operations.
    Operation,
    /// Only fields have changed that the viewer may not see.
    HiddenFields,
}

impl Outcome {
    pub(crate) const ALL: [(&'static str, &'static str); 7] = [
        ("DELIVERED", "The subscriber is told of it."),
        ("READ_AGAIN", "A live query is read again because of it."),
        ("OTHER_ENTITY", "It is of an entity that the subscription has nothing to do with."),
        ("FILTER", "The row passes the filter neither before nor after."),
        ("POLICY", "The policy hides the row, or the entity."),
        ("OPERATION", "The subscription asks for other operations."),
        ("HIDDEN_FIELDS", "Only fields have changed that the viewer may not see."),
    ];

    fn is_told(self) -> bool {
        matches!(self, Self::Delivered | Self::ReadAgain)
    }
}

impl Explanation {
    pub(crate) fn new(filter: Option<String>) -> Self {
        Self { refusal: None, filter, transactions: Vec::new(), resync: None, cursor: None, up_to_date: false }
    }

    pub(crate) fn refused(refusal: String) -> Self {
        Self { refusal: Some(refusal), ..Self::new(None) }
    }
}

/// Keys are row contents, and stay out of logs.
impl fmt::Debug for Explanation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Explanation").field("transactions", &self.transactions.len()).finish_non_exhaustive()
    }
}

impl Display for Explanation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(refusal) = &self.refusal {
            return writeln!(f, "The subscription is refused: {refusal}");
        }
        if let Some(filter) = &self.filter {
            writeln!(f, "filter: {filter}")?;
        }
        for transaction in &self.transactions {
            writeln!(f, "\ntransaction, after which the cursor is {}", transaction.cursor)?;
            transaction.changes.iter().try_for_each(|change| write!(f, "{change}"))?;
            if transaction.omitted > 0 {
                writeln!(f, "  and {} more changes", transaction.omitted)?;
            }
        }
        match (self.resync, &self.cursor) {
            (Some(reason), _) => writeln!(f, "\nThen the subscriber is told to start over: resync {reason}"),
            (None, Some(cursor)) if self.up_to_date => writeln!(f, "\nThere are no more changes, up to {cursor}"),
            (None, Some(cursor)) => writeln!(f, "\nThere are more changes after {cursor}"),
            (None, None) => Ok(()),
        }
    }
}

impl Display for ExplainedChange {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {} {} {}", self.operation, self.entity, self.key)?;
        if let Some(index) = &self.index {
            writeln!(f, "    index   {index}")?;
        }
        for (when, image) in [("before", &self.before), ("after", &self.after)] {
            if let Some(image) = image {
                write!(f, "    {when:6}  {image}")?;
            }
        }
        if !self.hidden_fields.is_empty() {
            writeln!(f, "    hidden  {}", self.hidden_fields.join(", "))?;
        }
        let told = if self.outcome.is_told() { "" } else { "not delivered: " };
        writeln!(f, "    => {told}{}", self.reason)
    }
}

impl Display for ExplainedIndex {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let leads = match (self.before, self.after) {
            (true, true) => "leads here before and after",
            (true, false) => "leads here before",
            (false, true) => "leads here after",
            (false, false) => "does not lead here",
        };
        match self.by {
            IndexedBy::Entity => f.write_str("every change of the entity leads here"),
            IndexedBy::Each => f.write_str("evaluated for each change: the filter has no condition to look up"),
            IndexedBy::Keys if self.keys.is_empty() => f.write_str("nothing leads here: no row can pass"),
            IndexedBy::Keys => write!(f, "{}: {leads}", self.keys.join(", or ")),
        }
    }
}

impl Display for ExplainedImage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let verdict = verdict(self.filter, "passes the filter", "fails the filter");
        writeln!(f, "{verdict}{}", because(&self.deciding))?;
        if self.policy == Some(false) && self.rules.is_empty() {
            writeln!(f, "            hidden: no rule of the viewer's roles applies")?;
        }
        for ExplainedRule { role, passes, deciding, .. } in &self.rules {
            let sees = self::verdict(*passes, "lets the viewer see it", "does not let the viewer see it");
            writeln!(f, "            the role {role:?} {sees}{}", because(deciding))?;
        }
        Ok(())
    }
}

fn verdict<'a>(passes: Option<bool>, yes: &'a str, no: &'a str) -> &'a str {
    match passes {
        Some(true) => yes,
        Some(false) => no,
        None => "can only be told by the database",
    }
}

fn because(deciding: &[String]) -> String {
    if deciding.is_empty() { String::new() } else { format!(": {}", deciding.join(", ")) }
}
