//! The interaction matrix (spec 3.7, item 10): who asks, where, of what kind of Service, with which endpoints. Every pair of
//! values occurs, and every combination of those that decide together. What has to come of each row is said by
//! [`lb_tests::oracle`], which knows the rules and nothing of the agent.
//!
//! A title is one kind of frontend. Its rows share four endpoints, and are asked at the same time: many Services in front
//! of the same endpoints are what a cluster looks like.

#[path = "matrix/ask.rs"]
mod ask;
#[path = "matrix/objects.rs"]
mod objects;
#[path = "matrix/row.rs"]
mod row;
#[path = "matrix/site.rs"]
mod site;

use futures::{StreamExt as _, stream};

use crate::prelude::*;
use row::{At, Row};
use site::Site;

/// How many rows are asked at the same time.
const AT_ONCE: usize = 16;

/// The titles.
pub(crate) fn groups() -> Vec<Group> {
    let titles = At::ALL.iter().map(|at| {
        let at = *at;
        Title::new(format!("agrees with the model of sections 2.3 and 2.4 at {at}"), move |case| {
            run(case, at)
        })
    });
    vec![Group::new("matrix", "Interaction matrix", titles.collect()).outside()]
}

async fn run(case: Case, at: At) -> Result<()> {
    let rows: Vec<Row> =
        Row::all().iter().filter(|row| row.at == at && row.is_for(case.variant())).copied().collect();
    ensure!(!rows.is_empty(), "the matrix has rows at {at} in every variant");
    let site = Site::build(&case).await?;
    let mut built = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let objects = objects::create(&case, &site, row, &format!("row-{number}"));
        built.push((row, objects.with_context(|| format!("making the objects of: {row}"))?));
    }
    site.caught_up(&case).await?;
    let outcomes = stream::iter(&built)
        .map(async |(row, objects)| {
            let asked = ask::agrees(&site, row, objects).await;
            asked.err().map(|error| format!("{row}\n    {error:#}"))
        })
        .buffer_unordered(AT_ONCE);
    let wrong: Vec<String> = outcomes.filter_map(std::future::ready).collect().await;
    ensure!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    Ok(())
}
