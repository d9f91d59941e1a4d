"""The package as installed: everything is in the wheel, nothing is looked for beside it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIMIT = 50e6  # bytes of a wheel
USE = """
import bench
from bench.suite import shipped
from bench.worlds import WORLDS

world = WORLDS["shapes"]()
print(bench.__file__)
print(*shipped())
print(world.version, len(world.bank("data", "")))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("stitchvm", "baselines", "bench"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", out, source],
        check=True,
        capture_output=True,
    )
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_is_small_enough(wheel):
    assert wheel.stat().st_size < LIMIT


def test_the_wheel_works_far_from_the_sources(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    out = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=elsewhere,
        env={"PYTHONPATH": str(site), "HOME": str(elsewhere), "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert Path(out[0]).is_relative_to(site)
    assert "value-shapes" in out[1].split()
    assert out[2].split()[1] == "4096"
