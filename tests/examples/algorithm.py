"""An algorithm: of N starting noises keep the one of highest value, and sample from that alone."""

import torch

from bench.algorithms import Algorithm, Made
from stitchvm.sample import sample


class Screen(Algorithm):
    tuned = False

    def __init__(self, particles, at):
        self.particles, self.at = particles, at

    def check(self, setting):
        setting.estimator  # noqa: B018 - refuses to be without one

    def run(self, setting, strength, z, c, rng):
        rows, t = torch.arange(z.shape[1]), z.new_tensor(self.at)
        values = [setting.estimator(one, t, c, rng.child("value", n)) for n, one in enumerate(z)]
        best = z[torch.stack(values).argmax(0), rows]
        return Made(sample(setting.sampler, best, setting.times, c, rng.child("sample")))


def build(*, particles: int = 4, at: float = 1.0):
    return Screen(particles, at)
