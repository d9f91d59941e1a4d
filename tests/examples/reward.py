"""A reward: how much brighter the left half of an image is than the right one, -1 to 1."""

from stitchvm.whole import WholeReward


class Leftness(WholeReward):
    def embed(self, x):
        left, right = (half.flatten(1).mean(1) for half in x.tensor_split(2, dim=3))
        return (left - right)[:, None]

    def score(self, e, c):
        return (self.gain * e[:, 0]).tanh()


def build(world, *, gain: float = 3.0):
    reward = Leftness()
    reward.gain = gain
    return reward
