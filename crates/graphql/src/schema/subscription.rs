//! The types of subscriptions. Their fields are answered by plans alone: the resolvers here only say so to whoever runs them without one.

use async_graphql::{
    Error as GraphqlError,
    dynamic::{
        Enum, EnumItem, Field, FieldFuture, InputValue, Object, SubscriptionField, SubscriptionFieldFuture, Type,
        TypeRef,
    },
};

use super::{Described, JSON, outputs};

/// A field that only plans answer.
fn planned(name: &str, ty: TypeRef) -> Field {
    Field::new(name, ty, |_| FieldFuture::new(async { Err::<Option<()>, _>(only_planned()) }))
}

fn planned_stream(name: impl Into<String>, ty: TypeRef) -> SubscriptionField {
    SubscriptionField::new(name, ty, |_| {
        SubscriptionFieldFuture::new(async {
            Err::<futures_util::stream::Empty<Result<async_graphql::Value, GraphqlError>>, _>(only_planned())
        })
    })
}

fn only_planned() -> GraphqlError {
    GraphqlError::new("subscribe to this field through the API's own `subscribe`, one field at a time")
}

/// A field that counts what a subscription is sent.
fn sequence(description: &str) -> Field {
    planned("sequence", TypeRef::named_nn(TypeRef::INT)).description(description)
}

fn events(name: String, change: &str) -> Object {
    Object::new(name)
        .field(
            planned("cursor", TypeRef::named(TypeRef::STRING))
                .description("Where the client stands once it has handled this event: what to give as `after` next time. Null within a snapshot."),
        )
        .field(sequence("Counts the events of this subscription from 0, without holes."))
        .field(
            planned("upToDate", TypeRef::named_nn(TypeRef::BOOLEAN))
                .description("Whether the client has now seen everything that the server knows of."),
        )
        .field(planned("resync", TypeRef::named("ResyncReason")).description(
            "Set when the client's cursor could not be continued: forget what you have of this shape. With `snapshot`, its rows follow; \
             without, changes follow from now on.",
        ))
        .field(planned("changes", TypeRef::named_nn_list_nn(change)).description("The changes of one transaction, in order."))
}

fn common(object: Object) -> Object {
    object
        .field(
            planned("operation", TypeRef::named("ChangeOperation"))
                .description("What happened to the row. Null for a row of a snapshot."),
        )
        .field(
            planned("changedFields", TypeRef::named_nn_list_nn(TypeRef::STRING))
                .description("The fields whose values differ from before; all for a row that is new."),
        )
        .field(
            planned("actor", TypeRef::named(TypeRef::STRING))
                .description("Who answers for the change, for example `user:7`."),
        )
        .field(planned("origin", TypeRef::named(TypeRef::STRING)).description("The replica that had the change first."))
        .field(planned("mutationId", TypeRef::named(TypeRef::STRING)).description("The mutation that made the change."))
        .field(planned("at", TypeRef::named(TypeRef::STRING)).description("When the change was written."))
}

/// What all subscriptions share.
pub(super) fn shared() -> Vec<Type> {
    let operation = Enum::new("ChangeOperation").item("INSERT").item("UPDATE").item("DELETE");
    let event = Enum::new("ChangeEvent")
        .description("What a change means to one subscription.")
        .item(EnumItem::new("ENTER").description("The row is in the shape now."))
        .item(EnumItem::new("UPDATE").description("The row was in the shape and still is."))
        .item(EnumItem::new("LEAVE").description("The row is no longer in the shape, or no longer at all."));
    let resync = Enum::new("ResyncReason")
        .description("Why a cursor could not be continued.")
        .item(EnumItem::new("TRIMMED").description("Changes after it have been removed by retention."))
        .item(EnumItem::new("EPOCH").description("It belongs to another history of the database."))
        .item(EnumItem::new("MALFORMED").description("It is not a cursor."))
        .item(EnumItem::new("OVERSIZED").description("A transaction after it is too large to be sent."))
        .item(
            EnumItem::new("INTERRUPTED")
                .description("The snapshot could not be read to its end, or was not taken in time; it starts again."),
        );
    let change = common(
        Object::new("EntityChange")
            .field(
                planned("entity", TypeRef::named_nn(TypeRef::STRING))
                    .description("The entity's field name, for example `task`."),
            )
            .field(planned("key", TypeRef::named_nn(JSON)).description("The row's primary key."))
            .field(planned("row", TypeRef::named(JSON)).description("The row as it is now. Null for a delete."))
            .field(planned("previous", TypeRef::named(JSON)).description("The row as it was. Null for an insert.")),
    );
    vec![
        operation.into(),
        event.into(),
        resync.into(),
        change.into(),
        events("EntityChanges".into(), "EntityChange").into(),
    ]
}

/// The objects of an entity's subscriptions.
pub(super) fn objects_of(entity: Described<'_>) -> Vec<Object> {
    let change = common(
        Object::new(entity.of("Change"))
            .field(planned("event", TypeRef::named_nn("ChangeEvent")))
            .field(planned("key", TypeRef::named_nn(entity.of("Key"))))
            .field(
                planned("node", TypeRef::named(&entity.names().object))
                    .description("The row as it is now. Null when it left."),
            )
            .field(
                planned("previous", TypeRef::named(entity.of("Basic")))
                    .description("The row as it was. Null when it is new."),
            ),
    );
    let changes = events(entity.of("Changes"), &entity.of("Change"));
    vec![outputs::key_object(entity, entity.of("Key")), change, changes, patch(entity), upsert(entity)]
}

fn patch(entity: Described<'_>) -> Object {
    Object::new(entity.of("Patch"))
        .description(
            "What makes the list that a client has into the present result: take out the removals and the rows of all upserts, by their keys; \
             then put in the upserts in their order, each at its index.",
        )
        .field(sequence("Counts the patches of this subscription from 0, without holes."))
        .field(
            planned("reset", TypeRef::named_nn(TypeRef::BOOLEAN))
                .description("Begin with an empty list. So does the first patch of every subscription."),
        )
        .field(
            planned("removals", TypeRef::named_nn_list_nn(entity.of("Key")))
                .description("The keys of rows that are not in the list any more."),
        )
        .field(
            planned("upserts", TypeRef::named_nn_list_nn(entity.of("Upsert")))
                .description("Rows that are new to the list, have changed or have moved, by ascending index."),
        )
        .field(planned("pageInfo", TypeRef::named_nn("PageInfo")).description("As it is now."))
        .field(planned("paginationInfo", TypeRef::named("PaginationInfo")).description("As it is now."))
        .field(planned("aggregate", TypeRef::named_nn(entity.of("Aggregate"))).description("As it is now."))
}

fn upsert(entity: Described<'_>) -> Object {
    Object::new(entity.of("Upsert"))
        .field(planned("index", TypeRef::named_nn(TypeRef::INT)).description("The row's place in the list, from 0."))
        .field(planned("key", TypeRef::named_nn(entity.of("Key"))))
        .field(planned("node", TypeRef::named_nn(&entity.names().object)))
}

/// The subscriptions of an entity.
pub(super) fn fields(entity: Described<'_>) -> Vec<SubscriptionField> {
    let changes = planned_stream(format!("{}Changes", entity.names().field), TypeRef::named_nn(entity.of("Changes")))
        .description("The changes of rows that pass the filter, transaction by transaction.")
        .argument(InputValue::new("filters", TypeRef::named(entity.of("FilterInput"))))
        .argument(InputValue::new("operations", TypeRef::named_nn_list("ChangeOperation")))
        .argument(
            InputValue::new("after", TypeRef::named(TypeRef::STRING))
                .description("A cursor: begin with what happened after it. Left out: begin now."),
        )
        .argument(
            InputValue::new("snapshot", TypeRef::named(TypeRef::BOOLEAN))
                .description("Begin with the rows as they are now, unless `after` can be continued."),
        );
    let live = outputs::list_arguments(entity, true).into_iter().fold(
        planned_stream(&entity.names().field, TypeRef::named_nn(entity.of("Connection")))
            .description("The result of the query of the same name, now and whenever it changes."),
        SubscriptionField::argument,
    );
    let name = format!("{}Live", entity.names().field);
    let patches = outputs::list_arguments(entity, true).into_iter().fold(
        planned_stream(name, TypeRef::named_nn(entity.of("Patch")))
            .description("The result of the query of the same arguments, at first and then by what changes in it."),
        SubscriptionField::argument,
    );
    vec![changes, live, patches]
}

/// `changes(entities, after)`
pub(super) fn all_changes() -> SubscriptionField {
    planned_stream("changes", TypeRef::named_nn("EntityChanges"))
        .description("The changes of several entities, as JSON.")
        .argument(
            InputValue::new("entities", TypeRef::named_nn_list(TypeRef::STRING))
                .description("The entities' field names; all if left out."),
        )
        .argument(InputValue::new("after", TypeRef::named(TypeRef::STRING)))
}
