//! What a statement that stands in the log as text means to those who read rows.

use sqlparser::{
    dialect::MySqlDialect,
    tokenizer::{Token, Tokenizer, Whitespace},
};

use crate::registry::Catalog;

/// What a text of the log does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Nothing to rows of synced tables.
    Nothing,
    Commit,
    Rollback,
    Savepoint(String),
    RollbackTo(String),
    /// A transaction of XA, by the name that the log has for it, has been written.
    XaEnd(String),
    XaCommit(String),
    XaRollback(String),
    /// A synced table has another definition.
    Altered,
    /// It changes rows that the log does not tell: why not.
    Untold(String),
}

/// Reads a text that was written with a database as its default.
pub(super) fn meaning(text: &str, is_ours: bool, database: &str, catalog: &Catalog) -> Meaning {
    let begins = |with: &str| text.get(..with.len()).is_some_and(|head| head.eq_ignore_ascii_case(with));
    let rest = |with: &str| text[with.len()..].trim().to_owned();
    // The name as the server writes it, in backticks; case does not tell savepoints apart.
    let savepoint = |with: &str| rest(with).to_lowercase();
    match text.trim() {
        text if text.eq_ignore_ascii_case("commit") => return Meaning::Commit,
        text if text.eq_ignore_ascii_case("rollback") => return Meaning::Rollback,
        _ if begins("rollback to ") => return Meaning::RollbackTo(savepoint("rollback to ")),
        _ if begins("savepoint ") => return Meaning::Savepoint(savepoint("savepoint ")),
        _ if begins("xa end ") => return Meaning::XaEnd(rest("xa end ")),
        _ if begins("xa commit ") => return Meaning::XaCommit(rest("xa commit ")),
        _ if begins("xa rollback ") => return Meaning::XaRollback(rest("xa rollback ")),
        _ => {}
    }
    other(text, is_ours, database, catalog).unwrap_or(Meaning::Nothing)
}

fn other(text: &str, is_ours: bool, database: &str, catalog: &Catalog) -> Option<Meaning> {
    let all = words(text);
    let is = |word: &String, wanted: &str| word.eq_ignore_ascii_case(wanted);
    // `SET STATEMENT … FOR` stands before another.
    let prefixed = matches!(&all[..], [set, statement, ..] if is(set, "set") && is(statement, "statement"));
    let begin = all.iter().position(|word| is(word, "for")).filter(|_| prefixed).map_or(0, |place| place + 1);
    let words = &all[begin..];
    let has = |wanted: &str| words.iter().any(|word| word.eq_ignore_ascii_case(wanted));
    if !is_ours && !has(database) {
        return None;
    }
    let verb = words.first()?.to_ascii_lowercase();
    let table = catalog.entities().iter().map(|entity| entity.name).find(|name| has(name));
    let untold = |what: &str| Some(Meaning::Untold(format!("the table {} {what}", table.unwrap_or_default())));
    match (verb.as_str(), table) {
        ("truncate", Some(_)) => untold("was truncated"),
        ("drop" | "rename", Some(_)) if has("table") && !has("temporary") => untold("was dropped or renamed"),
        ("create", Some(_)) if has("replace") && has("table") && !has("temporary") => untold("was made anew"),
        ("alter", Some(_)) if words.windows(2).any(is_renaming) => untold("was renamed"),
        ("alter", Some(_))
            if has("partition") && ["drop", "truncate", "exchange", "convert"].iter().any(|what| has(what)) =>
        {
            untold("has lost partitions or got some")
        }
        ("alter", Some(_)) if has("tablespace") => untold("was given the rows of a file"),
        ("alter", Some(_)) if has("ignore") => untold("may have lost rows by ALTER IGNORE"),
        ("alter", Some(_)) if has("versioning") => untold("has begun or ceased to keep its history"),
        ("alter" | "create", Some(_)) => Some(Meaning::Altered),
        // What is kept in memory is emptied so when the server has started, and no synced table is kept there.
        ("delete", None) if words.len() <= 4 => None,
        (verb, _) if HARMLESS.contains(&verb) => None,
        // Queries that stand in the log call functions that write.
        _ => Some(Meaning::Untold(
            "rows were written in statement format (`binlog_format` must be ROW for every session)".to_owned(),
        )),
    }
}

/// What changes no rows of synced tables, where no rule says otherwise.
const HARMLESS: &[&str] = &[
    "alter",
    "analyze",
    "begin",
    "check",
    "create",
    "drop",
    "flush",
    "grant",
    "install",
    "optimize",
    "release",
    "rename",
    "repair",
    "revoke",
    "set",
    "start",
    "truncate",
    "uninstall",
    "xa",
];

/// Whether two words of an `ALTER TABLE` begin to give the table another name, and not something in it.
fn is_renaming(pair: &[String]) -> bool {
    let within = ["column", "index", "key"];
    pair[0].eq_ignore_ascii_case("rename") && !within.iter().any(|what| pair[1].eq_ignore_ascii_case(what))
}

/// The words of a text; all of it as one where it cannot be read, in which every name is looked for.
fn words(text: &str) -> Vec<String> {
    let Ok(tokens) = Tokenizer::new(&MySqlDialect {}, text).tokenize() else {
        return text.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned).collect();
    };
    let mut words = Vec::new();
    for token in tokens {
        match token {
            Token::Word(word) => words.push(word.value),
            // The server runs what stands in these.
            Token::Whitespace(Whitespace::MultiLineComment(text))
                if text.starts_with('!') || text.starts_with("M!") =>
            {
                words.extend(text.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned));
            }
            _ => {}
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    mod task {
        #![allow(unreachable_pub, reason = "as the macros write them")]
        use sea_orm::entity::prelude::*;

        #[sea_orm::model]
        #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
        #[sea_orm(table_name = "task")]
        pub struct Model {
            #[sea_orm(primary_key)]
            pub id: i32,
        }

        impl ActiveModelBehavior for ActiveModel {}
    }

    #[test]
    fn what_removes_rows_unseen_is_found() {
        let catalog = Registry::new().entity::<task::Entity>().catalog().unwrap();
        let here = |text| meaning(text, true, "shop", &catalog);
        let elsewhere = |text| meaning(text, false, "shop", &catalog);
        assert_eq!(here("COMMIT"), Meaning::Commit);
        assert_eq!(here("SAVEPOINT `A`"), Meaning::Savepoint("`a`".into()));
        assert_eq!(here("ROLLBACK TO `a`"), Meaning::RollbackTo("`a`".into()));
        assert_eq!(here("XA COMMIT X'78',X'',1"), Meaning::XaCommit("X'78',X'',1".into()));
        for text in [
            "truncate task",
            "TRUNCATE TABLE `task`",
            "DROP TABLE IF EXISTS `task` /* generated by server */",
            "rename table other to x, task to y",
            "ALTER TABLE task RENAME TO y",
            "alter table task drop partition p1",
            "create or replace table task (id int)",
            "update task set id = 5",
            "INSERT INTO other VALUES ('it''s')",
            "SET STATEMENT binlog_format = 'STATEMENT' FOR DELETE FROM task",
            "/*!50000 truncate */ task",
            "alter table task convert partition p0 to table old",
            "ALTER TABLE task DISCARD TABLESPACE",
            "ALTER IGNORE TABLE task ADD UNIQUE (x)",
            "ALTER TABLE task ADD SYSTEM VERSIONING",
            "SELECT writes()",
        ] {
            assert!(matches!(here(text), Meaning::Untold(_)), "{text}");
            assert_eq!(elsewhere(text), Meaning::Nothing, "{text}");
        }
        for text in [
            "TRUNCATE `shop`.`task`",
            "SELECT `shop`.`writes`()",
            "LOAD DATA INFILE 'x' INTO TABLE `shop`.`task` (`id`)",
        ] {
            assert!(matches!(elsewhere(text), Meaning::Untold(_)), "{text}");
        }
        for text in
            ["ALTER TABLE task ADD COLUMN x int", "ALTER TABLE task RENAME COLUMN x TO y", "CREATE TABLE task (id int)"]
        {
            assert_eq!(here(text), Meaning::Altered, "{text}");
        }
        for text in [
            "TRUNCATE other",
            "ALTER TABLE other ADD COLUMN x int",
            "ANALYZE TABLE task",
            "DROP TEMPORARY TABLE task",
            "DELETE FROM `shop`.`in_memory`",
            "# Dummy event",
        ] {
            assert_eq!(here(text), Meaning::Nothing, "{text}");
        }
    }
}
