"""Parts: the named things of a specification, ours or from a user's file, with all settings."""

from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

JOINT = "+"  # between the names of rewards that are added up


class Model(BaseModel):
    """Plain data: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(Model):
    """A named thing with its settings.

    Attributes:
        build: Registry key, `file.py:build` or `package:build`.
        settings: Every setting, defaults included.
        source: Digest of a user's file; of a sum, those of its terms.
        digest: Identity of weights, where it has any.
        parts: What a user's files put into it: `backbone` and `prompts` of a world.
        name: What records call it: of judges and metrics, which have no coordinate.
    """

    build: str
    settings: dict[str, Any] = Field(default_factory=dict)
    source: str | None = None
    digest: str | None = None
    parts: dict[str, "Part"] = Field(default_factory=dict)
    name: str | None = None

    @model_serializer(mode="wrap")
    def _said(self, plainly: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Plain data, without what most parts have not."""
        data: dict[str, Any] = plainly(self)
        return {k: v for k, v in data.items() if v or k not in {"parts", "name"}}


def named(build: str, source: str | None) -> str:
    """A build without the folders that user's files lie in."""
    if source is None:
        return build
    terms = build.split(JOINT) if JOINT in source else [build]
    return JOINT.join(term.rpartition("/")[2] for term in terms)
