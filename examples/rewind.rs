//! A shop that loses its orders and gets them back, with the crate `libsql` alone for the SQL.
//!
//! `TIDELOG_URL` is `http://127.0.0.1:8080`, `TIDELOG_TOKEN` a token that may make databases and restore them:
//! `cat tidelog-data/owner.token`. `scripts/test-clients` builds it; its dependencies stand in
//! tests/clients/rust/Cargo.toml.

use std::error::Error;

use libsql::{Builder, Connection};
use serde_json::{Value, json};

struct Api {
    databases: String,
    token: String,
}

impl Api {
    fn post(&self, path: &str, body: Value) -> Result<Value, Box<dyn Error>> {
        let key = format!("rewind-rs{path}-{}", std::process::id());
        let mut answer = ureq::post(format!("{}{path}", self.databases))
            .header("authorization", format!("Bearer {}", self.token))
            .header("idempotency-key", key)
            // A restore that takes longer is 202 with its operation, and not done yet.
            .header("prefer", "wait=30")
            .send_json(body)?;
        Ok(answer.body_mut().read_json()?)
    }

    fn get(&self, path: &str) -> Result<Value, Box<dyn Error>> {
        let mut answer = ureq::get(format!("{}{path}", self.databases))
            .header("authorization", format!("Bearer {}", self.token))
            .call()?;
        Ok(answer.body_mut().read_json()?)
    }
}

async fn items(db: &Connection) -> Result<Vec<String>, libsql::Error> {
    let mut rows = db.query("select item from orders order by id", ()).await?;
    let mut items = Vec::new();
    while let Some(row) = rows.next().await? {
        items.push(row.get::<String>(0)?);
    }
    Ok(items)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (server, token) = (
        std::env::var("TIDELOG_URL")?,
        std::env::var("TIDELOG_TOKEN")?,
    );
    let api = Api {
        databases: format!("{server}/v1/namespaces/default/databases"),
        token: token.clone(),
    };
    api.post("", json!({ "name": "shop-rs" }))?;
    let url = format!("{server}/default/shop-rs");
    let db = Builder::new_remote(url, token).build().await?.connect()?;
    db.execute_batch(
        "create table orders(id integer primary key, item text); \
         insert into orders(item) values('tea'), ('rice');",
    )
    .await?;

    let before = api.get("/shop-rs/bookmarks/current?wait_durable_ms=5000")?;
    db.execute("delete from orders", ()).await?;
    println!("orders after the mistake: {}", items(&db).await?.len());

    let target = json!({ "target": { "bookmark": before["bookmark"] } });
    let restored = api.post("/shop-rs/restores", target)?;
    println!("undo it with: {}", restored["previous_bookmark"]);

    let items = items(&db).await?;
    println!("orders after the rewind: {}", items.join(", "));
    if items != ["tea", "rice"] {
        return Err("the orders are not back".into());
    }
    Ok(())
}
