"""Settings of libraries, in a guest without a container: set again after a death, or named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from rlm_containers.container.bundle import Bundle
from tests.support import printed
from tests.unit.guests import LocalRuntime
from tests.unit.sessions import DIE


@pytest.fixture
def box(made_bundle: Bundle, tmp_path: Path) -> Iterator[Sandbox]:
    # No heir may keep what is lost.
    with Sandbox(runtime=LocalRuntime(), heirs="never", env={"MPLCONFIGDIR": str(tmp_path)}) as box:
        yield box


@pytest.mark.parametrize(
    ("library", "change", "look", "expected"),
    [
        (
            "matplotlib",
            "import matplotlib.pyplot as plt; from matplotlib import rcParams\n"
            "plt.style.use('ggplot'); rcParams['figure.dpi'] = 50; backend = plt.get_backend()\n"
            "rcParams['font.sans-serif'].insert(0, 'Mine'); rcParams['lines.solid_capstyle'] = 'round'",
            "print(rcParams['figure.dpi'], rcParams['axes.facecolor'], rcParams['font.sans-serif'][0])\n"
            "print(rcParams['axes.prop_cycle'].by_key()['color'][0], rcParams['lines.solid_capstyle'].name)\n"
            "print(plt.get_backend() == backend)",
            "50.0 #E5E5E5 Mine\n#E24A33 round\nTrue\n",
        ),
        (
            "numpy",
            "import numpy as np; np.set_printoptions(precision=2, suppress=True); np.setbufsize(1024)\n"
            "_ = np.seterr(divide='raise')",
            "print(np.array([1 / 3, 1e-5]), np.geterr()['divide'], np.getbufsize())",
            "[0.33 0.  ] raise 1024\n",
        ),
        (
            "pandas",
            "import pandas as pd; pd.set_option('display.max_rows', 7); pd.options.display.precision = 3\n"
            "pd.options.display.float_format = '{:,.1f}'.format; pd.set_option('mode.sim_interactive', True)",
            "print(pd.get_option('display.max_rows'), pd.options.display.precision)\n"
            "print(pd.get_option('mode.sim_interactive'), pd.Series([1234.567]).to_string())",
            "7 3\nTrue 0   1,234.6\n",
        ),
        (
            "sklearn",
            "import sklearn; sklearn.set_config(transform_output='pandas')",
            "print(sklearn.get_config()['transform_output'])",
            "pandas\n",
        ),
        (
            "polars",
            "import polars as pl; pl.Config.set_tbl_rows(3); pl.Config.set_decimal_separator(',')",
            "state = pl.Config.state()\n"
            "print(state['POLARS_FMT_MAX_ROWS'], state['set_decimal_separator'])",
            "3 ,\n",
        ),
        (
            "torch",
            "import torch; torch.set_default_dtype(torch.float64); _ = torch.set_grad_enabled(False)\n"
            "torch.set_printoptions(precision=2); _ = torch.manual_seed(7); other = torch.Generator()\n"
            "_ = other.manual_seed(7); expected = torch.rand(2, generator=other).tolist()[1]\n"
            "del other; first = torch.rand(1).item()",
            "print(torch.tensor(1 / 3), torch.get_default_dtype(), torch.is_grad_enabled())\n"
            "print(torch.rand(1).item() == expected)",
            "tensor(0.33) torch.float64 False\nTrue\n",
        ),
    ],
)  # fmt: skip
def test_what_cells_have_set_is_set_again(
    box: Sandbox, library: str, change: str, look: str, expected: str
) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    printed(box, "import warnings; warnings.simplefilter('error')")
    printed(box, change)
    for _ in range(2):
        assert box.unsaved == ()
        assert box.execute(DIE).lost == ()
        printed(box, "again = 1")
    assert printed(box, look) == expected


def test_attributes_of_frames(box: Sandbox) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    printed(
        box,
        """
        import pandas as pd
        frame = pd.DataFrame({"a": [1, 2]}); frame.name = "train"; frame.index.name = "n"
        column = pd.Series(["x"], name="c"); column.frame = frame; column.str.upper()
        """,
    )
    assert box.execute(DIE).lost == ()
    look = "print(frame.name, frame.index.name, column.name, column.frame is frame, frame.a.sum())"
    assert printed(box, look) == "train n c True 3\n"


@pytest.mark.parametrize(
    ("library", "change", "names"),
    [
        (
            "matplotlib",
            "import matplotlib.pyplot as plt, matplotlib.scale, matplotlib.patheffects as effects\n"
            "class Mine(matplotlib.scale.LinearScale): name = 'mine'\n"
            "matplotlib.scale.register_scale(Mine)\n"
            "plt.rcParams['path.effects'] = [effects.Normal()]",
            {"matplotlib scale 'mine'", "matplotlib.rcParams['path.effects']"},
        ),
        (
            "numpy",
            "import numpy as np; np.seterrcall(print); np.set_printoptions(formatter={'int': hex})",
            {"numpy error call", "numpy print option formatter"},
        ),
        (
            "pandas",
            "import pandas as pd; pd.options.display.float_format = lambda number: '?'\n"
            "@pd.api.extensions.register_dataframe_accessor('geo')\nclass Geo:\n"
            "    def __init__(self, frame): self.frame = frame\n"
            "pd.api.extensions.register_index_accessor('other')(Geo)",
            {
                "pandas option 'display.float_format'",
                "pandas accessor 'geo'",
                "pandas accessor 'other'",
            },
        ),
        ("tqdm", "import pandas, tqdm; tqdm.tqdm.pandas()", {"tqdm.pandas()"}),
        (
            "polars",
            "import polars as pl\n@pl.api.register_expr_namespace('mine')\nclass Mine:\n"
            "    def __init__(self, expression): pass",
            {"polars namespace 'mine'"},
        ),
        (
            "loguru",
            "import loguru; number = loguru.logger.add('my.log')",
            {"handlers of loguru"},
        ),
        ("loguru", "import loguru", set()),
        ("structlog", "import structlog; structlog.configure()", {"structlog.configure()"}),
    ],
)
def test_what_cannot_be_set_again_is_named(
    box: Sandbox, library: str, change: str, names: set[str]
) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    if "pandas" in change:
        pytest.importorskip("pandas", reason="pandas is not installed")
    printed(box, change)
    assert {variable.name for variable in box.unsaved} == names
    assert set(box.execute(DIE).lost) == names
    printed(box, "after = 1")
    assert box.unsaved == ()
