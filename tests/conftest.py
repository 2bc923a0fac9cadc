# SPDX-License-Identifier: Apache-2.0
"""Every test runs on the CPU with four devices, strict dtype promotion and warnings as errors.

Programs compile without optimisation, here and in the processes that tests start: most tests are about values, and
compiling is most of their time. Modules about programs ask for the fixture `optimised`. One setting for all of them:
jax keeps a compiled operation for the whole process, whatever the setting was, so a mixture gives last digits that
depend on the order of the tests. What one process has compiled the others read from a folder that lasts as long as the
tests.
"""

import atexit
import contextlib
import os
import pathlib
import resource
import shutil
import signal
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4").strip()
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers and the processes of tests inherit it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxneuro-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import pytest

from .reordered import reordered

# A shell that runs the tests in its background lets them ignore Ctrl-C, which some of them are about.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="module", autouse=True)
def rank_promotion(request):
    """Every broadcast is said, in the tests as in what they call, as in the sessions of users who set that; but for
    benchmarks and recipes, which run code of others and of users who did not."""
    room = request.path.relative_to(pathlib.Path(__file__).parent).parts[0]
    with contextlib.nullcontext() if room in ("benchmarks", "test_recipes.py") else jax.numpy_rank_promotion("raise"):
        yield


def pytest_addoption(parser):
    parser.addoption(
        "--reordered",
        type=int,
        metavar="SEED",
        help="add float sums in an order drawn from SEED and one ulp off (tests/reordered.py)",
    )


@pytest.fixture(scope="session", autouse=True)
def order_of_sums(pytestconfig):
    """With --reordered, sums of all tests are rounded as on some other machine."""
    seed = pytestconfig.getoption("reordered")
    with contextlib.nullcontext() if seed is None else reordered(seed):
        yield


@pytest.fixture
def this_machine(pytestconfig):
    """Without --reordered's second sums: for what is said about a program (memory, operations, the same bits from the
    same operations, in another process too), not about values."""
    with contextlib.nullcontext() if pytestconfig.getoption("reordered") is None else reordered(None):
        yield


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """A process that has compiled thousands of programs lets go of them: XLA once crashed in one of 4 GB."""
    yield
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 2**21:  # KiB
        jax.clear_caches()


@pytest.fixture(scope="module")
def optimised():
    """Programs of this module compile as users' do: for what is said about memory, fusion and traffic."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
