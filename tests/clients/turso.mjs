// The Turso serverless driver as it is, against a running server; the environment is that of libsql.mjs.
import assert from "node:assert/strict";
import { test } from "node:test";
import { connect } from "@tursodatabase/serverless";

const { TIDELOG_URL, TIDELOG_TOKEN, TIDELOG_API, TIDELOG_SHORT_URL, TIDELOG_SHORT_API, TIDELOG_SHORT_TOKEN, PEER } = process.env;
const own = { skip: PEER ? "Tidelog's own" : false };
const open = (more = {}) => connect({ url: TIDELOG_URL, authToken: TIDELOG_TOKEN, ...more });
const one = async (db, sql, args = []) => (await db.prepare(sql)).get(args);
const run = async (db, sql, args = []) => (await db.prepare(sql)).run(args);

test("statements run and values pass", async () => {
  const db = open();
  await db.exec("create table ts(a integer primary key, b)");
  const done = await run(db, "insert into ts(b) values(?)", ["x"]);
  assert.deepEqual([Number(done.changes), Number(done.lastInsertRowid)], [1, 1]);
  assert.equal((await one(db, "select b from ts where a = ?", [1])).b, "x");
  const wide = await db.prepare("select 9223372036854775807 as a, -9223372036854775808 as b");
  wide.safeIntegers(true);
  const { a, b } = await wide.get([]);
  assert.deepEqual([a, b], [9223372036854775807n, -9223372036854775808n]);
  const row = await one(db, "select ? as a, ? as b, ? as c, ? as d", [null, 1.5, "x\u{1f600}", 42]);
  assert.deepEqual([row.a, row.b, row.c, row.d], [null, 1.5, "x\u{1f600}", 42]);
  await run(db, "insert into ts(b) values(?)", [Buffer.from([0, 255])]);
  const blob = await one(db, "select b, typeof(b) as t from ts where a = 2");
  assert.equal(blob.t, "blob");
  assert.deepEqual([...new Uint8Array(blob.b)], [0, 255]);
  assert.equal(await one(db, "select 1 from ts where a = 100"), undefined);
});

test("large results stream", async () => {
  const db = open();
  const many = await db.prepare(
    "with recursive n(x) as (select 1 union all select x + 1 from n limit 50000) select x, hex(zeroblob(100)) as y from n",
  );
  let count = 0;
  for await (const row of many.iterate()) {
    count += row.y.length === 200 ? 1 : 0;
  }
  assert.equal(count, 50000);
  // One that is let go half-way leaves the connection usable, or says so.
  const other = open();
  for await (const row of (await other.prepare("select value as x from json_each('[1,2,3]')")).iterate()) {
    assert.equal(row.x, 1);
    break;
  }
  assert.equal((await one(open(), "select 7 as n")).n, 7);
});

test("batches, migrations and errors", async () => {
  const db = open();
  await db.batch(["create table tb(a unique)", "insert into tb values(1)", "insert into tb values(2)"]);
  assert.equal((await one(db, "select count(*) as n from tb")).n, 2);
  await assert.rejects(db.batch(["insert into tb values(3)", "insert into tb values(1)"], "write"), /UNIQUE constraint failed/);
  assert.equal((await one(db, "select count(*) as n from tb")).n, 2);
  await db.exec("create table tm(a); alter table tm add column b default 5; insert into tm(a) values(1)");
  assert.equal((await one(db, "select b from tm")).b, 5);
  const bad = await db.prepare("insert into tb values(?)");
  await assert.rejects(bad.run([1]), /UNIQUE constraint failed/);
  await assert.rejects(run(db, "select * from nowhere"), /no such table: nowhere/);
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
  assert.equal((await one(db, "select count(*) as n from tt")).n, 2);
});

test("twenty connections at once", async () => {
  await open().exec("create table tc(a)");
  await Promise.all(
    Array.from({ length: 20 }, async (_, client) => {
      const db = open();
      await run(db, "insert into tc values(?)", [client]);
      assert.equal((await one(db, "select count(*) as n from tc where a = ?", [client])).n, 1);
    }),
  );
  assert.equal((await one(open(), "select count(distinct a) as n from tc")).n, 20);
});

test("what a token forbids is told", own, async () => {
  await open().exec("create table tr(a)");
  const response = await fetch(`${TIDELOG_API}/v1/namespaces/default/tokens`, {
    method: "POST",
    headers: { authorization: `Bearer ${TIDELOG_TOKEN}`, "content-type": "application/json" },
    body: JSON.stringify({ scopes: ["read"] }),
  });
  const reader = open({ authToken: (await response.json()).token });
  assert.equal((await one(reader, "select count(*) as n from tr")).n, 0);
  await assert.rejects(run(reader, "insert into tr values(1)"), /may not write/);
  await assert.rejects(one(open({ authToken: "tl_live_wrong" }), "select 1"));
});

test("a stream that nobody uses expires and leaves no lock", own, async () => {
  const short = () => connect({ url: TIDELOG_SHORT_URL, authToken: TIDELOG_SHORT_TOKEN });
  const db = short();
  await db.exec("create table te(a)");
  await db.exec("begin immediate");
  await run(db, "insert into te values(1)");
  await run(short(), "insert into te values(2)");
  const deadline = Date.now() + 180000;
  while (!(await (await fetch(`${TIDELOG_SHORT_API}/metrics`)).text()).includes("\ntidelog_client_streams 0\n")) {
    assert.ok(Date.now() < deadline, "the stream never ends");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  // This driver tells the status of a pipeline alone.
  await assert.rejects(run(db, "insert into te values(3)"), /stream|status: 400/i);
  assert.equal((await one(short(), "select group_concat(a) as n from te")).n, "2");
});
