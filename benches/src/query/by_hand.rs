//! What a careful programmer writes with async-graphql and SeaORM: static types, and a loader for each relation, so that a list costs three
//! statements.

use std::{collections::HashMap, sync::Arc};

use async_graphql::{
    ComplexObject, Context, EmptyMutation, EmptySubscription, Object, Result, Schema, SimpleObject,
    dataloader::{DataLoader, Loader},
};
use sakila::entities::{actor, film, film_actor, language};
use sea_orm::{ColumnTrait, DatabaseConnection, DbErr, EntityTrait, LoaderTrait, QueryFilter, QueryOrder, QuerySelect};

pub(crate) type ByHand = Schema<Query, EmptyMutation, EmptySubscription>;

pub(crate) fn schema(db: DatabaseConnection) -> ByHand {
    Schema::build(Query, EmptyMutation, EmptySubscription)
        .data(DataLoader::new(Languages(db.clone()), tokio::spawn))
        .data(DataLoader::new(Actors(db.clone()), tokio::spawn))
        .data(db)
        .finish()
}

pub(crate) const DOCUMENT: &str = "{ film(limit: 50) { filmId title description releaseYear rentalDuration rentalRate length \
     replacementCost rating lastUpdate language1 { name } actor { firstName lastName } } }";

pub(crate) struct Query;

#[Object]
impl Query {
    async fn film(&self, context: &Context<'_>, limit: u64) -> Result<Vec<Film>> {
        let db = context.data::<DatabaseConnection>()?;
        let films = film::Entity::find().order_by_asc(film::Column::FilmId).limit(limit).all(db).await?;
        Ok(films.into_iter().map(Film::from).collect())
    }
}

#[derive(SimpleObject)]
#[graphql(complex)]
struct Film {
    film_id: i64,
    title: String,
    description: Option<String>,
    release_year: Option<String>,
    rental_duration: i16,
    rental_rate: String,
    length: Option<i16>,
    replacement_cost: String,
    rating: Option<String>,
    last_update: String,
    #[graphql(skip)]
    language_id: i16,
}

impl From<film::Model> for Film {
    fn from(film: film::Model) -> Self {
        Self {
            film_id: film.film_id,
            title: film.title,
            description: film.description,
            release_year: film.release_year,
            rental_duration: film.rental_duration,
            rental_rate: film.rental_rate.to_string(),
            length: film.length,
            replacement_cost: film.replacement_cost.to_string(),
            rating: film.rating,
            last_update: film.last_update.to_string(),
            language_id: film.language_id,
        }
    }
}

#[ComplexObject]
impl Film {
    async fn language1(&self, context: &Context<'_>) -> Result<Option<Language>> {
        context.data::<DataLoader<Languages>>()?.load_one(self.language_id).await
    }

    async fn actor(&self, context: &Context<'_>) -> Result<Vec<Actor>> {
        Ok(context.data::<DataLoader<Actors>>()?.load_one(self.film_id).await?.unwrap_or_default())
    }
}

#[derive(Clone, SimpleObject)]
struct Language {
    name: String,
}

#[derive(Clone, SimpleObject)]
struct Actor {
    first_name: String,
    last_name: String,
}

struct Languages(DatabaseConnection);

impl Loader<i16> for Languages {
    type Value = Language;
    type Error = async_graphql::Error;

    async fn load(&self, ids: &[i16]) -> Result<HashMap<i16, Language>> {
        let languages = language::Entity::find()
            .filter(language::Column::LanguageId.is_in(ids.iter().copied()))
            .all(&self.0)
            .await?;
        Ok(languages.into_iter().map(|language| (language.language_id, Language { name: language.name })).collect())
    }
}

struct Actors(DatabaseConnection);

impl Loader<i64> for Actors {
    type Value = Vec<Actor>;
    type Error = Arc<DbErr>;

    async fn load(&self, ids: &[i64]) -> Result<HashMap<i64, Vec<Actor>>, Arc<DbErr>> {
        let links = film_actor::Entity::find()
            .filter(film_actor::Column::FilmId.is_in(ids.iter().copied()))
            .all(&self.0)
            .await?;
        let actors = links.load_one(actor::Entity, &self.0).await?;
        let mut found: HashMap<_, Vec<_>> = HashMap::new();
        for (link, actor) in links.into_iter().zip(actors) {
            if let Some(actor) = actor {
                let actor = Actor { first_name: actor.first_name, last_name: actor.last_name };
                found.entry(link.film_id).or_default().push(actor);
            }
        }
        Ok(found)
    }
}
