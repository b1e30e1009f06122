//! A Rust service beside the server: it uses the `entity` crate and a `Recorder`, and nothing of GraphQL.
//!
//! Start the demo (`cargo run`), open its page, and in another terminal: `cargo run -p service -- sqlite://tidewire.db`. What the service
//! writes shows up in the page's feed; and the service follows, typed, what anybody writes.

use anyhow::{Context, Result};
use entity::{comment, task};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter, Set, TransactionSession, TransactionTrait,
    sea_query::Expr,
};
use tidewire_outbox::{Actor, Batch, Event, Recorder, Shape, Start};

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "sqlite://tidewire.db".into());
    let db = Recorder::connect(&url, entity::registry()).await?.acting_as(Actor::service("triage"));
    db.check().await.context("is the demo's database there? `cargo run` makes it")?;

    // SeaORM as always; every statement is recorded in the transaction that it runs in.
    let open = task::Entity::find().filter(task::Column::Done.eq(false)).count(&db).await?;
    println!("{open} tasks are open");
    let late = task::ActiveModel {
        project_id: Set(1),
        title: Set("Call the harbour master".into()),
        priority: Set(3),
        ..Default::default()
    };
    let late = late.insert(&db).await?;

    let transaction = db.begin().await?;
    comment::ActiveModel { task_id: Set(late.id), body: Set("Before the tide turns.".into()), ..Default::default() }
        .insert(&transaction)
        .await?;
    task::Entity::update_many()
        .col_expr(task::Column::Priority, Expr::value(1))
        .filter(task::Column::ProjectId.eq(1))
        .filter(task::Column::Priority.eq(0))
        .exec(&transaction)
        .await?;
    transaction.commit().await?;

    // Following a shape in process, typed. A service that remembers the cursor goes on from there next time.
    let urgent = Shape::of::<task::Entity>().filter(task::Column::Priority.gte(3)).filter(task::Column::Done.eq(false));
    let mut events = db.log().follow(urgent, Start::Snapshot).await?;
    println!("following urgent tasks; Ctrl+C ends this");
    while let Batch::Events { events, .. } = events.next().await? {
        for event in events {
            match event {
                Event::Enter(task) => println!("urgent:     {}", task.title),
                Event::Update { after, .. } => println!("changed:    {}", after.title),
                Event::Leave(task) => println!("no longer:  {}", task.title),
            }
        }
    }
    Ok(())
}
