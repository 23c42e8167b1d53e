// A shop that loses its orders and gets them back, with `@libsql/client` alone for the SQL.
//
//   TIDELOG_URL    http://127.0.0.1:8080
//   TIDELOG_TOKEN  a token that may make databases and restore them: `cat tidelog-data/owner.token`
import { createClient } from "@libsql/client";

const { TIDELOG_URL: server, TIDELOG_TOKEN: token } = process.env;
const api = `${server}/v1/namespaces/default/databases`;
const call = async (method, path, body) => {
  const response = await fetch(`${api}${path}`, {
    method,
    headers: {
      authorization: `Bearer ${token}`,
      "content-type": "application/json",
      // A restore that takes longer is 202 with its operation, and not done yet.
      prefer: "wait=30",
      ...(method === "POST" ? { "idempotency-key": crypto.randomUUID() } : {}),
    },
    body: body && JSON.stringify(body),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail);
  return answer;
};

await call("POST", "", { name: "shop-js" });
// The last slash matters to this client.
const db = createClient({ url: `${server}/default/shop-js/`, authToken: token });
await db.batch(["create table orders(id integer primary key, item text)", "insert into orders(item) values('tea'), ('rice')"], "write");

const before = await call("GET", "/shop-js/bookmarks/current?wait_durable_ms=5000");
await db.execute("delete from orders");
console.log("orders after the mistake:", (await db.execute("select count(*) as n from orders")).rows[0].n);

const restore = await call("POST", "/shop-js/restores", { target: { bookmark: before.bookmark } });
console.log("undo it with:", restore.restore?.previous_bookmark ?? restore.operation?.id);

const { rows } = await db.execute("select item from orders order by id");
console.log("orders after the rewind:", rows.map((row) => row.item).join(", "));
if (rows.length !== 2) process.exit(1);
db.close();
