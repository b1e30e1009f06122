//! Rows that look real, the same each time.

use std::fmt;

use anyhow::{Result, bail};
use chrono::{DateTime, TimeDelta, Utc};
use entity::{attachment, comment, label, member, project, task, task_label, user};
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use rust_decimal::Decimal;
use sea_orm::{ConnectionTrait, DbBackend, EntityTrait, PaginatorTrait, Set, TransactionSession, TransactionTrait};
use tidewire_outbox::{Actor, Recorder, RecorderTransaction};
use uuid::Uuid;

/// How many rows go into one statement.
const BATCH: usize = 200;

const FIRST_NAMES: &[&str] = &[
    "Ada",
    "Alan",
    "Barbara",
    "Chen",
    "Dilma",
    "Edsger",
    "Fatima",
    "Grace",
    "Hana",
    "Ivan",
    "Jun",
    "Katherine",
    "Lea",
    "Mina",
    "Noor",
    "Olu",
    "Priya",
    "Radia",
    "Sofia",
    "Tomás",
];
const LAST_NAMES: &[&str] = &[
    "Adeyemi",
    "Berg",
    "Costa",
    "Diaz",
    "Eriksen",
    "Fischer",
    "Garcia",
    "Haddad",
    "Ito",
    "Jensen",
    "Kaya",
    "Lindqvist",
    "Moreau",
    "Nakamura",
    "Okafor",
    "Petrov",
    "Rossi",
    "Silva",
    "Tanaka",
    "Weber",
];
const PROJECTS: &[&str] =
    &["Website", "Mobile app", "Billing", "Search", "Onboarding", "Infrastructure", "Data platform", "Support desk"];
const LABELS: &[(&str, &str)] = &[
    ("bug", "#d73a4a"),
    ("feature", "#0e8a16"),
    ("design", "#5319e7"),
    ("docs", "#0075ca"),
    ("urgent", "#b60205"),
    ("question", "#cc317c"),
];
const VERBS: &[&str] =
    &["Fix", "Write", "Review", "Design", "Test", "Measure", "Document", "Remove", "Speed up", "Plan"];
const THINGS: &[&str] = &[
    "the login page",
    "the invoice export",
    "search suggestions",
    "the offline banner",
    "password resets",
    "the weekly report",
    "image uploads",
    "the settings dialog",
    "rate limits",
    "the release notes",
    "keyboard shortcuts",
    "the onboarding mail",
];
const REMARKS: &[&str] = &[
    "Done on my side.",
    "Can you have a look?",
    "This also happens on Safari.",
    "I would wait for the redesign.",
    "Let's talk tomorrow.",
    "Fixed in the last build.",
    "Who owns this?",
    "Added a test.",
];

/// How many rows were written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Seeded {
    /// Rows by table.
    pub rows: Vec<(&'static str, usize)>,
}

impl fmt::Display for Seeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = self.rows.iter().map(|(table, rows)| format!("{rows} {table}")).collect();
        write!(f, "seeded {}", parts.join(", "))
    }
}

/// Fills an empty database with `tasks` tasks and everything else in proportion. All of it is recorded, by `service:seed`, in one
/// transaction.
///
/// # Errors
/// The database has tasks already, or cannot be written.
pub async fn seed(recorder: &Recorder, tasks: usize) -> Result<Seeded> {
    if task::Entity::find().count(recorder).await? > 0 {
        bail!("the database has tasks already; seed an empty one");
    }
    let transaction = recorder.clone().acting_as(Actor::service("seed")).begin().await?;
    let seeded = Seeder::new(tasks).write(&transaction).await?;
    transaction.commit().await?;
    advance_sequences(recorder).await?;
    Ok(seeded)
}

/// The rows came with their keys, of which PostgreSQL's sequences know nothing: the next row without one would get one that is taken.
async fn advance_sequences(recorder: &Recorder) -> Result<()> {
    if recorder.get_database_backend() != DbBackend::Postgres {
        return Ok(());
    }
    for table in ["user", "project", "label", "comment", "attachment"] {
        let sql = format!(
            r#"SELECT setval(pg_get_serial_sequence('"{table}"', 'id'), coalesce((SELECT max(id) FROM "{table}"), 0) + 1, false)"#
        );
        recorder.unrecorded().execute_unprepared(&sql).await?;
    }
    Ok(())
}

struct Seeder {
    random: ChaCha8Rng,
    tasks: usize,
    users: usize,
    projects: usize,
    now: DateTime<Utc>,
}

impl Seeder {
    fn new(tasks: usize) -> Self {
        Self {
            random: ChaCha8Rng::seed_from_u64(20_261_120),
            tasks,
            users: (tasks / 20).clamp(5, 2_000),
            projects: (tasks / 50).clamp(2, 500),
            // A fixed moment, so that the rows are the same each time.
            now: DateTime::from_timestamp(1_795_000_000, 0).unwrap_or_default(),
        }
    }

    async fn write(mut self, db: &RecorderTransaction) -> Result<Seeded> {
        let mut seeded = Seeded::default();
        let users: Vec<_> = (0..self.users).map(|index| self.user(index)).collect();
        let projects: Vec<_> = (0..self.projects).map(|index| self.project(index)).collect();
        let members = self.members();
        let labels: Vec<_> = (0..self.projects)
            .flat_map(|project| LABELS.iter().map(move |label| (project, label)))
            .map(|(project, (name, color))| label::ActiveModel {
                id: Set(self.label_id(project, name)),
                project_id: Set(key(project)),
                name: Set((*name).into()),
                color: Set((*color).into()),
            })
            .collect();
        let (mut all_tasks, mut comments, mut task_labels, mut attachments) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for index in 0..self.tasks {
            let (task, project) = self.task(index);
            let id = task.id.clone().unwrap();
            for (name, _) in LABELS {
                if self.random.random_bool(0.25) {
                    task_labels.push(task_label::ActiveModel {
                        task_id: Set(id),
                        label_id: Set(self.label_id(project, name)),
                    });
                }
            }
            for _ in 0..self.random.random_range(0..4) {
                comments.push(self.comment(id, comments.len()));
            }
            if self.random.random_bool(0.05) {
                attachments.push(self.attachment(id, attachments.len()));
            }
            all_tasks.push(task);
        }
        seeded.rows.push(("users", insert::<user::Entity>(db, users).await?));
        seeded.rows.push(("projects", insert::<project::Entity>(db, projects).await?));
        seeded.rows.push(("members", insert::<member::Entity>(db, members).await?));
        seeded.rows.push(("labels", insert::<label::Entity>(db, labels).await?));
        seeded.rows.push(("tasks", insert::<task::Entity>(db, all_tasks).await?));
        seeded.rows.push(("comments", insert::<comment::Entity>(db, comments).await?));
        seeded.rows.push(("task labels", insert::<task_label::Entity>(db, task_labels).await?));
        seeded.rows.push(("attachments", insert::<attachment::Entity>(db, attachments).await?));
        Ok(seeded)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        *from.choose(&mut self.random).expect("the lists are not empty")
    }

    fn past(&mut self, days: i64) -> DateTime<Utc> {
        self.now - TimeDelta::seconds(self.random.random_range(0..days * 86_400))
    }

    fn label_id(&self, project: usize, name: &str) -> i64 {
        let place = LABELS.iter().position(|(label, _)| *label == name).unwrap_or(0);
        key(project * LABELS.len() + place)
    }

    fn user(&mut self, index: usize) -> user::ActiveModel {
        let (first, last) = (self.pick(FIRST_NAMES), self.pick(LAST_NAMES));
        user::ActiveModel {
            id: Set(key(index)),
            email: Set(format!("{}.{}{index}@example.com", first.to_lowercase(), last.to_lowercase())),
            name: Set(format!("{first} {last}")),
            created_at: Set(self.past(700)),
        }
    }

    fn project(&mut self, index: usize) -> project::ActiveModel {
        let name = PROJECTS[index % PROJECTS.len()];
        let round = index / PROJECTS.len();
        project::ActiveModel {
            id: Set(key(index)),
            name: Set(if round == 0 { name.into() } else { format!("{name} {}", round + 1) }),
            description: Set(self
                .random
                .random_bool(0.7)
                .then(|| format!("Everything about the {}.", name.to_lowercase()))),
            archived: Set(self.random.random_bool(0.1)),
            created_at: Set(self.past(600)),
        }
    }

    fn members(&mut self) -> Vec<member::ActiveModel> {
        let mut members = Vec::new();
        for project in 0..self.projects {
            for user in 0..self.users.min(200) {
                if user == project % self.users || self.random.random_bool(0.3) {
                    let role = if user == project % self.users {
                        member::Role::Owner
                    } else {
                        self.pick(&[member::Role::Editor, member::Role::Viewer])
                    };
                    members.push(member::ActiveModel {
                        user_id: Set(key(user)),
                        project_id: Set(key(project)),
                        role: Set(role),
                        since: Set(self.past(500)),
                    });
                }
            }
        }
        members
    }

    fn task(&mut self, index: usize) -> (task::ActiveModel, usize) {
        let project = self.random.random_range(0..self.projects);
        let status = self.pick(&[
            task::Status::Open,
            task::Status::Open,
            task::Status::InProgress,
            task::Status::Blocked,
            task::Status::Closed,
        ]);
        let created = self.past(365);
        let title = format!("{} {}", self.pick(VERBS), self.pick(THINGS));
        let task = task::ActiveModel {
            id: Set(self.uuid(created)),
            project_id: Set(key(project)),
            assignee_id: Set(self.random.random_bool(0.8).then(|| key(self.random.random_range(0..self.users)))),
            body: Set(format!("{title}, as discussed. {}", self.pick(REMARKS))),
            title: Set(title),
            status: Set(status),
            priority: Set(self.random.random_range(0..4)),
            done: Set(status == task::Status::Closed),
            position: Set(Decimal::from(index)),
            estimate: Set(self.random.random_bool(0.6).then(|| f64::from(self.random.random_range(1..40)) / 2.0)),
            due: Set(self.random.random_bool(0.5).then(|| (self.now + TimeDelta::days(self.random.random_range(-30..60))).date_naive())),
            metadata: Set(self.random.random_bool(0.3).then(|| serde_json::json!({ "source": self.pick(&["mail", "chat", "web"]), "votes": self.random.random_range(0..20) }))),
            created_at: Set(created),
            updated_at: Set(created + TimeDelta::seconds(self.random.random_range(0..86_400))),
        };
        (task, project)
    }

    fn comment(&mut self, task_id: Uuid, index: usize) -> comment::ActiveModel {
        comment::ActiveModel {
            id: Set(key(index)),
            task_id: Set(task_id),
            author_id: Set(Some(key(self.random.random_range(0..self.users)))),
            body: Set(self.pick(REMARKS).into()),
            created_at: Set(self.past(300)),
        }
    }

    fn attachment(&mut self, task_id: Uuid, index: usize) -> attachment::ActiveModel {
        let mut content = vec![0; self.random.random_range(16..256)];
        self.random.fill(content.as_mut_slice());
        attachment::ActiveModel {
            id: Set(key(index)),
            task_id: Set(task_id),
            name: Set(format!("screenshot-{index}.png")),
            media_type: Set("image/png".into()),
            content: Set(content),
            created_at: Set(self.past(300)),
        }
    }

    /// A UUID of version 7 at the given time, with random bits from the seed.
    fn uuid(&mut self, at: DateTime<Utc>) -> Uuid {
        let millis = u64::try_from(at.timestamp_millis()).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(millis, &self.random.random()).into_uuid()
    }
}

/// The keys of a seeded table: 1, 2, 3 …
fn key(index: usize) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX - 1) + 1
}

async fn insert<E>(db: &impl ConnectionTrait, rows: Vec<E::ActiveModel>) -> Result<usize>
where
    E: EntityTrait,
    E::ActiveModel: Send,
{
    let count = rows.len();
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let batch: Vec<_> = rows.by_ref().take(BATCH).collect();
        E::insert_many(batch).exec_without_returning(db).await?;
    }
    Ok(count)
}
