// The same requests to Tidelog and to sqld, by hand and by their clients, and what each answers. They must be equal but
// for what is listed in DIFFERENCES, which docs/compatibility.md explains; one that is listed and is none fails, too.
//
// TIDELOG_URL and SQLD_URL are addresses of empty databases with their last slash, TIDELOG_TOKEN the token of the first.
// Left out of the comparison: texts of errors, times, counts of rows read and written, sqld's replication index.
import assert from "node:assert/strict";
import { createClient } from "@libsql/client";
import { connect } from "@tursodatabase/serverless";

const { TIDELOG_URL, TIDELOG_TOKEN, SQLD_URL } = process.env;

// What differs: case, Tidelog's answer, sqld's.
const DIFFERENCES = {
  "a parse error in a batch": [
    { errors: ["SQL_PARSE_ERROR", null], results: [null, [["1"]]] },
    { error: "SQL_PARSE_ERROR" },
  ],
  "a script with an error in it": [{ error: "SQL_PARSE_ERROR", left: 1 }, { left: 2 }],
  "close twice": [{ status: 400 }, { status: 200 }],
  "store a text twice": [{ value: "2" }, { status: 400 }],
  "attach": [{ error: "SQLITE_AUTH" }, { error: "SQL_PARSE_ERROR" }],
  "commit nothing": [{ error: "SQLITE_ERROR" }, { error: "SQLITE_UNKNOWN" }],
  "an insert that inserts nothing": [[0, null], [0, "0"]],
  "no such table": [{ error: "SQLITE_ERROR" }, { error: "SQLITE_UNKNOWN" }],
  "no rows wanted": [{ rows: 0 }, { rows: 3 }],
  "describe what cannot be parsed": [{ error: "SQL_PARSE_ERROR" }, { error: "SQL_INPUT_ERROR" }],
  "a step of a cursor that fails": [["step_error"], ["step_begin", "step_error"]],
};

class Peer {
  constructor(url, token) {
    Object.assign(this, { url, token });
  }
  async pipeline(requests, baton = null, path = "v3/pipeline") {
    const headers = { authorization: `Bearer ${this.token}`, "content-type": "application/json" };
    const body = JSON.stringify({ baton, requests });
    const response = await fetch(this.url + path, { method: "POST", headers, body });
    if (response.status !== 200) return { status: response.status };
    return response.json();
  }
  async cursor(steps, baton = null) {
    const headers = { authorization: `Bearer ${this.token}`, "content-type": "application/json" };
    const body = JSON.stringify({ baton, batch: { steps } });
    const response = await fetch(this.url + "v3/cursor", { method: "POST", headers, body });
    if (response.status !== 200) return { status: response.status };
    const lines = (await response.text()).trim().split("\n");
    return lines.slice(1).map((line) => JSON.parse(line));
  }
  // One statement as one request: rows, or the code of its error.
  async one(sql, more = {}) {
    const answer = await this.pipeline([{ type: "execute", stmt: { sql, ...more } }, { type: "close" }]);
    return answer.status ? answer : outcome(answer.results[0], sql.startsWith("insert"));
  }
  libsql(more = {}) {
    return createClient({ url: this.url, authToken: this.token, ...more });
  }
  turso() {
    return connect({ url: this.url, authToken: this.token });
  }
}

const plain = (rows) => rows.map((row) => row.map((value) => value.value ?? value.base64 ?? null));
const outcome = (result, inserts = false) => {
  if (result.type === "error") return { error: result.error.code };
  const { cols, rows, affected_row_count, last_insert_rowid } = result.response.result;
  return { cols, rows, affected: affected_row_count, ...(inserts ? { rowid: last_insert_rowid } : {}) };
};
const caught = async (work) => {
  try {
    return { done: await work() };
  } catch (error) {
    return { code: error.code ?? error.name };
  }
};
const stmt = (sql, more = {}) => ({ type: "execute", stmt: { sql, ...more } });
const close = { type: "close" };
const args = (...values) => ({ args: values });
const integer = (value) => ({ type: "integer", value: String(value) });
const text = (value) => ({ type: "text", value });

const cases = {
  "tables": (peer) => peer.one("create table t(a integer primary key, b text, c)"),
  "insert": (peer) => peer.one("insert into t(b, c) values(?, ?)", args(text("x"), integer(9223372036854775807n))),
  "insert returning": (peer) => peer.one("insert into t(b) values('y'), ('z') returning a, b"),
  "declared types": (peer) => peer.one("select a, b, c, a + 1 as d from t order by a"),
  "types": (peer) => peer.one("select x'00ff' as a, 'a' as b, null as c, 1.5 as d, 1.0 as e, -9223372036854775808 as f, x'' as g, '' as h, 9e999 as i"),
  "blob arguments": (peer) => peer.one("select typeof(?) as a, hex(?) as b", args({ type: "blob", base64: "AP8" }, { type: "blob", base64: "AP8=" })),
  "float arguments": (peer) => peer.one("select typeof(?) as a, ? as b", args({ type: "float", value: 1 }, { type: "float", value: 2.5 })),
  "named arguments": async (peer) => {
    const ways = [];
    for (const [sql, name] of [["select :a as x", "a"], ["select :a as x", ":a"], ["select @a as x", "a"], ["select $a as x", "$a"]]) {
      ways.push(await peer.one(sql, { named_args: [{ name, value: integer(7) }] }));
    }
    return ways;
  },
  "too few arguments": (peer) => peer.one("select ?, ?", args(integer(1))),
  "too many arguments": (peer) => peer.one("select ?", args(integer(1), integer(2))),
  "no rows wanted": async (peer) => ({ rows: (await peer.one("select * from t", { want_rows: false })).rows.length }),
  "update": (peer) => peer.one("update t set b = 'w' where a > 1"),
  "delete nothing": (peer) => peer.one("delete from t where a > 100"),
  "a rowid where nothing was inserted": async (peer) => {
    const { results } = await peer.pipeline([stmt("select 1"), close]);
    return { rowid: results[0].response.result.last_insert_rowid };
  },
  "an insert that inserts nothing": async (peer) => {
    const { results } = await peer.pipeline([stmt("insert or ignore into t(a) values(1)"), close]);
    const { affected_row_count, last_insert_rowid } = results[0].response.result;
    return [affected_row_count, last_insert_rowid];
  },
  "counts after somebody else's": async (peer) => {
    const counts = [];
    const requests = ["insert into t(b) values('p'), ('q'), ('r')", "create table after(a)", "update t set c = 1 where b = 'p'", "delete from t where b in ('p', 'q', 'r')", "drop table after"];
    for (const sql of requests) {
      const { results } = await peer.pipeline([stmt(sql), close]);
      counts.push([results[0].response.result.affected_row_count, results[0].response.result.last_insert_rowid]);
    }
    const { results } = await peer.pipeline([stmt("begin immediate"), stmt("insert into t(b) values('p')"), stmt("create table after(a)"), stmt("rollback"), close]);
    return [...counts, ...results.slice(0, 4).map(({ response: { result } }) => [result.affected_row_count, result.last_insert_rowid])];
  },
  "syntax": (peer) => peer.one("selec 1"),
  "no such table": (peer) => peer.one("select * from nowhere"),
  "no such column": (peer) => peer.one("select nothing from t"),
  "two statements": (peer) => peer.one("select 1; select 2"),
  "no statement": (peer) => peer.one(" "),
  "a comment alone": (peer) => peer.one("-- nothing"),
  "primary key": (peer) => peer.one("insert into t(a) values(1)"),
  "not null": async (peer) => {
    await peer.one("create table n(a not null unique, b check (b > 0), c references t(a))");
    const codes = [];
    for (const sql of ["insert into n values(null, 1, 1)", "insert into n values(1, -1, 1)", "insert into n values(1, 1, 99)", "insert into n values(1, 1, 1)", "insert into n values(1, 1, 1)"]) {
      codes.push((await peer.one(sql)).error ?? "done");
    }
    return codes;
  },
  "foreign keys": (peer) => peer.one("pragma foreign_keys"),
  "attach": (peer) => peer.one("attach 'x' as y"),
  "commit nothing": async (peer) => {
    const { results } = await peer.pipeline([stmt("select 1"), stmt("commit"), close]);
    return outcome(results[1]);
  },
  "describe": async (peer) => {
    const described = [];
    for (const sql of ["select a, :x as b from t where c > ?", "insert into t(b) values(?) returning a", "explain select 1", "pragma user_version"]) {
      const { results } = await peer.pipeline([{ type: "describe", sql }, close]);
      described.push(results[0].response.result);
    }
    return described;
  },
  "describe what cannot be parsed": async (peer) => {
    const { results } = await peer.pipeline([{ type: "describe", sql: "selec" }, close]);
    return { error: results[0].error.code };
  },
  "a transaction over requests": async (peer) => {
    const begun = await peer.pipeline([stmt("begin immediate"), stmt("insert into t(b) values('in')"), { type: "get_autocommit" }]);
    const seen = await peer.pipeline([stmt("select count(*) from t"), stmt("rollback"), { type: "get_autocommit" }, close], begun.baton);
    return [begun.results[2], outcome(seen.results[0]), seen.results[2], seen.baton, await peer.one("select count(*) as n from t")];
  },
  "a batch with conditions": async (peer) => {
    const steps = [
      { stmt: { sql: "begin" } },
      { condition: { type: "ok", step: 0 }, stmt: { sql: "insert into t(a) values(1)" } },
      { condition: { type: "ok", step: 1 }, stmt: { sql: "commit" } },
      { condition: { type: "not", cond: { type: "ok", step: 2 } }, stmt: { sql: "rollback" } },
      { condition: { type: "error", step: 2 }, stmt: { sql: "select 'skipped counts as failed' as a" } },
      { condition: { type: "and", conds: [{ type: "is_autocommit" }, { type: "or", conds: [] }] }, stmt: { sql: "select 'never'" } },
      { condition: { type: "is_autocommit" }, stmt: { sql: "select 'autocommit' as a" } },
    ];
    const { results } = await peer.pipeline([{ type: "batch", batch: { steps } }, close]);
    const { step_results, step_errors } = results[0].response.result;
    return [step_results.map((one) => one && plain(one.rows)), step_errors.map((one) => one && one.code)];
  },
  "a parse error in a batch": async (peer) => {
    const steps = [{ stmt: { sql: "nonsense" } }, { condition: { type: "error", step: 0 }, stmt: { sql: "select 1" } }];
    const { results } = await peer.pipeline([{ type: "batch", batch: { steps } }, close]);
    if (results[0].error) return { error: results[0].error.code };
    const { step_results, step_errors } = results[0].response.result;
    return { errors: step_errors.map((one) => one && one.code), results: step_results.map((one) => one && plain(one.rows)) };
  },
  "a step that looks forward": (peer) => peer.pipeline([{ type: "batch", batch: { steps: [{ condition: { type: "ok", step: 3 }, stmt: { sql: "select 1" } }] } }, close]),
  "a script": async (peer) => {
    const sql = "create table s(a); create trigger st after insert on s begin select 1; end; insert into s values(1)";
    const { results } = await peer.pipeline([{ type: "sequence", sql }, close]);
    return [results[0], await peer.one("select count(*) as n from s")];
  },
  "a script with an error in it": async (peer) => {
    await peer.one("create table se(a)");
    const { results } = await peer.pipeline([{ type: "sequence", sql: "insert into se values(1); nonsense; insert into se values(2)" }, close]);
    const left = await peer.one("select count(*) as n from se");
    return { ...(results[0].error ? { error: results[0].error.code } : {}), left: Number(left.rows[0][0].value) };
  },
  "stored texts": async (peer) => {
    const { results } = await peer.pipeline([{ type: "store_sql", sql_id: 1, sql: "select 5 as a" }, { type: "execute", stmt: { sql_id: 1 } }, { type: "close_sql", sql_id: 1 }, { type: "close_sql", sql_id: 9 }, close]);
    return [outcome(results[1]), results[2], results[3]];
  },
  "store a text twice": async (peer) => {
    const answer = await peer.pipeline([{ type: "store_sql", sql_id: 1, sql: "select 1" }, { type: "store_sql", sql_id: 1, sql: "select 2" }, { type: "execute", stmt: { sql_id: 1 } }, close]);
    return answer.status ? answer : { value: answer.results[2].response.result.rows[0][0].value };
  },
  "close in the middle": (peer) => peer.pipeline([close, stmt("select 1")]),
  "close twice": async (peer) => ({ status: (await peer.pipeline([close, close])).status ?? 200 }),
  "an unknown request": (peer) => peer.pipeline([{ type: "what" }]),
  "a forged baton": (peer) => peer.pipeline([close], "AAAA"),
  "a used baton": async (peer) => {
    const { baton } = await peer.pipeline([stmt("begin")]);
    const next = await peer.pipeline([stmt("select 1")], baton);
    const reused = await peer.pipeline([stmt("select 1")], baton);
    return { reused: reused.status, ended: (await peer.pipeline([close], next.baton)).baton };
  },
  "version 2": async (peer) => outcome((await peer.pipeline([stmt("select 1 as a"), close], null, "v2/pipeline")).results[0]),
  "a cursor": async (peer) => {
    const entries = await peer.cursor([{ stmt: { sql: "select a, b from t order by a" } }, { stmt: { sql: "insert into t(b) values('c')" } }, { condition: { type: "error", step: 1 }, stmt: { sql: "select 1" } }]);
    return entries.map(({ type, step, cols, row, error, affected_row_count }) => ({ type, step, cols, row, error: error?.code, affected_row_count })).filter((one) => one.type !== "replication_index");
  },
  "a step of a cursor that fails": async (peer) => {
    const entries = await peer.cursor([{ stmt: { sql: "insert into t(a) values(1)" } }]);
    return entries.map((one) => one.type).filter((type) => type !== "replication_index");
  },
  "@libsql/client": async (peer) => {
    const db = peer.libsql({ intMode: "bigint" });
    const results = [];
    for (const one of ["create table l(a integer primary key, b)", { sql: "insert into l(b) values(?)", args: ["x"] }, { sql: "select a, b, :n as c from l", args: { n: 7n } }]) {
      const { columns, columnTypes, rows, rowsAffected } = await db.execute(one);
      results.push([columns, columnTypes, rows.map((row) => columns.map((name) => String(row[name]))), rowsAffected]);
    }
    results.push(await caught(() => db.batch(["insert into l values(5, 'y')", "insert into l values(1, 'twice')"], "write")));
    results.push(await caught(() => db.execute("insert into l values(1, 'twice')")));
    results.push((await db.batch(["select count(*) as n from l", "select 1 as n"], "read")).map((one) => String(one.rows[0].n)));
    const transaction = await db.transaction("write");
    await transaction.execute("insert into l values(9, 'z')");
    await transaction.rollback();
    results.push(String((await db.execute("select count(*) as n from l")).rows[0].n));
    await db.migrate(["create table lm(a references l(a))", "insert into lm values(77)", "delete from lm"]);
    results.push(String((await db.execute("select count(*) as n from lm")).rows[0].n));
    return results;
  },
  "the Turso serverless driver": async (peer) => {
    const db = peer.turso();
    const results = [];
    await db.exec("create table u(a integer primary key, b)");
    const insert = await db.prepare("insert into u(b) values(?)");
    const done = await insert.run(["x"]);
    results.push([Number(done.changes), Number(done.lastInsertRowid)]);
    results.push(await (await db.prepare("select * from u")).all([]));
    results.push((await caught(() => db.batch(["insert into u values(2, 'y')", "insert into u values(1, 'twice')"], "write"))).done ?? "refused");
    results.push(await (await db.prepare("select count(*) as n from u")).get([]));
    return results;
  },
};

const tidelog = new Peer(TIDELOG_URL, TIDELOG_TOKEN);
const sqld = new Peer(SQLD_URL, "none");
let failed = 0;
for (const [name, run] of Object.entries(cases)) {
  const [ours, theirs] = JSON.parse(JSON.stringify([await run(tidelog), await run(sqld)]));
  try {
    const listed = DIFFERENCES[name];
    if (listed) {
      assert.deepEqual([ours, theirs], listed);
      assert.notDeepEqual(ours, theirs, "it is listed as a difference and is none");
    } else {
      assert.deepEqual(ours, theirs);
    }
    console.log(`${listed ? "differs as listed" : "equal"}: ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`DIFFERS: ${name}\n  Tidelog ${JSON.stringify(ours)}\n  sqld    ${JSON.stringify(theirs)}`);
  }
}
for (const name of Object.keys(DIFFERENCES)) assert.ok(cases[name], `no case ${name}`);
process.exitCode = failed ? 1 : 0;
