// `@libsql/client` as it is, against a running server. TIDELOG_URL is the address of an empty database with its last
// slash, TIDELOG_TOKEN a token of its namespace. With PEER set it is another server, and what is Tidelog's own is left
// out. TIDELOG_SHORT_URL is a database of a server whose streams live for a moment, TIDELOG_API and TIDELOG_SHORT_API
// the addresses of the servers.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createClient } from "@libsql/client";

const { TIDELOG_URL, TIDELOG_TOKEN, TIDELOG_API, TIDELOG_SHORT_URL, TIDELOG_SHORT_API, TIDELOG_SHORT_TOKEN, PEER } = process.env;
const own = { skip: PEER ? "Tidelog's own" : false };
const open = (more = {}) => createClient({ url: TIDELOG_URL, authToken: TIDELOG_TOKEN, ...more });
const api = async (method, path, body, token = TIDELOG_TOKEN) => {
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
  const response = await fetch(`${TIDELOG_API}${path}`, { method, headers, body: JSON.stringify(body) });
  const answer = await response.json();
  assert.ok(response.ok, JSON.stringify(answer));
  return answer;
};
const coded = (code, text = /./) => (error) => {
  assert.equal(error.code, code, error.message);
  assert.match(error.message, text);
  return true;
};
// Waits until the server at `base` has `count` streams.
const streams = async (base, count) => {
  const deadline = Date.now() + 180000;
  for (;;) {
    const text = await (await fetch(`${base}/metrics`)).text();
    if (text.includes(`\ntidelog_client_streams ${count}\n`)) return;
    assert.ok(Date.now() < deadline, `never ${count} streams`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};

test("values pass", async () => {
  const db = open({ intMode: "bigint" });
  await db.execute("create table v(a, b, c, d, e)");
  const args = [9223372036854775807n, new Uint8Array([0, 255]), null, "x\u{1f600}", 1.5];
  await db.execute({ sql: "insert into v values(?, ?, ?, ?, ?)", args });
  const { rows, columns } = await db.execute("select * from v");
  assert.deepEqual(columns, ["a", "b", "c", "d", "e"]);
  assert.equal(rows[0].a, 9223372036854775807n);
  assert.deepEqual(new Uint8Array(rows[0].b), new Uint8Array([0, 255]));
  assert.deepEqual([rows[0].c, rows[0].d, rows[0].e], [null, "x\u{1f600}", 1.5]);
  const named = await db.execute({ sql: "select :x as x, -9223372036854775808 as y", args: { x: 7n } });
  assert.deepEqual([named.rows[0].x, named.rows[0].y], [7n, -9223372036854775808n]);
  const empty = await db.execute({ sql: "select ? as a, ? as b, ? as c", args: [new Uint8Array(), "", true] });
  assert.equal(empty.rows[0].a.byteLength, 0);
  assert.deepEqual([empty.rows[0].b, empty.rows[0].c], ["", 1n]);
  db.close();
});

test("what a write did is told", async () => {
  const db = open();
  await db.execute("create table d(a integer primary key, b)");
  const two = await db.execute("insert into d(b) values('x'), ('y')");
  assert.deepEqual([two.rowsAffected, two.lastInsertRowid], [2, 2n]);
  const back = await db.execute("insert into d(b) values('z') returning a, b");
  assert.deepEqual([back.rows.length, back.rows[0].a, back.rows[0].b], [1, 3, "z"]);
  const none = await db.execute("delete from d where a > 100");
  assert.equal(none.rowsAffected, 0);
  db.close();
});

test("a batch is a transaction", async () => {
  const db = open();
  await db.batch(["create table b(a unique)", { sql: "insert into b values(?)", args: [1] }], "write");
  await assert.rejects(db.batch(["insert into b values(2)", "insert into b values(1)"], "write"), coded("SQLITE_CONSTRAINT"));
  assert.equal((await db.execute("select count(*) as n from b")).rows[0].n, 1);
  const read = await db.batch(["select 1 as a", "select a from b"], "read");
  assert.deepEqual(read.map((one) => one.rows[0].a), [1, 1]);
  db.close();
});

test("interactive transactions commit and roll back", async () => {
  const db = open();
  await db.execute("create table i(a)");
  const write = await db.transaction("write");
  await write.execute("insert into i values(1)");
  assert.equal((await write.execute("select count(*) as n from i")).rows[0].n, 1);
  await write.commit();
  const undone = await db.transaction("write");
  await undone.execute("insert into i values(2)");
  await undone.rollback();
  const left = await db.transaction("deferred");
  await left.execute("insert into i values(3)");
  left.close();
  const failed = await db.transaction("write");
  await failed.execute("insert into i values(4)");
  await assert.rejects(failed.execute("insert into nowhere values(1)"), /no such table/);
  // An error of a statement is not the end of the transaction.
  await failed.execute("insert into i values(5)");
  await failed.commit();
  const { rows } = await db.execute("select a from i order by a");
  assert.deepEqual(rows.map((row) => row.a), [1, 4, 5]);
  db.close();
});

test("twenty transactions at once wait for each other", async () => {
  const db = open();
  await db.execute("create table w(a)");
  await db.execute("insert into w values(0)");
  await Promise.all(
    Array.from({ length: 20 }, async () => {
      const one = await db.transaction("write");
      const { rows } = await one.execute("select a from w");
      await one.execute({ sql: "update w set a = ?", args: [rows[0].a + 1] });
      await one.commit();
    }),
  );
  assert.equal((await db.execute("select a from w")).rows[0].a, 20);
  await Promise.all(Array.from({ length: 20 }, () => db.execute("insert into w values(0)")));
  const counts = await Promise.all(Array.from({ length: 20 }, () => db.execute("select count(*) as n from w")));
  assert.deepEqual(counts.map((one) => one.rows[0].n), Array(20).fill(21));
  db.close();
});

test("a large result comes whole", async () => {
  const db = open();
  const sql = "with recursive n(x) as (select 1 union all select x + 1 from n limit 20000) select x, hex(zeroblob(100)) as y from n";
  const { rows } = await db.execute(sql);
  assert.deepEqual([rows.length, rows[19999].x, rows[19999].y.length], [20000, 20000, 200]);
  db.close();
});

test("scripts and migrations run", async () => {
  const db = open();
  await db.executeMultiple("create table m(a integer primary key); create trigger mt after insert on m begin select 1; end; insert into m values(1);");
  await db.migrate(["create table n(a references m(a))", "alter table n add column b", { sql: "insert into n values(?, 2)", args: [1] }]);
  assert.equal((await db.execute("select count(*) as n from m")).rows[0].n, 1);
  // A migration goes through or leaves nothing, and may break references on its way.
  await db.migrate(["create table o(a integer primary key references p(a))", "create table p(a integer primary key)", "insert into o values(7)", "insert into p values(7)"]);
  await assert.rejects(db.migrate(["create table q(a)", "nonsense"]));
  await assert.rejects(db.execute("select * from q"), /no such table/);
  const script = db.executeMultiple("insert into m values(2); nonsense; insert into m values(3)");
  // sqld passes over what it cannot parse.
  await (PEER ? script : assert.rejects(script));
  assert.equal((await db.execute("select count(*) as n from m")).rows[0].n, PEER ? 3 : 2);
  db.close();
});

test("errors are mapped", async () => {
  const db = open();
  await assert.rejects(db.execute("select * from nowhere"), /no such table: nowhere/);
  await db.execute("create table e(a integer primary key, b unique not null, c check (c > 0))");
  await db.execute("insert into e values(1, 1, 1)");
  // This client does not read the detail in `extended_code`.
  for (const [sql, detail] of [
    ["insert into e values(1, 2, 1)", /UNIQUE constraint failed: e.a/],
    ["insert into e values(2, 1, 1)", /UNIQUE constraint failed: e.b/],
    ["insert into e values(2, null, 1)", /NOT NULL constraint failed: e.b/],
    ["insert into e values(2, 2, -1)", /CHECK constraint failed/],
  ]) {
    await assert.rejects(db.execute(sql), coded("SQLITE_CONSTRAINT", detail));
  }
  await assert.rejects(db.execute({ sql: "select ?", args: [] }));
  db.close();
});

test("what a token or a database forbids is BLOCKED", own, async () => {
  const db = open();
  await db.execute("create table bl(a)");
  const { token } = await api("POST", "/v1/namespaces/default/tokens", { scopes: ["read"] });
  const reader = open({ authToken: token });
  assert.equal((await reader.execute("select count(*) as n from bl")).rows[0].n, 0);
  await assert.rejects(reader.execute("insert into bl values(1)"), coded("BLOCKED"));
  await assert.rejects(reader.batch(["insert into bl values(1)"], "write"), coded("BLOCKED"));
  const name = new URL(TIDELOG_URL).pathname.split("/")[2];
  const place = `/v1/namespaces/default/databases/${name}`;
  await api("PATCH", place, { block_writes: true });
  await assert.rejects(db.execute("insert into bl values(1)"), coded("BLOCKED"));
  // Its BEGIN goes out with the first statement.
  const write = await db.transaction("write");
  await assert.rejects(write.execute("select 1"), coded("BLOCKED"));
  write.close();
  assert.equal((await db.execute("select count(*) as n from bl")).rows[0].n, 0);
  await api("PATCH", place, { block_writes: false, block_reads: true });
  await assert.rejects(db.execute("select 1"), coded("BLOCKED"));
  await api("PATCH", place, { block_reads: false });
  await db.execute("insert into bl values(1)");
  await assert.rejects(open({ authToken: "tl_live_wrong" }).execute("select 1"), (error) => error.code !== "BLOCKED");
  await assert.rejects(db.execute("attach 'x' as y"), coded("SQLITE_AUTH"));
  db.close();
});

test("a stream that nobody uses expires and leaves no lock", own, async () => {
  const db = createClient({ url: TIDELOG_SHORT_URL, authToken: TIDELOG_SHORT_TOKEN });
  await db.execute("create table x(a)");
  const slow = await db.transaction("write");
  await slow.execute("insert into x values(1)");
  // Waits for the lock, and has it once the transaction was rolled back.
  await db.execute("insert into x values(2)");
  await streams(TIDELOG_SHORT_API, 0);
  await assert.rejects(slow.execute("insert into x values(3)"), coded("STREAM_EXPIRED"));
  slow.close();
  assert.deepEqual((await db.execute("select a from x")).rows.map((row) => row.a), [2]);
  db.close();
});
