//! Somebody's own axum application, with entities and routes of its own. Three things make it live: a registry, a recorder where there was a
//! connection, and the routes of the API.
//!
//! `cargo run -p bookshop`, then open <http://127.0.0.1:8001/live/> and, in another terminal:
//! `curl -X POST http://127.0.0.1:8001/sell/1`.

use anyhow::Result;
use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use sea_orm::{ColumnTrait, EntityTrait, ExprTrait, PaginatorTrait, QueryFilter, Set, sea_query::Expr};
use tidewire_axum::{Server, ServerOptions};
use tidewire_graphql::Api;
use tidewire_outbox::{Actor, Recorder, Registry};
use tokio::net::TcpListener;

mod book {
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "book")]
    pub(crate) struct Model {
        #[sea_orm(primary_key)]
        pub(crate) id: i32,
        pub(crate) title: String,
        pub(crate) stock: i32,
    }

    impl ActiveModelBehavior for ActiveModel {}
}

#[tokio::main]
async fn main() -> Result<()> {
    // One line for each entity.
    let registry = Registry::new().entity::<book::Entity>();
    let db = Recorder::connect("sqlite::memory:", registry).await?;

    // From your migrations: the outbox's tables first, then your own.
    tidewire_outbox::install(db.unrecorded()).await?;
    db.unrecorded().get_schema_builder().register(book::Entity).apply(db.unrecorded()).await?;
    let books = ["The Sea, the Sea", "Moby-Dick"].map(|title| book::ActiveModel {
        title: Set(title.into()),
        stock: Set(3),
        ..Default::default()
    });
    book::Entity::insert_many(books).exec(&db).await?;

    // GraphQL, with its page, beside the application's own routes.
    let api = Api::builder(db.clone()).finish()?;
    let live = Server::new(api, ServerOptions::default());
    let app = Router::new()
        .route("/", get(front))
        .route("/sell/{id}", post(sell))
        .with_state(db)
        .nest("/live/", live.router());

    let listener = TcpListener::bind("127.0.0.1:8001").await?;
    println!("http://{0}/ sells books, http://{0}/live/ shows what happens", listener.local_addr()?);
    let stop = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    tokio::select! {
        served = axum::serve(listener, app) => served?,
        () = stop => {}
    }
    live.stop().await;
    Ok(())
}

async fn front(State(db): State<Recorder>) -> Result<String, StatusCode> {
    let titles = book::Entity::find().filter(book::Column::Stock.gt(0)).count(&db).await.map_err(unavailable)?;
    Ok(format!("{titles} titles in stock\n"))
}

/// The application's own write. It knows nothing of subscriptions; they know of it.
async fn sell(State(db): State<Recorder>, Path(id): Path<i32>) -> Result<StatusCode, StatusCode> {
    let sold = book::Entity::update_many()
        .col_expr(book::Column::Stock, Expr::col(book::Column::Stock).sub(1))
        .filter(book::Column::Id.eq(id))
        .filter(book::Column::Stock.gt(0))
        .exec(&db.acting_as(Actor::service("till")))
        .await
        .map_err(unavailable)?;
    Ok(if sold.rows_affected == 1 { StatusCode::NO_CONTENT } else { StatusCode::CONFLICT })
}

fn unavailable(_: sea_orm::DbErr) -> StatusCode {
    StatusCode::SERVICE_UNAVAILABLE
}
