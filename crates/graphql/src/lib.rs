#![doc = include_str!("../README.md")]

mod api;
mod conform;
mod document;
mod error;
mod explanation;
mod frame;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod input;
mod limits;
mod model;
mod names;
mod options;
mod plan;
mod policy;
mod resolve;
mod schema;
mod subscription;
mod viewer;
mod wire;

pub use async_graphql;

pub use self::{
    api::{Api, ApiBuilder, BuildError, Request, Response, Subscribed},
    error::{ApiError, Code},
    explanation::Explanation,
    frame::Frame,
    options::Options,
    policy::{Claim, Policy, Rule, claim},
    schema::transaction,
    subscription::SubscriptionStats,
    viewer::Viewer,
    wire::TimeFormat,
};
