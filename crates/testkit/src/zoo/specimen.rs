use sea_orm::entity::prelude::*;

use super::animal::Species;

/// A column of every type that SeaORM can bind on PostgreSQL; [`mod@super::everything`] has some that it cannot.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "specimen")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub boolean: bool,
    pub small: i16,
    pub int: i32,
    pub big: i64,
    pub float: f32,
    pub double: f64,
    #[sea_orm(column_type = "Decimal(Some((28, 10)))")]
    pub decimal: Decimal,
    pub text: String,
    pub bytes: Vec<u8>,
    pub json: Json,
    #[sea_orm(column_type = "JsonBinary")]
    pub json_binary: Json,
    pub uuid: Uuid,
    pub date: Date,
    pub time: Time,
    pub date_time: DateTime,
    pub timestamp: DateTimeUtc,
    pub timestamp_tz: DateTimeWithTimeZone,
    pub timestamp_local: DateTimeLocal,
    pub species: Species,
    pub maybe_boolean: Option<bool>,
    pub maybe_big: Option<i64>,
    pub maybe_double: Option<f64>,
    #[sea_orm(column_type = "Decimal(Some((28, 10)))", nullable)]
    pub maybe_decimal: Option<Decimal>,
    pub maybe_text: Option<String>,
    pub maybe_bytes: Option<Vec<u8>>,
    pub maybe_json: Option<Json>,
    pub maybe_uuid: Option<Uuid>,
    pub maybe_date: Option<Date>,
    pub maybe_time: Option<Time>,
    pub maybe_date_time: Option<DateTime>,
    pub maybe_timestamp: Option<DateTimeUtc>,
    pub maybe_timestamp_tz: Option<DateTimeWithTimeZone>,
    pub maybe_species: Option<Species>,
}

impl ActiveModelBehavior for ActiveModel {}
