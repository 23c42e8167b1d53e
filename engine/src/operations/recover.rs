//! Ending the operations that an earlier process life left open.
//!
//! Each type says what is true from durable facts: whether its effect stands. If it does, the operation
//! succeeded; else what was half-made is removed and the operation failed with `operation-interrupted`.

use std::time::Duration;

use serde_json::Value as Json;
use tidelog_archive::ErrorKind;

use super::Task;
use super::record::{Failure, Operation, OperationState, OperationType};
use crate::boxed;
use crate::engine::Engine;
use crate::error::{Code, Error};
use crate::travel::archives;

/// Ends every open operation of earlier lives. One that cannot be ended now is tried again at the next start.
pub(crate) async fn recover_all(engine: &Engine) -> Result<(), Error> {
    for operation in engine.inner.system.operations_open().await? {
        if engine.inner.running.get(&operation.id).is_some() {
            continue;
        }
        let id = operation.id.clone();
        if let Err(error) = recover(engine, operation).await {
            tracing::warn!(operation = %id, %error, "operation of an earlier life is not ended yet");
        }
    }
    Ok(())
}

async fn recover(engine: &Engine, mut operation: Operation) -> Result<(), Error> {
    let outcome = outcome(engine, &operation).await?;
    operation.ended_at = Some(engine.now());
    match outcome {
        Some(result) => {
            operation.state = OperationState::Succeeded;
            operation.result = Some(result);
        }
        None => {
            let error = Error::new(
                Code::OperationInterrupted,
                "the server stopped while the operation ran; nothing of it stays",
            );
            operation.state = OperationState::Failed;
            operation.error = Some(Failure::from(&error));
        }
    }
    tracing::info!(operation = %operation.id, kind = operation.kind.as_str(), state = operation.state.as_str(),
        "ended an operation of an earlier life");
    engine.inner.system.operation_end(&operation).await
}

/// Between two questions to a history that does not answer.
const ASK_PAUSE: Duration = Duration::from_millis(500);

/// What an operation came to whose database was poisoned behind its change: its history tells, as it tells the next process
/// life. `error` if the change does not stand. A history that cannot be read now is asked again; one that cannot be read at
/// all, or not before the node stops, is left to that life.
///
/// The caller holds the database no more, and let it go with [`RolledBack::undecided`]: no key of it begins anew before.
///
/// [`RolledBack::undecided`]: crate::database::rolled_back::RolledBack::undecided
#[boxed]
pub(crate) async fn decided(engine: &Engine, task: &Task, error: Error) -> Result<Json, Error> {
    let (operation, mut stop) = (task.operation(), engine.inner.stop_signal());
    loop {
        match outcome(engine, &operation).await {
            Ok(stands) => {
                tracing::warn!(operation = %operation.id, %error, stands = stands.is_some(),
                    "a change of state is followed by a failure; its history tells whether it stands");
                return stands.ok_or(error);
            }
            Err(unknown) => {
                tracing::warn!(operation = %operation.id, %error, %unknown,
                    "whether a change of state stands is not known yet");
                if !passes(&unknown) {
                    return Err(left_open(error, &unknown));
                }
                tokio::select! {
                    () = tokio::time::sleep(ASK_PAUSE) => {}
                    _ = stop.wait_for(|stop| *stop) => return Err(left_open(error, &unknown)),
                }
            }
        }
    }
}

/// Whether what kept a history from being read may be over soon.
fn passes(error: &Error) -> bool {
    use ErrorKind as K;
    matches!(
        error.kind(),
        K::Unavailable | K::Exhausted | K::OutcomeUnknown | K::KeyUnavailable
    )
}

fn left_open(error: Error, unknown: &Error) -> Error {
    let what = format!(
        "the change was made, what followed it failed, and whether it stands cannot be read now ({unknown}); it is looked \
         at again when the server starts"
    );
    Error::new(Code::OperationInterrupted, what).caused_by(error)
}

/// The result of the operation if its effect stands; else cleans up and answers `None`.
async fn outcome(engine: &Engine, operation: &Operation) -> Result<Option<Json>, Error> {
    let (namespace, database) = (operation.namespace, operation.database);
    match operation.kind {
        OperationType::Archive => {
            archives::end_interrupted(engine, namespace, database, &operation.note).await
        }
        OperationType::Import if operation.note.get("replace").is_some() => {
            crate::travel::replace::recover(engine, operation).await
        }
        OperationType::Import => {
            let name = operation.database_name.as_deref();
            let note = &operation.note;
            archives::end_interrupted_import(engine, namespace, database, name, note).await
        }
        // What these make is either complete by one conditional write or garbage that nothing names.
        OperationType::Restore => crate::travel::rewind::recover(engine, operation).await,
        OperationType::Purge if database.is_none() => {
            engine.recover_namespace_purge(operation).await
        }
        OperationType::Purge => engine.recover_purge(operation).await,
        OperationType::Fork => crate::travel::forks::recover(engine, operation).await,
        OperationType::Detach => crate::travel::detach::recover(engine, operation).await,
        OperationType::Verification | OperationType::Retention => Ok(None),
    }
}
