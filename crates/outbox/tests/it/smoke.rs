use sea_orm::{entity::prelude::*, *};
use tidewire_outbox::{Cursor, *};

mod parent {
    use sea_orm::entity::prelude::*;
    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "parent")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub name: String,
        pub score: Option<f64>,
        #[sea_orm(has_many)]
        pub children: HasMany<super::child::Entity>,
    }
    impl ActiveModelBehavior for ActiveModel {}
}
mod child {
    use sea_orm::entity::prelude::*;
    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "child")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub parent_id: i64,
        pub at: DateTimeUtc,
        #[sea_orm(belongs_to, from = "parent_id", to = "id", on_delete = "Cascade")]
        pub parent: BelongsTo<super::parent::Entity>,
    }
    impl ActiveModelBehavior for ActiveModel {}
}

#[tokio::test]
async fn smoke() {
    let registry = Registry::new().entity::<parent::Entity>().entity::<child::Entity>();
    let db = Recorder::connect("sqlite::memory:", registry).await.unwrap();
    let plain = db.unrecorded();
    install(plain).await.unwrap();
    plain.get_schema_builder().register(parent::Entity).register(child::Entity).apply(plain).await.unwrap();
    db.check().await.unwrap();
    let log = db.log().clone();
    let mut all = log.follow_all(log.position().await.unwrap()).await.unwrap();
    println!("{:?}", all.next().await.unwrap());
    let db = db.acting_as(Actor::user(7));
    let p = parent::ActiveModel { name: Set("x".into()), score: Set(Some(0.1)), ..Default::default() }
        .insert(&db)
        .await
        .unwrap();
    let tx = db.begin().await.unwrap();
    let c = child::ActiveModel { parent_id: Set(p.id), at: Set(chrono::Utc::now()), ..Default::default() }
        .insert(&tx)
        .await
        .unwrap();
    let nested = tx.begin().await.unwrap();
    child::Entity::delete_many().exec(&nested).await.unwrap();
    nested.rollback().await.unwrap();
    tx.commit().await.unwrap();
    println!("{c:?}");
    parent::Entity::update_many().col_expr(parent::Column::Name, Expr::value("y")).exec(&db).await.unwrap();
    parent::Entity::delete_many().exec(&db).await.unwrap();
    assert!(db.execute_unprepared("DROP TABLE parent").await.is_err());
    while let Ok(step) = tokio::time::timeout(std::time::Duration::from_millis(500), all.next()).await {
        if let Step::Transactions { transactions, cursor, up_to_date } = step.unwrap() {
            println!("-- {cursor} {up_to_date}");
            for t in transactions {
                for c in &t.changes {
                    println!(
                        "{} {:?} {} {:?} {:?}",
                        c.seq,
                        c.entity,
                        c.operation,
                        c.before.as_ref().map(|i| i.cells().collect::<Vec<_>>()),
                        c.after.as_ref().map(|i| i.cells().collect::<Vec<_>>())
                    );
                }
            }
        }
    }
    let mut events =
        log.follow(Shape::of::<parent::Entity>().filter(parent::Column::Name.eq("x")), Cursor::start()).await.unwrap();
    for _ in 0..3 {
        println!("{:?}", events.next().await.unwrap());
    }
}
