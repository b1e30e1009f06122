//! Values of every kind, the odd ones included.

use chrono::{DateTime, FixedOffset, Local, NaiveDate, NaiveDateTime, NaiveTime, TimeZone, Utc};
use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
};
use rust_decimal::{Decimal, prelude::FromPrimitive};
use serde_json::Value as Json;
use uuid::Uuid;

use super::{animal::Species, everything, specimen};

/// A row of [`mod@everything`], with any values that the columns can hold. Its key is 0.
pub fn everything() -> impl Strategy<Value = everything::Model> {
    let integers = (any::<i8>(), any::<i16>(), any::<i32>(), any::<i64>(), any::<u8>(), any::<u16>(), any::<u32>());
    let others = (any::<bool>(), float(), double(), decimal(), text(), bytes(), json(), uuid());
    let times = (date(), time(), date_time(), timestamp(), timestamp_tz(), timestamp(), species());
    let maybe = (
        option::of(any::<bool>()),
        option::of(any::<i64>()),
        option::of(double()),
        option::of(decimal()),
        option::of(text()),
        option::of(bytes()),
        option::of(json()),
        option::of(uuid()),
    );
    let maybe_times = (
        option::of(date()),
        option::of(time()),
        option::of(date_time()),
        option::of(timestamp()),
        option::of(timestamp_tz()),
        option::of(species()),
    );
    (integers, others, times, maybe, maybe_times).prop_map(|(integers, others, times, maybe, maybe_times)| {
        let (tiny, small, int, big, tiny_unsigned, small_unsigned, unsigned) = integers;
        let (boolean, float, double, decimal, text, bytes, json, uuid) = others;
        let (date, time, date_time, timestamp, timestamp_tz, local, species) = times;
        let (maybe_boolean, maybe_big, maybe_double, maybe_decimal, maybe_text, maybe_bytes, maybe_json, maybe_uuid) =
            maybe;
        let (maybe_date, maybe_time, maybe_date_time, maybe_timestamp, maybe_timestamp_tz, maybe_species) = maybe_times;
        everything::Model {
            id: 0,
            boolean,
            tiny,
            small,
            int,
            big,
            tiny_unsigned,
            small_unsigned,
            unsigned,
            float,
            double,
            decimal,
            text,
            bytes,
            json,
            uuid,
            date,
            time,
            date_time,
            timestamp,
            timestamp_tz,
            timestamp_local: local.with_timezone(&Local),
            species,
            maybe_boolean,
            maybe_big,
            maybe_double,
            maybe_decimal,
            maybe_text,
            maybe_bytes,
            maybe_json,
            maybe_uuid,
            maybe_date,
            maybe_time,
            maybe_date_time,
            maybe_timestamp,
            maybe_timestamp_tz,
            maybe_species,
        }
    })
}

/// A row of [`mod@specimen`], with any values that PostgreSQL can hold: it has no zero character. Its key is 0.
pub fn specimen() -> impl Strategy<Value = specimen::Model> {
    everything().prop_map(|row| specimen::Model {
        id: 0,
        boolean: row.boolean,
        small: row.small,
        int: row.int,
        big: row.big,
        float: row.float,
        double: row.double,
        decimal: row.decimal,
        text: without_zero(&row.text),
        bytes: row.bytes,
        json_binary: json_without_zero(&row.json),
        json: json_without_zero(&row.json),
        uuid: row.uuid,
        date: row.date,
        time: row.time,
        date_time: row.date_time,
        timestamp: row.timestamp,
        timestamp_tz: row.timestamp_tz,
        timestamp_local: row.timestamp_local,
        species: row.species,
        maybe_boolean: row.maybe_boolean,
        maybe_big: row.maybe_big,
        maybe_double: row.maybe_double,
        maybe_decimal: row.maybe_decimal,
        maybe_text: row.maybe_text.as_deref().map(without_zero),
        maybe_bytes: row.maybe_bytes,
        maybe_json: row.maybe_json.as_ref().map(json_without_zero),
        maybe_uuid: row.maybe_uuid,
        maybe_date: row.maybe_date,
        maybe_time: row.maybe_time,
        maybe_date_time: row.maybe_date_time,
        maybe_timestamp: row.maybe_timestamp,
        maybe_timestamp_tz: row.maybe_timestamp_tz,
        maybe_species: row.maybe_species,
    })
}

fn without_zero(text: &str) -> String {
    text.replace('\0', "")
}

fn json_without_zero(json: &Json) -> Json {
    match json {
        Json::String(text) => Json::String(without_zero(text)),
        Json::Array(items) => items.iter().map(json_without_zero).collect(),
        Json::Object(map) => {
            Json::Object(map.iter().map(|(key, value)| (without_zero(key), json_without_zero(value))).collect())
        }
        other => other.clone(),
    }
}

/// Gives a row values that MariaDB's columns hold: finite floats, and times to the microsecond, of instants those that fit into 32 bits.
macro_rules! fit_mariadb {
    ($row:ident) => {
        if !$row.float.is_finite() {
            $row.float = 0.5;
        }
        $row.double = finite($row.double);
        $row.maybe_double = $row.maybe_double.map(finite);
        $row.date = to_date($row.date);
        $row.maybe_date = $row.maybe_date.map(to_date);
        $row.time = to_time($row.time);
        $row.maybe_time = $row.maybe_time.map(to_time);
        $row.date_time = naive($row.date_time);
        $row.maybe_date_time = $row.maybe_date_time.map(naive);
        $row.timestamp = instant($row.timestamp);
        $row.maybe_timestamp = $row.maybe_timestamp.map(instant);
        $row.timestamp_local = instant($row.timestamp_local.to_utc()).with_timezone(&Local);
        $row.timestamp_tz = instant($row.timestamp_tz.to_utc()).fixed_offset();
        $row.maybe_timestamp_tz = $row.maybe_timestamp_tz.map(|at| instant(at.to_utc()).fixed_offset());
    };
}

fn finite(double: f64) -> f64 {
    if double.is_finite() { double } else { 0.5 }
}

fn naive(at: NaiveDateTime) -> NaiveDateTime {
    let year = chrono::Datelike::year(&at).max(1000);
    let at = chrono::Datelike::with_year(&at, year).unwrap_or_default();
    at - chrono::TimeDelta::nanoseconds(i64::from(chrono::Timelike::nanosecond(&at) % 1_000))
}

fn instant(at: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(at.timestamp_micros().rem_euclid(2_147_483_647 * 1_000_000).max(1_000_000)).unwrap()
}

fn to_date(date: NaiveDate) -> NaiveDate {
    naive(date.and_time(NaiveTime::MIN)).date()
}

fn to_time(time: NaiveTime) -> NaiveTime {
    naive(NaiveDate::default().and_time(time)).time()
}

/// The same row with values that MariaDB's columns hold.
pub fn for_mariadb(mut row: everything::Model) -> everything::Model {
    fit_mariadb!(row);
    // A sign would make it another type than SeaORM has given the column.
    row.tiny_unsigned %= 128;
    row.small_unsigned %= 1 << 15;
    row.unsigned %= 1 << 31;
    row
}

/// As [`for_mariadb`].
pub fn specimen_for_mariadb(mut row: specimen::Model) -> specimen::Model {
    fit_mariadb!(row);
    row
}

fn float() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => any::<f32>().prop_filter("databases have no NaN", |float| !float.is_nan()),
        1 => prop::sample::select(vec![0.1, -0.0, f32::MAX, f32::MIN_POSITIVE, f32::EPSILON, f32::INFINITY]),
    ]
}

fn double() -> impl Strategy<Value = f64> {
    prop_oneof![
        8 => any::<f64>().prop_filter("databases have no NaN", |double| !double.is_nan()),
        1 => prop::sample::select(vec![0.1, -0.0, f64::MAX, f64::MIN_POSITIVE, 5e-324, f64::NEG_INFINITY, 1e15, 9.007_199_254_740_993e15]),
    ]
}

/// Of 15 digits, which SQLite's floats are sure of; without the few that SeaORM reads from such a float with one more.
fn decimal() -> impl Strategy<Value = Decimal> {
    (-999_999_999_999_999..=999_999_999_999_999_i64, 0_u32..=10)
        .prop_map(|(digits, scale)| Decimal::new(digits, scale))
        .prop_filter("SeaORM reads it as another", |decimal| {
            let float = decimal.to_string().parse().ok();
            float.and_then(Decimal::from_f64) == Some(*decimal)
        })
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => any::<String>(),
        1 => prop::sample::select(vec!["", " ", "null", "\"", "\\u0000", "it's", "🌊\u{200d}", "\u{0}", "1e3", "a|\\\\%", "{\"a\":1}"]).prop_map(String::from),
    ]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40)
}

fn json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        // Not any float: serde_json, by which SeaORM reads documents, may take others for their neighbours.
        any::<i32>().prop_map(|n| Json::from(f64::from(n) / 64.0)),
        any::<String>().prop_map(Json::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Json::from),
            btree_map(any::<String>(), inner, 0..4).prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<[u8; 16]>().prop_map(Uuid::from_bytes)
}

fn date() -> impl Strategy<Value = NaiveDate> {
    (1..=9999_i32, 1..=366_u32).prop_map(|(year, day)| NaiveDate::from_yo_opt(year, day.min(365)).unwrap())
}

fn time() -> impl Strategy<Value = NaiveTime> {
    let fraction = prop_oneof![Just(0_u32), (0..1_000_u32).prop_map(|ms| ms * 1_000_000), 0..1_000_000_000_u32];
    (0..86_400_u32, fraction)
        .prop_map(|(seconds, nanos)| NaiveTime::from_num_seconds_from_midnight_opt(seconds, nanos).unwrap())
}

fn date_time() -> impl Strategy<Value = NaiveDateTime> {
    (date(), time()).prop_map(|(date, time)| date.and_time(time))
}

fn timestamp() -> impl Strategy<Value = DateTime<Utc>> {
    date_time().prop_map(|at| at.and_utc())
}

fn timestamp_tz() -> impl Strategy<Value = DateTime<FixedOffset>> {
    let within = |at: &NaiveDateTime| (2..9999).contains(&chrono::Datelike::year(at));
    (date_time().prop_filter("within the years with four digits", within), -14 * 60..=14 * 60_i32)
        .prop_map(|(at, minutes)| FixedOffset::east_opt(minutes * 60).unwrap().from_utc_datetime(&at))
}

fn species() -> impl Strategy<Value = Species> {
    prop::sample::select(vec![Species::Lion, Species::SeaOtter, Species::Sloth])
}
