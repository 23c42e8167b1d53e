"""A shop that loses its orders and gets them back, with `libsql` of PyPI alone for the SQL.

TIDELOG_URL    http://127.0.0.1:8080
TIDELOG_TOKEN  a token that may make databases and restore them: `cat tidelog-data/owner.token`
"""

import json
import os
import sys
import urllib.request
import uuid

import libsql

SERVER, TOKEN = os.environ["TIDELOG_URL"], os.environ["TIDELOG_TOKEN"]


def call(method, path, body=None):
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    # A restore that takes longer is 202 with its operation, and not done yet.
    headers["prefer"] = "wait=30"
    if method == "POST":
        headers["idempotency-key"] = str(uuid.uuid4())
    url = f"{SERVER}/v1/namespaces/default/databases{path}"
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    with urllib.request.urlopen(request) as response:
        return json.load(response)


call("POST", "", {"name": "shop-py"})
db = libsql.connect(f"{SERVER}/default/shop-py", auth_token=TOKEN)
db.execute("create table orders(id integer primary key, item text)")
db.execute("insert into orders(item) values('tea'), ('rice')")
db.commit()

before = call("GET", "/shop-py/bookmarks/current?wait_durable_ms=5000")
db.execute("delete from orders")
db.commit()
print("orders after the mistake:", db.execute("select count(*) from orders").fetchone()[0])

call("POST", "/shop-py/restores", {"target": {"bookmark": before["bookmark"]}})
items = [row[0] for row in db.execute("select item from orders order by id").fetchall()]
print("orders after the rewind:", ", ".join(items))
sys.exit(0 if len(items) == 2 else 1)
