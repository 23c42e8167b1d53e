//! Operations: long work as a resource. Nothing of this release runs longer than its request, so there is none
//! to show yet; the paths, their roles and their answers are what clients will meet.

use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};

pub(super) async fn list(mut call: Call) -> Result<Answer, Problem> {
    let (_, link) = call.page()?;
    call.query.word("state", |word| match word {
        "queued" | "running" | "succeeded" | "failed" | "cancelling" | "cancelled" => Ok(()),
        _ => Err(format!("{word:?} is not a state of an operation")),
    })?;
    call.query.text("type")?;
    call.query.text("database")?;
    call.finish()?;
    Ok(Answer::page(&[], None, &link))
}

pub(super) async fn show(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    Err(missing(&call.name("operation")?))
}

pub(super) async fn cancel(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    Err(missing(&call.name("operation")?))
}

fn missing(id: &str) -> Problem {
    Problem::new(
        Code::OperationNotFound,
        format!("there is no operation {id:?}"),
    )
}
