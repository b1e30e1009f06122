//! The entities of Sakila on MySQL and MariaDB, where it comes from, as
//! `sea-orm-cli generate entity -u mysql://root@localhost/sakila -o src/mysql/entities` wrote them. The generator leaves a `SET` out
//! (`special_features`), so the API does too.

#[rustfmt::skip]
#[allow(missing_docs, reason = "the files are as the generator wrote them")]
pub mod entities;

use tidewire_outbox::Registry;

use self::entities::{
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
