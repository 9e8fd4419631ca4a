"""A session that outlives its sandbox, with a snapshot to return to, and a fork.

pip install rlm-containers
python examples/session.py [RUNTIME [IMAGE]]
"""

import sys

from rlm_containers import Sandbox
from rlm_containers.state import SessionStore

options = dict(zip(("runtime", "image"), sys.argv[1:], strict=False))

with Sandbox(session="example", **options) as box:
    box.put_file(b"apples 3\npears 4\n", "stock.txt")
    box.execute("stock = dict(line.split() for line in open('stock.txt'))")
    before = box.snapshot("as counted")
    with box.fork() as other:  # a copy that changes independently
        other.execute("stock.clear()")
    box.execute("del stock['pears']")
    print(box.execute("print(stock)").stdout, end="")
    box.restore(before)

# Later, perhaps in another process, or on another engine.
with Sandbox(session="example", **options) as box:
    print(box.execute("print(stock)").stdout, end="")

store = SessionStore()
print(store.names(), [snapshot.note for snapshot in store.snapshots("example")])
store.remove("example")
