"""Figures that cells make with matplotlib, in a guest without a container."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import Artifact, Sandbox
from rlm_containers.container.bundle import Bundle
from rlm_containers.sandbox.files import find_artifacts
from rlm_containers.state import Workspace
from tests.unit.guests import LocalRuntime
from tests.unit.sessions import DIE, Boxes, run

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def plots(made_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A sandbox that has imported matplotlib, which takes a second."""
    config = str(tmp_path_factory.mktemp("mpl"))  # with its cache of fonts
    with Sandbox(runtime=LocalRuntime(), env={"MPLCONFIGDIR": config}) as box:
        result = run(
            box, "import matplotlib.pyplot as plt\nimport os, io\nfrom pathlib import Path"
        )
        assert result.artifacts == ()
        yield box


def kinds(artifacts: tuple[Artifact, ...]) -> dict[str, str]:
    return {artifact.path: artifact.mime_type for artifact in artifacts}


def test_show_saves(plots: Sandbox) -> None:
    result = run(plots, "plt.plot([1, 2, 3])\nplt.show()")
    (figure,) = result.artifacts
    assert (figure.mime_type, figure.path[:15]) == ("image/png", "figures/figure-")
    data = plots.get_file(figure.path)
    assert data.startswith(PNG)
    assert len(data) == figure.size
    # It is closed then. The next figure gets a new name.
    result = run(plots, "plt.show()\nassert plt.get_fignums() == []")
    assert result.artifacts == ()
    result = run(plots, "plt.figure(); plt.plot([1]); plt.figure(); plt.plot([2])\nplt.show()")
    assert len({figure.path, *kinds(result.artifacts)}) == 3
    result = run(
        plots, "fig, ax = plt.subplots()\nax.plot([1])\nfig.show()\nfig.show()\nplt.close('all')"
    )
    assert len(result.artifacts) == 2


def test_savefig(plots: Sandbox) -> None:
    result = run(
        plots,
        """
        fig, ax = plt.subplots()
        ax.plot([1, 2])
        plt.savefig("one.png")
        fig.savefig(Path("two.SVG"))
        os.makedirs("out/deep", exist_ok=True)
        fig.savefig(os.path.abspath("out/deep/three.pdf"))
        fig.savefig("out/../four.jpg")
        fig.savefig("five", format="pdf")  # a name without an extension
        fig.savefig("six")
        os.chdir("out"); fig.savefig("seven.webp"); os.chdir("..")
        fig.savefig("one.png")
        plt.close("all")
        """,
    )
    assert kinds(result.artifacts) == {
        "one.png": "image/png",
        "two.SVG": "image/svg+xml",
        "out/deep/three.pdf": "application/pdf",
        "four.jpg": "image/jpeg",
        "six.png": "image/png",
        "out/seven.webp": "image/webp",
    }
    for artifact in result.artifacts:
        assert len(plots.get_file(artifact.path)) == artifact.size > 500
    assert run(plots, "1").artifacts == ()


def test_files_that_are_not_artifacts(plots: Sandbox, tmp_path: Path) -> None:
    result = run(
        plots,
        f"""
        plt.plot([1])
        plt.savefig(io.BytesIO())
        plt.savefig(open("handle.png", "wb"))
        plt.savefig({str(tmp_path / "outside.png")!r})
        plt.savefig("gone.png"); os.remove("gone.png")
        plt.savefig("data.raw")
        plt.savefig("moved.png"); os.rename("moved.png", "elsewhere.png")
        plt.savefig("linked.png"); os.remove("linked.png"); os.symlink("/etc/passwd", "linked.png")
        plt.close("all")
        """,
    )
    assert result.artifacts == ()
    assert (tmp_path / "outside.png").exists()


def test_a_savefig_that_fails(plots: Sandbox) -> None:
    result = plots.execute("plt.plot([1])\nplt.savefig('a.png')\nplt.savefig('no/such/place.png')")
    assert result.status == "error"
    assert "rlm_guest" not in result.stderr
    assert "FileNotFoundError" in result.stderr
    assert kinds(result.artifacts) == {"a.png": "image/png"}
    run(plots, "plt.close('all')")


def test_a_backend_that_the_user_chose(plots: Sandbox, boxes: Boxes) -> None:
    box = boxes(env={**plots.options.env, "MPLBACKEND": "svg"})
    code = """
        import matplotlib.pyplot as plt
        plt.figure()
        print(plt.get_backend())
        plt.switch_backend("Agg")
        import warnings; warnings.simplefilter("ignore")
        plt.plot([1])
        plt.savefig("agg.png")
        plt.show()
        """
    result = run(box, code)
    assert (result.stdout, kinds(result.artifacts)) == ("svg\n", {"agg.png": "image/png"})


def test_child_processes_keep_their_own_backend(plots: Sandbox) -> None:
    result = run(
        plots,
        f"""
        import subprocess
        code = "import matplotlib.pyplot as plt; plt.figure(); print(plt.get_backend().lower())"
        print(subprocess.run([{sys.executable!r}, "-c", code], capture_output=True, text=True).stdout)
        """,
    )
    assert result.stdout == "agg\n\n"


def test_after_a_restore(boxes: Boxes, plots: Sandbox) -> None:
    box = boxes(env=dict(plots.options.env))
    run(
        box,
        """
        import matplotlib.pyplot as plt
        figure, axes = plt.subplots()
        axes.plot([3, 1, 2])
        plt.figure()
        plt.show()
        plt.figure(1); axes.plot([1])
        """,
    )
    # A new interpreter does not use the names of existing figures again.
    assert box.execute(DIE).lost == ()
    assert len(run(box, "figure.savefig('again.png')").artifacts) == 1
    result = run(box, "plt.close('all'); plt.plot([1])\nplt.show()")
    assert [artifact.path for artifact in result.artifacts] == ["figures/figure-3.png"]
    assert len(box.list_files()) == 4


def test_nothing_is_imported_without_a_plot(boxes: Boxes) -> None:
    box = boxes()
    code = (
        "import sys\nprint([n for n in sys.modules if n.split('.')[0] in ('matplotlib', 'numpy')])"
    )
    assert run(box, code).stdout == "[]\n"
    assert run(box, "import json, csv, sqlite3").artifacts == ()


def test_another_module_called_matplotlib(boxes: Boxes) -> None:
    box = boxes()
    box.put_file(b"value = 1", "matplotlib/__init__.py")
    box.put_file(b"value = 2", "matplotlib/backend_bases.py")
    code = "import matplotlib.backend_bases as b, matplotlib\nprint(matplotlib.value, b.value)"
    assert run(box, code).stdout == "1 2\n"


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd.png", "../x.png", "a/../b.png", "link.png", "fifo.png", "folder.png",
     "out/x.png", "missing.png", "plain", "file.exe", "\ud800.png", "a\0.png", "x" * 300 + ".png"],
)  # fmt: skip
def test_a_guest_may_report_any_name(name: str, tmp_path: Path) -> None:
    workspace = Workspace.create(f"rlm-{os.getpid()}-artifacts", (os.getuid(), os.getgid()))
    try:
        for path in ("plain", "file.exe", "good.PNG"):
            (workspace.path / path).write_text("x")
        (tmp_path / "x.png").write_text("secret")
        (workspace.path / "link.png").symlink_to(tmp_path / "x.png")
        (workspace.path / "out").symlink_to(tmp_path)
        (workspace.path / "folder.png").mkdir()
        os.mkfifo(workspace.path / "fifo.png")
        before = len(os.listdir("/proc/self/fd"))
        found: Any = find_artifacts([name, "good.PNG", "good.PNG"], workspace)
        assert found == (Artifact(path="good.PNG", mime_type="image/png", size=1),)
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        workspace.remove()
