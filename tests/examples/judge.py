"""A judge: whether an image is redder than it is blue, a number from 0 to 1."""


def build(world, *, gain: float = 5.0):
    def redness(x, c):
        red, _, blue = x.mean((2, 3)).unbind(1)
        return (gain * (red - blue)).sigmoid()

    return redness
