"""A list of prompts: the world's own that speak of one colour, or else every second one."""


def build(world, *, word: str = "red"):
    return [text for text in world.prompts if word in text.split()] or list(world.prompts[::2])
