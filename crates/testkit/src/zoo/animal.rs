use sea_orm::entity::prelude::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Enum", enum_name = "species")]
pub enum Species {
    #[sea_orm(string_value = "lion")]
    Lion,
    #[sea_orm(string_value = "sea-otter")]
    SeaOtter,
    #[sea_orm(string_value = "3-toed sloth")]
    Sloth,
}

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "animal")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub name: String,
    pub species: Species,
    pub keeper_id: Option<i32>,
    pub weight: Option<f64>,
    pub born: Option<Date>,
    #[sea_orm(column_type = "Decimal(Some((12, 4)))", nullable)]
    pub price: Option<Decimal>,
    #[sea_orm(default_value = false)]
    pub tame: bool,
    pub notes: Option<Json>,
    pub seen_at: Option<DateTimeUtc>,
    #[sea_orm(belongs_to, from = "keeper_id", to = "id", on_delete = "SetNull", on_update = "Cascade")]
    pub keeper: BelongsTo<Option<super::keeper::Entity>>,
    #[sea_orm(has_one)]
    pub chip: HasOne<super::chip::Entity>,
    #[sea_orm(has_many)]
    pub visits: HasMany<super::visit::Entity>,
    #[sea_orm(has_many)]
    pub diets: HasMany<super::diet::Entity>,
    #[sea_orm(has_many, via = "diet")]
    pub foods: HasMany<super::food::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
