// `@libsql/client` as it is, against a running server: TIDELOG_URL is the address of an empty database with its last
// slash, TIDELOG_TOKEN a token of its namespace.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createClient } from "@libsql/client";

const open = (more = {}) =>
  createClient({ url: process.env.TIDELOG_URL, authToken: process.env.TIDELOG_TOKEN, ...more });

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
  const named = await db.execute({ sql: "select :x as x", args: { x: 7n } });
  assert.equal(named.rows[0].x, 7n);
  db.close();
});

test("a batch is a transaction", async () => {
  const db = open();
  await db.batch(["create table b(a unique)", { sql: "insert into b values(?)", args: [1] }], "write");
  await assert.rejects(db.batch(["insert into b values(2)", "insert into b values(1)"], "write"), (error) => {
    assert.equal(error.code, "SQLITE_CONSTRAINT");
    return true;
  });
  assert.equal((await db.execute("select count(*) as n from b")).rows[0].n, 1);
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
  assert.equal((await db.execute("select count(*) as n from i")).rows[0].n, 1);
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
  assert.equal((await db.execute("select count(*) as n from w")).rows[0].n, 21);
  db.close();
});

test("scripts and migrations run", async () => {
  const db = open();
  await db.executeMultiple("create table m(a integer primary key); create trigger mt after insert on m begin select 1; end; insert into m values(1);");
  await db.migrate(["create table n(a references m(a))", "alter table n add column b"]);
  assert.equal((await db.execute("select count(*) as n from m")).rows[0].n, 1);
  await assert.rejects(db.executeMultiple("insert into m values(2); nonsense; insert into m values(3)"));
  assert.equal((await db.execute("select count(*) as n from m")).rows[0].n, 2);
  db.close();
});

test("errors are mapped", async () => {
  const db = open();
  await assert.rejects(db.execute("select * from nowhere"), /no such table: nowhere/);
  const foreign = open({ authToken: "tl_live_wrong" });
  await assert.rejects(foreign.execute("select 1"));
  db.close();
});
