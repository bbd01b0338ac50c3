"""One thread for each worker, shapes checked, the same random numbers for each test, failures traced to cells."""
import os

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", MPLBACKEND="Agg", TOKENIZERS_PARALLELISM="false")

import random  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

torch.set_num_threads(1)
install_import_hook("vlp_course", "beartype.beartype")       # before anything imports the library


def seed_all() -> None:
    random.seed(0), np.random.seed(0), torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef):
    seed_all()                      # a setup cell draws the same numbers whichever test asks for it first


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    seed_all()                      # a test draws the same numbers alone and in the whole run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    mark = item.get_closest_marker("nb")
    if mark and report.failed:
        path, cell = mark.args
        report.sections.insert(0, ("where it comes from", f"{path}, cell {cell}"))
    return report
