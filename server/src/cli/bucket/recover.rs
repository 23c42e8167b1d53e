//! `tidelog token recover`: an owner token for whoever holds the bucket's credentials and has lost every token.
//!
//! It is a short process life of its own, in a folder that goes with it: it claims a term, writes the token to the
//! system database, ships it, and closes its term, so that the next server starts as if nothing had been.

use serde_json::json;
use tidelog_engine::system::tokens::NewToken;
use tidelog_engine::{Engine, MasterKeys, Parts, Settings};

use crate::cli::exit::Failure;
use crate::cli::output::Output;
use crate::cli::serve::take_over;

/// What stands for the server token instead of a namespace.
const SERVER: &str = "server";

/// Makes an owner token of a namespace, or a server token.
pub(in crate::cli) async fn recover(
    store: &str,
    keys: &MasterKeys,
    namespace: &str,
    wanted: Option<&str>,
    output: &Output,
) -> Result<(), Failure> {
    let folder = tempfile::tempdir()
        .map_err(|error| Failure::failed(format!("cannot make a temporary folder: {error}")))?;
    let take_over = take_over(wanted)?;
    let settings = Settings {
        data: folder.path().to_owned(),
        store_url: store.to_owned(),
        visit: true,
        master_keys: keys.clone(),
        take_over,
        ..Settings::default()
    };
    let engine = Engine::start(settings, Parts::production()).await?;
    let made = mint(&engine, namespace).await;
    // The term is closed whatever came of it: an open one would stand in the way of the next server.
    let released = engine.release().await;
    let (id, secret) = made?;
    released?;
    let document = json!({ "namespace": namespace, "id": id, "token": secret });
    output.result(&document, || format!("{secret}\n"));
    output.remark("this is shown once; the old tokens stay valid until they are revoked");
    Ok(())
}

async fn mint(engine: &Engine, namespace: &str) -> Result<(String, String), Failure> {
    let id = match namespace {
        SERVER => None,
        name => Some(engine.namespace_by_name(name).await?.id),
    };
    let (info, secret) = engine.token_create(NewToken::owner(id)).await?;
    Ok((
        tidelog_engine::system::tokens::token_id_text(&info.id),
        secret,
    ))
}
