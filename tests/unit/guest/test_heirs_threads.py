"""Heirs beside threads that Python does not know of: those of OpenBLAS, OpenMP and any library."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from tests.support import eventually
from tests.unit.guest.test_heirs import groups_of, slow_box, worker
from tests.unit.sessions import Boxes, revive, run, settle

#: Makes a thread, as a library written in C may.
NATIVE = """
import ctypes, sys
libc, native = ctypes.CDLL(None), ctypes.c_ulong()
assert libc.pthread_create(ctypes.byref(native), None, libc.pause, None) == 0
_ = (lambda module: setattr(module, 'native', (libc, native)))(sys)  # no checkpoint has it
del libc, native
"""
END_NATIVE = """
libc, native = sys.native
libc.pthread_cancel(native)
libc.pthread_join(native, None)
del libc, native
"""

#: Makes OpenBLAS use its threads.
OPENBLAS = """
import os
os.environ["OPENBLAS_NUM_THREADS"] = "2"
import numpy
a = numpy.ones((300, 300))
b = a @ a
"""

#: A variable that uses OpenMP while it is saved.
OPENMP = """
import ctypes, sys
_ = (lambda module: setattr(module, 'library', ctypes.CDLL({library!r})))(sys)
assert sys.library.sum_up(1000) == 499500
class Sum:
    def __reduce__(self):
        assert sys.library.sum_up(1000) == 499500
        return Sum, ()
total = Sum()
"""
SOURCE = """
int sum_up(int most) {
    int sum = 0;
    #pragma omp parallel for num_threads(3) reduction(+:sum)
    for (int n = 0; n < most; n++) sum += n;
    return sum;
}
"""


@pytest.fixture
def box(boxes: Boxes) -> Sandbox:
    return slow_box(boxes)


def has_heir(box: Sandbox) -> bool:
    """Return whether a worker whose variables have changed has an heir."""
    pid = worker(box)
    run(box, "changed = [None]")
    run(box, "pass")
    return bool(groups_of(pid))


def test_openblas_goes_on_in_worker_writer_and_heir(box: Sandbox) -> None:
    pytest.importorskip("numpy")
    run(box, OPENBLAS)
    for _ in range(3):
        run(box, "b = a @ a; numbers = iter([1, 2])")
        assert has_heir(box)
    settle(box)
    os.kill(worker(box), signal.SIGKILL)
    result = box.execute("print((a @ b)[0, 0], next(numbers))")
    assert (result.stdout, result.lost) == ("90000.0 1\n", ())


@pytest.mark.parametrize("beside", ["", OPENBLAS], ids=["alone", "beside OpenBLAS"])
def test_no_heir_beside_a_thread_that_a_library_has_made(box: Sandbox, beside: str) -> None:
    if beside:
        pytest.importorskip("numpy")
    run(box, beside + NATIVE)
    assert not has_heir(box)
    run(box, "x = 1")
    run(box, END_NATIVE)
    assert eventually(lambda: has_heir(box))
    revive(box)
    assert run(box, "print(x)").stdout == "1\n"


def test_no_heir_beside_threads_of_openmp(box: Sandbox, tmp_path: Path) -> None:
    library = tmp_path / "sum.so"
    built = ("gcc", "-shared", "-fPIC", "-fopenmp", "-x", "c", "-", "-o", str(library))
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    if subprocess.run(built, input=SOURCE, text=True, capture_output=True, check=False).returncode:
        pytest.skip("needs gcc with OpenMP")
    run(box, OPENMP.format(library=str(library)))
    run(box, "assert sys.library.sum_up(10) == 45; x = [1]")
    assert not has_heir(box)
    assert box.unsaved == ()
    run(box, "del Sum, total")
    revive(box)
    assert run(box, "print(x)").stdout == "[1]\n"
