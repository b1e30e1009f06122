//! The entities of Sakila on PostgreSQL, whose schema has types of its own: an enumeration, an array, identity by sequences. As
//! `sea-orm-cli generate entity -u postgres://localhost/sakila -o src/postgres/entities` wrote them.

#[rustfmt::skip]
#[allow(missing_docs, reason = "the files are as the generator wrote them")]
pub mod entities;

use tidewire_outbox::Registry;

use self::entities::{
    actor, address, category, city, country, customer, film, film_actor, film_category, inventory, language, payment,
    rental, staff, store,
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
        .entity::<inventory::Entity>()
        .entity::<language::Entity>()
        .entity::<payment::Entity>()
        .entity::<rental::Entity>()
        .entity::<staff::Entity>()
        .entity::<store::Entity>()
}
