"""Command-line options, and what holds in every test: records keep their schema.

Tests marked `slow` or `gpu` run only when asked for.
"""

import json
from unittest.mock import patch

import pytest
import torch

OPT_IN = ("slow", "gpu")

torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other


def pytest_addoption(parser):
    for mark in OPT_IN:
        parser.addoption(f"--{mark}", action="store_true", help=f"run tests marked {mark}")


def pytest_collection_modifyitems(config, items):
    for mark in OPT_IN:
        if config.getoption(f"--{mark}"):
            continue
        skip = pytest.mark.skip(reason=f"needs --{mark}")
        for item in items:
            if item.get_closest_marker(mark):
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def records_keep_their_schema():
    """The first record of each task and status that any test writes is held against the schema."""
    from jsonschema import Draft202012Validator  # noqa: PLC0415

    from bench import schema  # noqa: PLC0415 - torch only where needed
    from bench.store import Store  # noqa: PLC0415

    valid, seen, write = Draft202012Validator(schema.record()), set(), Store.write

    def checked(self, attempt, record, arrays):
        kind = (record["spec"]["task"], record["status"])
        if kind not in seen:
            seen.add(kind)
            valid.validate(json.loads(json.dumps(record)))
        write(self, attempt, record, arrays)

    with patch.object(Store, "write", checked):
        yield


@pytest.fixture(scope="session")
def world():
    """A Gaussian world small enough for statistics: three components in two dimensions."""
    from bench.worlds.gaussian import GaussianWorld  # noqa: PLC0415 - torch only where needed

    return GaussianWorld(latent=(2, 1, 1), components=3, rank=2, prompts=4)
