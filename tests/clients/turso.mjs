// The Turso serverless driver as it is, against a running server; the environment is that of libsql.mjs.
import assert from "node:assert/strict";
import { test } from "node:test";
import { connect } from "@tursodatabase/serverless";

const open = () => connect({ url: process.env.TIDELOG_URL, authToken: process.env.TIDELOG_TOKEN });

test("statements run and rows stream", async () => {
  const db = open();
  await db.exec("create table ts(a integer primary key, b)");
  const insert = await db.prepare("insert into ts(b) values(?)");
  const done = await insert.run(["x"]);
  assert.equal(Number(done.changes), 1);
  const get = await db.prepare("select b from ts where a = ?");
  assert.equal((await get.get([1])).b, "x");
  const many = await db.prepare(
    "with recursive n(x) as (select 1 union all select x + 1 from n limit 50000) select x, hex(randomblob(20)) as y from n",
  );
  let count = 0;
  for await (const row of many.iterate()) {
    count += row ? 1 : 0;
  }
  assert.equal(count, 50000);
});

test("batches and errors", async () => {
  const db = open();
  await db.batch(["create table tb(a unique)", "insert into tb values(1)", "insert into tb values(2)"]);
  const count = await db.prepare("select count(*) as n from tb");
  assert.equal((await count.get([])).n, 2);
  const bad = await db.prepare("insert into tb values(?)");
  await assert.rejects(bad.run([1]), /UNIQUE constraint failed/);
});

test("a transaction commits or rolls back", async () => {
  const db = open();
  await db.exec("create table tt(a)");
  const add = db.transaction(async () => {
    const insert = await db.prepare("insert into tt values(?)");
    await insert.run([1]);
    await insert.run([2]);
  });
  await add();
  const fail = db.transaction(async () => {
    const insert = await db.prepare("insert into tt values(?)");
    await insert.run([3]);
    throw new Error("no");
  });
  await assert.rejects(fail());
  const count = await db.prepare("select count(*) as n from tt");
  assert.equal((await count.get([])).n, 2);
});
