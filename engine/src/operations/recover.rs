//! Ending the operations that an earlier process life left open.
//!
//! Each type says what is true from durable facts: whether its effect stands. If it does, the operation
//! succeeded; else what was half-made is removed and the operation failed with `operation-interrupted`.

use serde_json::Value as Json;

use super::record::{Failure, Operation, OperationState, OperationType};
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
