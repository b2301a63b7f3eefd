# SPDX-License-Identifier: Apache-2.0
"""Networks come and go: freed, forked, pickled, and called while the interpreter exits."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import run_python
from library_fixture import affine_library, build_library
from tvm import relax

import tvm_involution as ti
from tvm_involution import UserError
from tvm_involution.runtime import TensorSpec

MEGABYTES = 4


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`y = 2 x + 1`, (batch, 4)."""
    return affine_library(tmp_path_factory.mktemp("lifetime") / "affine.so")


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`y = w x`, with 4 MiB of weights and activations of 4 MiB."""
    weight = np.ones((1024, 256 * MEGABYTES), np.float32)
    return build_library(
        tmp_path_factory.mktemp("lifetime") / "heavy.so",
        lambda x: relax.op.sum(relax.op.add(relax.op.multiply(relax.const(weight), x), relax.const(weight)), axis=[0]),
        batch_sizes=(1024,),
        inputs=(TensorSpec("x", ("batch", 1), "float32"),),
        outputs=(TensorSpec("y", (256 * MEGABYTES,), "float32"),),
    )


def test_fifty_loads_take_no_memory(heavy: Path) -> None:
    """Code, weights and activations are freed; what was returned stays, also of networks that are gone."""
    code = """
import sys
import numpy as np
import tvm_involution as ti

def resident():
    return int(open("/proc/self/statm").read().split()[1]) / 256

x = np.ones((1024, 1), np.float32)
kept, sizes = [], []
for number in range(60):
    net = ti.load(sys.argv[1])
    kept.append(net(number * x))
    sizes.append(resident())
del net
for number, y in enumerate(kept):
    assert np.array_equal(y, np.full(1024, 1024 * (number + 1), np.float32)), number
    y += 1
mapped = [line for line in open("/proc/self/maps") if "library.so" in line]
assert not mapped, mapped
print(sizes[-1] - sizes[9])
"""
    # a library's code and weights are 4 MiB in the file and 4 in memory
    assert float(run_python(code, heavy)) < 3 * 2 * MEGABYTES


@pytest.mark.parametrize("calls", [1, 3])
def test_what_a_network_computed_in_goes_with_it(tmp_path: Path, calls: int) -> None:
    """Memory of 64 MiB that the runtime keeps for the next call, as long as there may be one."""
    row = np.ones((1, 1 << 20), np.float32)
    path = build_library(
        tmp_path / "large.so",
        lambda x: relax.op.multiply(x, relax.const(row)),
        batch_sizes=(16,),
        inputs=(TensorSpec("x", ("batch", 1), "float32"),),
        outputs=(TensorSpec("y", ("batch", 1 << 20), "float32"),),
    )
    code = """
import sys
import numpy as np
import tvm_involution as ti

def resident():
    return int(open("/proc/self/statm").read().split()[1]) / 256

x = np.ones((16, 1), np.float32)
other = ti.load(sys.argv[2])
before = resident()
net = ti.load(sys.argv[1])
for _ in range(int(sys.argv[3])):
    net(x)
print(resident() - before)
del net
print(resident() - before)
assert other(np.ones((1, 4), np.float32)).tolist() == [[3.0] * 4]
"""
    with_network, without = map(float, run_python(code, path, affine_library(tmp_path / "other.so"), calls).split())
    assert with_network > 60 and without < 20


def test_outputs_outlive_the_network(library: Path, rng: np.random.Generator) -> None:
    x = rng.standard_normal((8, 4), np.float32)
    outputs = [ti.load(library)(x + i) for i in range(5)]
    for i, y in enumerate(outputs):
        np.testing.assert_allclose(y, 2 * (x + i) + 1, rtol=1e-6)


def test_a_pickle_is_the_path(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "moved.so"
    shutil.copy(library, path)
    monkeypatch.chdir(tmp_path)
    net = ti.load("moved.so")
    data = pickle.dumps(net)
    assert len(data) < 1000
    monkeypatch.chdir("/")
    x = np.ones((3, 4), np.float32)
    for again in (pickle.loads(data), copy.copy(net), copy.deepcopy(net)):
        assert again is not net and again.device == net.device
        np.testing.assert_array_equal(again(x), net(x))
    affine_library(path, scale=7.0)
    with pytest.raises(UserError, match=r"moved.so is another library than the one that was pickled"):
        pickle.loads(data)
    path.unlink()
    with pytest.raises(UserError, match=r"moved.so does not exist"):
        pickle.loads(data)
    np.testing.assert_array_equal(net(x), 2 * x + 1)


def test_repr(library: Path) -> None:
    assert repr(ti.load(library)) == (
        f"<CompiledNetwork small: x float32[batch, 4] -> y float32[batch, 4]; batch sizes 1, 8; on cpu; {library}>"
    )


@pytest.mark.parametrize("how", ["spawn", "forkserver", "fork"])
def test_in_processes_of_multiprocessing(library: Path, how: str) -> None:
    code = """
import multiprocessing, sys
import numpy as np
import tvm_involution as ti

if __name__ == "__main__":
    net = ti.load(sys.argv[1])
    x = np.ones((3, 4), np.float32)
    net(x)
    with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
        for i, y in enumerate(pool.map(net, [i * x for i in range(6)])):
            assert np.array_equal(y, 2 * i * x + 1)
        pool.close()
        pool.join()
    print("done")
"""
    assert run_python(_as_a_script(code), library, how) == "done\n"


def _as_a_script(code: str) -> str:
    """Return code that runs `code` from a file, which `multiprocessing` needs to start processes."""
    return f"""
import os, runpy, subprocess, sys, tempfile
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "script.py")
    open(path, "w").write({code!r})
    sys.exit(subprocess.run([sys.executable, path, *sys.argv[1:]], timeout=100).returncode)
"""


def test_forks_while_other_threads_call(library: Path) -> None:
    """Every child can call, although at the time of the fork others were in the middle of calls and loads."""
    code = """
import os, signal, sys, threading, time
import numpy as np
import tvm_involution as ti

net = ti.load(sys.argv[1])
x = np.ones((8, 4), np.float32)
stop = False

def call():
    while not stop:
        assert np.array_equal(net(x), 2 * x + 1)

def load():
    while not stop:
        ti.load(sys.argv[1])

threads = [threading.Thread(target=target) for target in (call, call, load)]
for thread in threads:
    thread.start()
slowest = 0.0
for number in range(25):
    begin = time.perf_counter()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        good = np.array_equal(net(number * x), 2 * number * x + 1)
        good = good and np.array_equal(ti.load(sys.argv[1])(x), 2 * x + 1)
        os._exit(0 if good else 1)
    slowest = max(slowest, time.perf_counter() - begin)
    assert os.waitpid(child, 0)[1] == 0, number
stop = True
for thread in threads:
    thread.join()
print(slowest)
"""
    assert float(run_python(code, library)) < 20


def test_a_fork_waits_for_the_call_in_progress(library: Path) -> None:
    """What the runtime is in the middle of, a child would be in the middle of for ever."""
    code = """
import os, sys, threading, time
import tvm_involution as ti
from tvm_involution.runtime.threads import run_on_pool

ti.load(sys.argv[1])
started, ended = threading.Event(), threading.Event()

def call():
    started.set()
    time.sleep(0.5)
    ended.set()

threading.Thread(target=run_on_pool, args=(call,)).start()
started.wait()
child = os.fork()
if child == 0:
    os._exit(0 if ended.is_set() else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    run_python(code, library)


def test_a_fork_within_a_call(library: Path) -> None:
    code = """
import os, signal, sys
import numpy as np
import tvm_involution as ti
from tvm_involution.runtime.threads import run_on_pool

net = ti.load(sys.argv[1])
x = np.ones((8, 4), np.float32)

def fork():
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if np.array_equal(net(x), 2 * x + 1) else 1)
    return os.waitpid(child, 0)[1]

assert run_on_pool(fork) == 0
assert np.array_equal(net(x), 2 * x + 1)
"""
    run_python(code, library)


@pytest.mark.parametrize("called_before", [True, False])
@pytest.mark.parametrize("when", ["atexit", "other thread"])
def test_calls_while_the_interpreter_exits(library: Path, when: str, called_before: bool) -> None:
    code = """
import atexit, sys, threading, time
import numpy as np
import tvm_involution as ti

net = ti.load(sys.argv[1])
x = np.ones((8, 4), np.float32)
if sys.argv[3] == "True":
    net(x)

def call():
    assert np.array_equal(net(x), 2 * x + 1)
    sys.stdout.write("right\\n")
    sys.stdout.flush()

def main():
    threading.main_thread().join()
    for _ in range(3):
        call()

if sys.argv[2] == "atexit":
    atexit.register(call)
else:
    for _ in range(2):
        threading.Thread(target=main).start()
"""
    printed = run_python(code, library, when, called_before)
    assert printed == "right\n" * (6 if when == "other thread" else 1)


def test_a_destructor_when_python_has_shut_down(library: Path) -> None:
    """numpy does not work any more: one line, and no wait for threads that are gone."""
    code = """
import os, sys
import numpy as np
import tvm_involution as ti

class Late:
    def __init__(self):
        self.arguments = ti.load(sys.argv[1]), np.ones((8, 4), np.float32), os.write, ti.UserError

    def __del__(self):
        net, x, write, expected = self.arguments
        try:
            net(x)
        except expected as error:
            write(1, str(error).encode())

late = Late()
"""
    assert run_python(code, library).startswith("small was called when Python had shut down; ")


def test_other_ends_of_an_interpreter(library: Path) -> None:
    """A network in a cycle, in a global of another module, in a daemon thread: the process ends, with status 0."""
    code = """
import sys, threading, types
import numpy as np
import tvm_involution as ti

module = sys.modules["holder"] = types.ModuleType("holder")
module.net = ti.load(sys.argv[1])
cycle = [ti.load(sys.argv[1])]
cycle.append(cycle)
x = np.ones((8, 4), np.float32)
y = module.net(x)

def forever():
    while True:
        module.net(x)

threading.Thread(target=forever, daemon=True).start()
"""
    run_python(code, library)
