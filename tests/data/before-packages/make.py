import pathlib
import shutil
import sys
import textwrap

from rlm_containers.sessions.places import sessions_directory
from rlm_containers.sessions.transfer import export_session

from rlm_containers import Sandbox
from tests.behaviour.values import VALUES

out = pathlib.Path(sys.argv[1]); out.mkdir(parents=True, exist_ok=True)
image = "localhost/rlm-containers/python:3.11-slim-compiled"
with Sandbox(image, runtime="docker", session="earlier", lm=lambda p: p.upper()) as box:
    for v in VALUES:
        r = box.execute(v.define)
        assert r.status == "ok", (v.name, r.stderr)
    box.load("context_0", "a long line of text\n" * 400)
    box.load("table", {"rows": [{"name": f"n{i}", "value": i} for i in range(300)]})
    r = box.execute(textwrap.dedent("""
        import dataclasses, enum
        class Colour(enum.Enum):
            RED = 1
            BLUE = 2
        @dataclasses.dataclass
        class Point:
            x: int
            y: int = 2
            def norm(self): return self.x * self.x + self.y * self.y
        point, colour = Point(3, 4), Colour.BLUE
        shared = [point]
        alias = shared
        piece = table["rows"][7]
        long = "z" * 70_000
        other = long
        ask = llm_query
        def counter():
            n = 0
            def up():
                nonlocal n
                n += 1
                return n
            return up
        up = counter(); up()
        stream = (i for i in range(3))
    """))
    assert r.status == "ok", r.stderr
    box.put_file(b"kept\n", "notes/kept.txt")
    first = box.snapshot("before the change")
    box.execute("point.x = 30; colour = Colour.RED")
    print([str(u) for u in box.unsaved], first)
export_session("earlier", out / "session.rlm")
shutil.copytree(sessions_directory() / "earlier", out / "session", symlinks=True)
(out / "snapshot-id").write_text(first + "\n")
