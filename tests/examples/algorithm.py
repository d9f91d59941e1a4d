"""An algorithm: of N samples keep the one of highest value halfway, and finish that alone."""

import torch

from bench.algorithms import Algorithm, Made
from stitchvm.sample import sample


class Screen(Algorithm):
    tuned = False

    def __init__(self, particles):
        self.particles = particles

    def check(self, setting):
        setting.estimator  # noqa: B018 - refuses to be without one

    def run(self, setting, strength, z, c, rng):
        half = len(setting.times) // 2
        first, rest = setting.times[: half + 1], setting.times[half:]
        own = [rng.child("first", n) for n in range(len(z))]
        halves = [sample(setting.sampler, x, first, c, r) for x, r in zip(z, own, strict=True)]
        values = [setting.estimator(z_t, rest[0], c, rng.child("value")) for z_t in halves]
        best = torch.stack(halves)[torch.stack(values).argmax(0), torch.arange(z.shape[1])]
        return Made(sample(setting.sampler, best, rest, c, rng.child("rest")))


def build(*, particles: int = 4):
    return Screen(particles)
