//! The entities of Sakila, MySQL's sample database of a film rental, as
//! `sea-orm-cli generate entity -u sqlite://sakila.db -o src/entities` wrote them.

#[rustfmt::skip]
#[allow(missing_docs, reason = "the files are as the generator wrote them")]
pub mod entities;
pub mod mysql;
pub mod postgres;

use tidewire_outbox::Registry;

use crate::entities::{
    actor, address, category, city, country, customer, film, film_actor, film_category, film_text, inventory, language,
    payment, rental, staff, store,
};

/// One line each.
pub fn registry() -> Registry {
    Registry::new()
        .entity::<actor::Entity>()
        .entity::<address::Entity>()
        .entity::<category::Entity>()
        .entity::<city::Entity>()
        .entity::<country::Entity>()
        .entity::<customer::Entity>()
        .entity::<film::Entity>()
        .entity::<film_actor::Entity>()
        .entity::<film_category::Entity>()
        .entity::<film_text::Entity>()
        .entity::<inventory::Entity>()
        .entity::<language::Entity>()
        .entity::<payment::Entity>()
        .entity::<rental::Entity>()
        .entity::<staff::Entity>()
        .entity::<store::Entity>()
}
