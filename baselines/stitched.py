"""Stitched: a trained StitchVM of a world (Eq. 6), as `stitchvm.stitch` defines it."""

from baselines.trained import build_of
from stitchvm.stitch import Stitched

build = build_of(Stitched, "stitched")
