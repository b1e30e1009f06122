//! The line to NATS.

use std::{pin::Pin, time::Duration};

use async_nats::{
    ConnectOptions, ServerAddr,
    jetstream::{
        self,
        consumer::{DeliverPolicy, push},
        context::{GetStreamErrorKind, PublishErrorKind},
        message::PublishMessage,
        stream::{Config, DiscardPolicy, LastRawMessageErrorKind, Stream as Kept},
    },
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};

use super::{RelayOptions, stretch::Label, unavailable};
use crate::error::{Error, ErrorKind, Result, backoff};

/// How long connecting, and an answer of NATS's, may take.
const STEP: Duration = Duration::from_secs(2);
/// How long a reconnect waits: at first, and at most.
const RECONNECT: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(500)];
/// How many messages may wait to be looked at; there is one more place for each in the inbox, which counts their bytes.
const WAITING: usize = 256;
/// What headers and labels add to a message.
const OVERHEAD: usize = 4 << 10;

/// A connection, and the stream that all use.
#[derive(Debug)]
pub(super) struct Line {
    client: async_nats::Client,
    jetstream: jetstream::Context,
    options: RelayOptions,
}

/// Why something was not published.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Another message than the expected one is the last.
    Overtaken,
    /// Something that may pass.
    Failed(Error),
}

/// The last message of the subject.
#[derive(Debug)]
pub(super) struct Last {
    pub(super) sequence: u64,
    /// None where it is not one of ours.
    pub(super) label: Option<Label>,
}

/// What comes.
pub(super) struct Incoming(Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>);

impl Incoming {
    pub(super) async fn next(&mut self) -> Result<Bytes> {
        self.0.next().await.unwrap_or_else(|| Err(Error::new(ErrorKind::Unavailable, "NATS ended the subscription")))
    }
}

impl Line {
    pub(super) async fn connect(options: &RelayOptions) -> Result<Self> {
        let addresses = options.url.split(',').map(|url| url.trim().parse()).collect::<Result<Vec<ServerAddr>, _>>();
        // The error would repeat the URL, and with it a password.
        let addresses = addresses.map_err(|_| {
            Error::new(ErrorKind::Setup, "the relay's URL is none of a NATS server (`nats://host:4222`)")
        })?;
        let connecting = ConnectOptions::new()
            .name("tidewire relay")
            .connection_timeout(STEP)
            .request_timeout(Some(STEP))
            .subscription_capacity(WAITING)
            .reconnect_delay_callback(|attempts| backoff(RECONNECT[0], RECONNECT[1], attempts as u32))
            .connect(addresses);
        let client = connecting.await.map_err(|error| unavailable("NATS cannot be reached", error))?;
        let mut jetstream = jetstream::new(client.clone());
        jetstream.set_timeout(STEP);
        Ok(Self { client, jetstream, options: options.clone() })
    }

    /// How large a part may be.
    pub(super) fn part_bytes(&self) -> usize {
        self.client.server_info().max_payload.saturating_sub(OVERHEAD).max(OVERHEAD)
    }

    /// Makes sure that there is a stream, which keeps the subject.
    pub(super) async fn ensure(&self) -> Result<()> {
        self.kept().await.map(drop)
    }

    async fn kept(&self) -> Result<Kept> {
        let options = &self.options;
        let found = match self.jetstream.get_stream(&options.stream).await {
            Ok(found) => found,
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(_) => self.create().await?,
                _ => return Err(unavailable("NATS does not answer, or has no JetStream", error)),
            },
        };
        let subjects = &found.cached_info().config.subjects;
        let keeps = |kept: &String| *kept == options.subject || kept.contains(['*', '>']);
        if subjects.iter().any(keeps) {
            return Ok(found);
        }
        Err(Error::new(
            ErrorKind::Setup,
            format!(
                "the stream {:?} of NATS does not keep the subject {:?}. Give the relay a stream of its own",
                options.stream, options.subject
            ),
        ))
    }

    async fn create(&self) -> Result<Kept> {
        let options = &self.options;
        let config = Config {
            name: options.stream.clone(),
            description: Some("stretches of a Tidewire log; the database has all of it".into()),
            subjects: vec![options.subject.clone()],
            discard: DiscardPolicy::Old,
            max_age: options.max_age,
            max_bytes: i64::try_from(options.max_bytes).unwrap_or(i64::MAX),
            duplicate_window: options.max_age.min(Duration::from_secs(120)),
            ..Config::default()
        };
        let made = self.jetstream.create_stream(config).await;
        made.map_err(|error| unavailable("the relay's stream cannot be created in NATS", error))
    }

    /// Publishes a part if the expected one is the last; answers its sequence. A part that has been published already is not published again.
    pub(super) async fn publish(&self, id: &str, payload: Bytes, expected: u64) -> Result<u64, Refusal> {
        let message = PublishMessage::build()
            .payload(payload)
            .message_id(id)
            .expected_stream(&self.options.stream)
            .expected_last_subject_sequence(expected);
        let published = async { self.jetstream.send_publish(self.options.subject.clone(), message).await?.await };
        match published.await {
            Ok(ack) => Ok(ack.sequence),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Err(Refusal::Overtaken),
            Err(error) => Err(Refusal::Failed(unavailable("the relay could not publish to NATS", error))),
        }
    }

    /// The last message of the subject, if there is one.
    pub(super) async fn last(&self) -> Result<Option<Last>> {
        match self.kept().await?.get_last_raw_message_by_subject(&self.options.subject).await {
            Ok(message) => {
                let label = Label::read(&message.payload).map(|(label, _)| label);
                Ok(Some(Last { sequence: message.sequence, label }))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(unavailable("the relay's last message cannot be read", error)),
        }
    }

    /// What is published from now on. After a break it goes on where it was, as far as NATS still has that.
    pub(super) async fn subscribe(&self) -> Result<Incoming> {
        let failed = |error: async_nats::Error| unavailable("the relay's stream cannot be followed", error);
        let config = push::OrderedConfig {
            deliver_subject: self.client.new_inbox(),
            filter_subject: self.options.subject.clone(),
            deliver_policy: DeliverPolicy::New,
            ..Default::default()
        };
        let consumer = self.jetstream.create_consumer_on_stream(config, &self.options.stream).await;
        let messages = consumer.map_err(|error| failed(error.into()))?.messages().await;
        let messages = messages.map_err(|error| failed(error.into()))?;
        let payloads = messages.map(|message| match message {
            Ok(message) => Ok(message.message.payload),
            Err(error) => Err(unavailable("the relay's stream cannot be followed any more", error)),
        });
        Ok(Incoming(Box::pin(payloads)))
    }
}
