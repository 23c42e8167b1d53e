"""`libsql` of PyPI as it is, against a running server; the environment is that of libsql.mjs."""

import concurrent.futures
import json
import multiprocessing
import os
import time
import unittest
import urllib.request

import libsql

ENV = os.environ
PEER = ENV.get("PEER")


def connect(url="TIDELOG_URL", token="TIDELOG_TOKEN"):
    return libsql.connect(ENV[url].rstrip("/"), auth_token=ENV[token])


def call(path, body=None, method=None):
    headers = {"authorization": f"Bearer {ENV['TIDELOG_TOKEN']}", "content-type": "application/json"}
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(ENV["TIDELOG_API"] + path, data=data, headers=headers, method=method)
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def insert_one(client):
    db = connect()
    db.execute("insert into pc values(?)", (client,))
    db.commit()
    return db.execute("select count(*) from pc where a = ?", (client,)).fetchone()


class Client(unittest.TestCase):
    def test_values_pass(self):
        db = connect()
        db.execute("create table pv(a, b, c, d, e)")
        row = (2**31 - 1, b"\x00\xff", None, "x\U0001f600", 1.5)
        db.execute("insert into pv values(?, ?, ?, ?, ?)", row)
        db.commit()
        self.assertEqual(db.execute("select * from pv").fetchall(), [row])
        # This client sends larger integers as REAL; it reads all 64 bits.
        self.assertEqual(db.execute("select 9223372036854775807, -9223372036854775808").fetchone(), (2**63 - 1, -(2**63)))

    def test_a_transaction_commits_and_rolls_back(self):
        db = connect()
        db.execute("create table pt(a unique)")
        db.commit()
        db.execute("insert into pt values(?)", (1,))
        db.commit()
        db.execute("insert into pt values(2)")
        db.rollback()
        self.assertEqual(db.execute("select count(*) from pt").fetchone(), (1,))
        with self.assertRaises(Exception) as raised:
            db.execute("insert into pt values(1)")
        self.assertIn("UNIQUE constraint failed", str(raised.exception))

    def test_many_rows(self):
        db = connect()
        sql = "with recursive n(x) as (select 1 union all select x + 1 from n limit 20000) select x, hex(zeroblob(100)) from n"
        rows = db.execute(sql).fetchall()
        self.assertEqual((len(rows), rows[-1]), (20000, (20000, "00" * 100)))

    def test_scripts_and_many(self):
        db = connect()
        db.executescript("create table ps(a integer primary key, b); create trigger pst after insert on ps begin select 1; end;")
        db.executemany("insert into ps(b) values(?)", [("x",), ("y",), ("z",)])
        db.commit()
        db.executescript("alter table ps add column c default 5; insert into ps(b) values('w');")
        self.assertEqual(db.execute("select count(*), sum(c) from ps").fetchone(), (4, 20))
        with self.assertRaises(Exception) as raised:
            db.execute("select * from nowhere")
        self.assertIn("no such table: nowhere", str(raised.exception))

    def test_twenty_at_once(self):
        db = connect()
        db.execute("create table pc(a)")
        db.commit()
        # Processes, for this client holds the interpreter's lock while it waits for an answer.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(20, mp_context=context) as pool:
            self.assertEqual(list(pool.map(insert_one, range(20))), [(1,)] * 20)
        self.assertEqual(connect().execute("select count(*) from pc").fetchone(), (20,))

    @unittest.skipIf(PEER, "Tidelog's own")
    def test_what_a_token_forbids_is_told(self):
        db = connect()
        db.execute("create table pb(a)")
        db.commit()
        token = call("/v1/namespaces/default/tokens", {"scopes": ["read"]})["token"]
        reader = libsql.connect(ENV["TIDELOG_URL"].rstrip("/"), auth_token=token)
        self.assertEqual(reader.execute("select count(*) from pb").fetchone(), (0,))
        with self.assertRaises(Exception) as raised:
            reader.execute("insert into pb values(1)")
        self.assertIn("may not write", str(raised.exception))

    @unittest.skipIf(PEER, "Tidelog's own")
    def test_an_unused_stream_expires_and_leaves_no_lock(self):
        short = ("TIDELOG_SHORT_URL", "TIDELOG_SHORT_TOKEN")
        db = connect(*short)
        db.execute("create table px(a)")
        db.commit()
        db.execute("insert into px values(1)")
        other = connect(*short)
        other.execute("insert into px values(2)")
        other.commit()
        metrics = ENV["TIDELOG_SHORT_API"] + "/metrics"
        deadline = time.monotonic() + 180
        while "\ntidelog_client_streams 0\n" not in urllib.request.urlopen(metrics).read().decode():
            self.assertLess(time.monotonic(), deadline, "the stream never ends")
            time.sleep(0.02)
        with self.assertRaises(Exception) as raised:
            db.execute("insert into px values(3)")
            db.commit()
        self.assertIn("stream", str(raised.exception).lower())
        self.assertEqual(connect(*short).execute("select group_concat(a) from px").fetchone(), ("2",))


if __name__ == "__main__":
    unittest.main()
