"""`libsql` of PyPI as it is, against a running server; the environment is that of libsql.mjs."""

import os
import unittest

import libsql


def connect():
    return libsql.connect(os.environ["TIDELOG_URL"].rstrip("/"), auth_token=os.environ["TIDELOG_TOKEN"])


class Client(unittest.TestCase):
    def test_values_pass(self):
        db = connect()
        db.execute("create table pv(a, b, c, d, e)")
        row = (2**31 - 1, b"\x00\xff", None, "x", 1.5)
        db.execute("insert into pv values(?, ?, ?, ?, ?)", row)
        db.commit()
        self.assertEqual(db.execute("select * from pv").fetchall(), [row])
        # This client sends larger integers as REAL; it reads all 64 bits.
        self.assertEqual(db.execute("select 9223372036854775807").fetchone(), (2**63 - 1,))

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
        sql = "with recursive n(x) as (select 1 union all select x + 1 from n limit 20000) select x from n"
        self.assertEqual(len(db.execute(sql).fetchall()), 20000)


if __name__ == "__main__":
    unittest.main()
