"""PipelineBackbone: what the transformers of diffusers' latent pipelines have in common.

enter     latents, time, text -> tokens before the first block
blocks    (tokens, text) -> (tokens, text), one after the other
leave     tokens after the last block -> velocity

A truncated transformer has the first blocks alone: it has a trunk and no velocity.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stitchvm.backbone import NULL, Backbone, Prompts, State
from stitchvm.models.texts import Text, Texts

AFTER = ("norm_out", "proj_out")  # parts of a transformer that follow its last block


class Stream(NamedTuple):
    """What runs through the blocks.

    Attributes:
        h: Image tokens, (B, H W, D), row by row.
        text: Text tokens, (B, L, D); None after a last block that drops them.
        conditioning: What every block gets besides, the time embedding (B, D) first; the rest is
            the same for all rows.
    """

    h: Tensor
    text: Tensor | None
    conditioning: tuple[Any, ...]

    @property
    def of_rows(self) -> tuple[Tensor | None, ...]:
        """What each row has of its own."""
        return self.h, self.text, self.conditioning[0]

    def map(self, function: Callable[[Tensor], Any]) -> "Stream":
        """A function of what each row has of its own."""
        temb, *rest = self.conditioning
        h, text = function(self.h), None if self.text is None else function(self.text)
        return Stream(h, text, (function(temb), *rest))


class PipelineBackbone(Backbone):
    """A frozen latent generator made of the parts of a diffusers pipeline.

    All parts are frozen here: no gradients of weights, evaluation mode for good.

    Args:
        transformer: The velocity, or its first blocks.
        vae: Encoder and decoder; latents are (encoded - shift) x scale, as in its config.
        texts: Embeds prompts.
        latent: Shape of one latent, (C, H, W).
        decoder: Decodes instead of the VAE.  An AutoencoderTiny (TAESD3) reads scaled latents
            directly: its config has scale 1 and shift 0, and the pipelines use it so.

    Attributes:
        stacks: The transformer's lists of blocks, in the order in which they run, and the entries
            of its configuration that say how many blocks the whole transformer has in each.

    Raises:
        ValueError: if the parts disagree about the channels of latents or text.
    """

    stacks: ClassVar[dict[str, str]]

    def __init__(
        self,
        transformer: Any,
        vae: AutoencoderKL,
        texts: Texts,
        *,
        latent: tuple[int, ...],
        decoder: AutoencoderKL | AutoencoderTiny | None = None,
    ) -> None:
        super().__init__()
        self.transformer, self.vae, self.texts, self.decoder = transformer, vae, texts, decoder
        self.latent = tuple(latent)
        self.depth = len(self.blocks)
        texts.check(
            transformer.config.joint_attention_dim, transformer.config.pooled_projection_dim
        )
        for part in (vae, decoder):
            if part is not None and part.config.latent_channels != self.latent[0]:
                raise ValueError(
                    f"expected {type(part).__name__} with {self.latent[0]} latent channels, as "
                    f"the transformer, got {part.config.latent_channels}"
                )
        self.requires_grad_(requires_grad=False).eval()

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer's blocks, in the order they run."""
        return [block for stack in self.stacks for block in getattr(self.transformer, stack)]

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """The token grid, (H, W)."""

    @abstractmethod
    def whole(self, z_t: Tensor, t: Tensor, text: Text) -> Tensor:
        """The transformer's own forward pass, called as its pipeline does, (B, *latent)."""

    @abstractmethod
    def enter(self, z_t: Tensor, t: Tensor, text: Text) -> Stream:
        """The tokens before the first block."""

    @abstractmethod
    def leave(self, stream: Stream) -> Tensor:
        """The velocity after the last block, (B, *latent)."""

    def velocity(self, z_t: Tensor, t: Tensor, c: Prompts) -> Tensor:
        """The velocity u(z_t, t | c), (B, *latent), in the dtype of z_t.

        Args:
            z_t: Noisy latents, (B, *latent).
            t: Times, () or (B,), in [0, 1].
            c: Prompts, B of them.

        Raises:
            ValueError: if an input has the wrong shape, length or range, or is not finite, or the
                transformer is truncated.
        """
        self._check_whole()
        self._check(z_t, t, c)
        z = z_t.to(_dtype_of(self.blocks[0]))
        return self.whole(z, t.to(z.device), self.texts(c, z)).to(z_t.dtype)

    def trunk(self, z_t: Tensor, t: Tensor, i: int, c: Prompts | None = None) -> State:
        """The state after i blocks; see `velocity` for the rest.

        Raises:
            ValueError: as `velocity`, or if i is outside 1..depth.
        """
        if not 1 <= i <= self.depth:
            raise ValueError(f"expected i in 1..{self.depth}, got {i}")
        seen = [NULL] * len(z_t) if c is None else c
        self._check(z_t, t, seen)
        z = z_t.to(_dtype_of(self.blocks[0]))
        stream = self.enter(z, t.to(z.device), self.texts(seen, z))
        return self.advance(State(z_t, 0, z_t, t, c, stream), i)

    def advance(self, state: State, i: int) -> State:
        """The state after i blocks, from an earlier one.

        Raises:
            ValueError: if i is outside state.i..depth.
        """
        if not state.i <= i <= self.depth:
            raise ValueError(f"expected i in {state.i}..{self.depth}, got {i}")
        stream = self._run(self.blocks[state.i : i], state.hidden)
        features = stream.h.transpose(1, 2).unflatten(2, self.grid).to(state.z_t.dtype)
        return replace(state, features=features, i=i, hidden=stream)

    def resume(self, state: State) -> Tensor:
        """The rest of the velocity from a state, (B, *latent).

        Raises:
            ValueError: if the transformer is truncated.
        """
        self._check_whole()
        stream = self._run(self.blocks[state.i :], state.hidden)
        return self.leave(stream).to(state.z_t.dtype)

    def select(self, state: State, rows: Tensor) -> State:
        """Some rows of a state."""
        return state.of_rows(rows, state.hidden.map(lambda x: x[rows]))

    def join(self, first: State, second: State) -> State:
        """Two states as one batch.

        Raises:
            ValueError: if they are not after the same block.
        """
        first.meets(second)
        pairs = zip(first.hidden.of_rows, second.hidden.of_rows, strict=True)
        joined = iter([torch.cat([a, b]) for a, b in pairs if a is not None and b is not None])
        return first.with_rows(second, first.hidden.map(lambda _: next(joined)))

    def trunk_weights(self, i: int) -> dict[str, Tensor]:
        """All of the transformer but blocks after i and what follows the last one.

        Raises:
            ValueError: if i is outside 1..depth.
        """
        if not 1 <= i <= self.depth:
            raise ValueError(f"expected i in 1..{self.depth}, got {i}")
        left_out = {id(weight) for block in self.blocks[i:] for weight in block.parameters()}
        return {
            name: weight
            for name, weight in self.transformer.named_parameters()
            if id(weight) not in left_out and not name.startswith(AFTER)
        }

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Meanwhile, compute blocks of transformer and decoders again in the backward pass."""
        parts = [
            part
            for part in (self.transformer, self.vae, self.decoder)
            if part is not None
            and part._supports_gradient_checkpointing
            and not part.is_gradient_checkpointing
        ]
        for part in parts:
            part.enable_gradient_checkpointing(_again)
        try:
            yield
        finally:
            for part in parts:
                part.disable_gradient_checkpointing()

    def null_text(self) -> dict[str, Tensor]:
        """As `Texts.save_null` stores it."""
        return self.texts.null()

    def encode(self, x: Tensor) -> Tensor:
        """Latents z_0 of images x in [-1, 1], (B, 3, H, W): the mean of the VAE's posterior."""
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        image = (self.vae.config.in_channels, *(scale * n for n in self.latent[1:]))
        _check_tensor("x", x, image)
        mean = self.vae.encode(x.to(_dtype_of(self.vae))).latent_dist.mean
        shift = self.vae.config.shift_factor or 0.0  # None in older VAEs
        return ((mean - shift) * self.vae.config.scaling_factor).to(x.dtype)

    def decode(self, z_0: Tensor) -> Tensor:
        """Images of clean latents, (B, 3, H, W), about [-1, 1] and not clamped; differentiable."""
        _check_tensor("z_0", z_0, self.latent)
        vae = self.vae if self.decoder is None else self.decoder
        shift = vae.config.shift_factor or 0.0
        z = z_0.to(_dtype_of(vae)) / vae.config.scaling_factor + shift
        return vae.decode(z).sample.to(z_0.dtype)

    @abstractmethod
    def with_decoder(self, decoder: AutoencoderTiny) -> Self:
        """The same generator, sharing all weights, that decodes with another decoder."""

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002
        """Stay in evaluation mode, whatever the module around asks: T5 has dropout."""
        return super().train(mode=False)

    def _run(self, blocks: Iterable[nn.Module], stream: Stream) -> Stream:
        h, text, conditioning = stream
        model = self.transformer
        checkpointing = torch.is_grad_enabled() and model.gradient_checkpointing
        for block in blocks:
            if checkpointing:
                text, h = model._gradient_checkpointing_func(block, h, text, *conditioning)
            else:
                text, h = block(h, text, *conditioning)
        return Stream(h, text, conditioning)

    def _check_whole(self) -> None:
        whole = sum(self.transformer.config[entry] for entry in self.stacks.values())
        if self.depth < whole:
            raise ValueError(
                f"expected all {whole} blocks for a velocity, got the first {self.depth}"
            )

    def _check(self, z_t: Tensor, t: Tensor, c: Prompts) -> None:
        _check_tensor("z_t", z_t, self.latent)
        rows = len(z_t)
        if t.shape not in {(), (rows,)}:
            raise ValueError(f"expected t of shape () or ({rows},), got {tuple(t.shape)}")
        if _readable(t) and not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"expected t in [0, 1], got {t.min():g} to {t.max():g}")
        if isinstance(c, str) or len(c) != rows:
            got = "one string" if isinstance(c, str) else f"{len(c)}"
            raise ValueError(f"expected {rows} prompts, one per latent, got {got}")


def _again(block: nn.Module, *args: Any) -> Any:  # noqa: ANN401
    """A block that is computed again in the backward pass, as a whole.

    Parts of it that could be checkpointed themselves are not, neither now nor then: by then nobody
    asks for it any more, and both passes must save the same tensors.
    """
    return checkpoint(partial(_whole, block), *args, use_reentrant=False)


def _whole(block: nn.Module, *args: Any) -> Any:  # noqa: ANN401
    inner = [part for part in block.modules() if getattr(part, "gradient_checkpointing", False)]
    for part in inner:
        part.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        return block(*args)
    finally:
        for part in inner:
            part.gradient_checkpointing = True  # type: ignore[assignment]


def _dtype_of(module: nn.Module) -> torch.dtype:
    """Of its weights; diffusers' own `dtype` walks through all: a tenth of a small call."""
    return next(module.parameters()).dtype


def _readable(x: Tensor) -> bool:
    """Whether a tensor's values may be looked at: not on meta, nor while compiling."""
    return not x.is_meta and not torch.compiler.is_compiling()


def _check_tensor(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a batch of another shape, or one that is not finite."""
    if x.ndim != len(shape) + 1 or tuple(x.shape[1:]) != shape:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"expected {name} of shape (B, {wanted}), got {tuple(x.shape)}")
    if _readable(x) and not bool(x.isfinite().all()):
        bad = int((~x.isfinite()).sum())
        raise ValueError(f"expected finite {name}, got {bad} of {x.numel()} values not finite")
