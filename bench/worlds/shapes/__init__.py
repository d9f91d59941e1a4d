"""The shapes world: SD 3.5's and CLIP's anatomy in miniature, trained on captioned scenes."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bench.worlds.shapes.world import ShapesWorld

SHIPPED_MEMBERS, SHIPPED_PROMPT_MEMBERS = 4096, 256  # of the banks that come with the weights


def shapes(
    *,
    generator: Literal["large", "small"] = "large",
    members: int = SHIPPED_MEMBERS,
    prompt_members: int = SHIPPED_PROMPT_MEMBERS,
    prompts: Literal["eval", "tune"] = "eval",
    per_kind: int = 4,
    folder: str | None = None,
    device: str = "cpu",
) -> "ShapesWorld":
    """The shapes world.

    Args:
        generator: `large`, or the `small` one on the same latents.
        members: Of the bank behind the `data` posterior; more than ship are made on first use.
        prompt_members: Of the bank behind each prompt's posterior; likewise.
        prompts: The `eval` prompts, or the `tune` ones that settings are chosen on.
        per_kind: Prompts of each of the six kinds.
        folder: Of the weights; those shipped when None.
        device: Where to compute.

    Raises:
        FileNotFoundError: if weights are missing.
        ValueError: if they are not what their digests say, or for a count below 1.
    """
    from pathlib import Path  # noqa: PLC0415

    from bench.worlds.quiet import quietly  # noqa: PLC0415
    from bench.worlds.shapes.weights import SHIPPED  # noqa: PLC0415

    counts = {"members": members, "prompt_members": prompt_members, "per_kind": per_kind}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"expected {name} >= 1, got {count}")
    with quietly():
        from bench.worlds.shapes.world import ShapesWorld  # noqa: PLC0415 - slow: diffusers

        return ShapesWorld(
            generator=generator,
            members=members,
            prompt_members=prompt_members,
            prompts=prompts,
            per_kind=per_kind,
            folder=SHIPPED if folder is None else Path(folder),
            device=device,
        )
