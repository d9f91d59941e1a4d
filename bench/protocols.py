"""How each task measures: its protocol, plain data that is part of a cell's identity."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from bench.part import Model, Part


class Levels(Model):
    """Noise levels, and how an estimator is called at each.

    Attributes:
        sigmas: Noise levels, each strictly between 0 and 1.
        grid: `plain`, or `snr`: sigmas are meant on a 128 x 128 latent and matched by SNR.
        batch: Latents per call.
        calls: Timed calls at least.
    """

    SHOWN: ClassVar[tuple[str, ...]] = ("grid",)  # coordinates of a cell

    sigmas: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    grid: Literal["plain", "snr"] = "plain"
    batch: int = Field(64, ge=1)
    calls: int = Field(5, ge=1)

    @field_validator("sigmas")
    @classmethod
    def _inside(cls, sigmas: tuple[float, ...]) -> tuple[float, ...]:
        if not sigmas or not all(0 < s < 1 for s in sigmas) or len(set(sigmas)) != len(sigmas):
            raise ValueError("expected distinct noise levels strictly between 0 and 1")
        return sigmas


class Protocol(Levels):
    """How values are measured: the `value` task.

    Attributes:
        latents: `data` noised, or from the `sampler` on its way.
        pairing: `own` prompts, or `mismatched`: latents made without regard to the prompt.
        group: `independent` latents of one prompt, or `siblings` of one transition.
        prompts: P, clusters.
        groups: G per prompt.
        members: M per group.
        replicates: R, of a stochastic estimator's own randomness at the same latents.
        gradient: Whether gradients are measured as well.
        kernel: The sampler that makes and finishes latents where the data do not.
        steps: Its steps from 1 to 0; siblings are one of them apart.
        metrics: Further ones, of users' files.
    """

    SHOWN: ClassVar[tuple[str, ...]] = ("latents", "pairing", "group", "grid")

    latents: Literal["data", "sampler"] = "data"
    pairing: Literal["own", "mismatched"] = "own"
    group: Literal["independent", "siblings"] = "independent"
    prompts: int = Field(16, ge=2)
    groups: int = Field(1, ge=1)
    members: int = Field(4, ge=1)
    replicates: int = Field(8, ge=2)
    gradient: bool = True
    kernel: Literal["reversal", "flow_grpo", "sigma", "square"] = "reversal"
    steps: int = Field(40, ge=1)
    metrics: tuple[Part, ...] = ()

    @property
    def size(self) -> str:
        """How much is measured, in words."""
        latents = self.prompts * self.groups * self.members
        return (
            f"{self.prompts} prompts x {self.groups} groups x {self.members} members = {latents} "
            f"latents at each of {len(self.sigmas)} noise levels, {self.replicates} replicates"
        )

    @property
    def place(self) -> str:
        """Which cell of its estimator this is, in words."""
        return f"{self.latents}, {self.group}"


class Robustness(Levels):
    """How embeddings of noisy latents are tested: the `robustness` task.

    Attributes:
        items: Images of a retrieval, pairs of preferences, or rated images.
    """

    items: int = Field(1000, ge=2)

    @property
    def size(self) -> str:
        """How much is measured, in words."""
        return f"{self.items} items at each of {len(self.sigmas)} noise levels"

    @property
    def place(self) -> str:
        """Which cell of its estimator this is, in words."""
        return self.grid


class InterfaceProtocol(Model):
    """How pairs (i, j) are finetuned and compared: the `interface` task.

    Attributes:
        i: Backbone blocks; a cell trains all j of one i side by side.
        entries: Which j; None for every block of the reward.
        probes: Images of stage 1.
        images: Images that stage 2 learns from.
        steps: Optimiser steps of each pair.
        batch: Images a step.
        rate: Learning rate.
        warmup: Steps of linear warm-up.
        pictures: Held-out pictures, with a caption each, that pairs are judged on.
        sigma: Noise level at which captions are retrieved.
    """

    SHOWN: ClassVar[tuple[str, ...]] = ("i",)

    i: int = Field(ge=1)
    entries: tuple[int, ...] | None = None
    probes: int = Field(200, ge=1)
    images: int = Field(4096, ge=1)
    steps: int = Field(120, ge=1)
    batch: int = Field(64, ge=1)
    rate: float = Field(1e-3, gt=0)
    warmup: int = Field(20, ge=1)
    pictures: int = Field(500, ge=2)
    sigma: float = Field(0.1, gt=0, lt=1)

    @property
    def size(self) -> str:
        """How much is measured, in words."""
        return (
            f"{self.steps} steps of {self.batch} out of {self.images} images for every pair, "
            f"judged on {self.pictures} pictures"
        )

    @property
    def place(self) -> str:
        """Which cell of its estimator this is, in words."""
        return f"i = {self.i}"


class CostProtocol(Model):
    """How costs are timed, always two calls in turns: the `cost` task.

    Attributes:
        rounds: Timed rounds of steps and of values.
        searches: Timed rounds of the search.
        probes: Images of stage 1, and as many that check it.
        images: Images that stage 2 learns from.
        batch: Images an optimiser step.
        steps: Optimiser steps that a whole training is taken to have.
        batches: Latents a value is asked for at once.
        sigma: Noise level of these latents.
        gradients: Whether a value is timed with its gradient as well.
    """

    SHOWN: ClassVar[tuple[str, ...]] = ()

    rounds: int = Field(20, ge=2)
    searches: int = Field(6, ge=2)
    probes: int = Field(200, ge=1)
    images: int = Field(1024, ge=1)
    batch: int = Field(128, ge=1)
    steps: int = Field(2000, ge=1)
    batches: tuple[int, ...] = (1, 16)
    sigma: float = Field(0.5, gt=0, lt=1)
    gradients: bool = True

    @property
    def size(self) -> str:
        """How much is measured, in words."""
        sizes = " and ".join(map(str, self.batches))
        return (
            f"{self.rounds} timed rounds of steps of {self.batch} images and of values of "
            f"{sizes} latents, {self.searches} of a search over {self.probes} images"
        )

    @property
    def place(self) -> str:
        """Which cell of its estimator this is, in words."""
        return f"steps of {self.batch}"


class AlignProtocol(Model):
    """How samples are steered and judged: the `align` task.

    Attributes:
        kernel: The sampler: `ode`, or an SDE with a nu of that name.
        steps: Its steps from 1 to 0.
        shift: Of its time grid.
        cfg: Scale of classifier-free guidance.
        share: Whether estimator and sampler share a trunk.
        samples: Per prompt that is judged; 0 measures costs alone.
        batch: Latents at once, particles counted.
        trials: Strengths tried, the same number for every method that has one; 0 takes `strength`.
        strength: Where trials begin, or what is taken.
        unit: Of strengths that multiply values: one over the reward's spread, or over the reward.
        factor: Between the first trials, and beyond the last while the best is at an end.
        slack: Share of prompts that may be shown less often than by unsteered samples, at most.
        tune_samples: Per prompt that strengths are chosen on.
        drawn: Draws from the tilted target, per prompt.
        cost_batches: Batch sizes at which a guided step is timed.
        rounds: Timed rounds; 0 times none.
        classic: Whether classic DPS is timed beside a guided step; it takes the most memory.
        errors: Noise levels at which the estimator is held against the truth, on the way of
            unsteered samples.
        keep: Whether clean latents are kept, for further judges.
        judges: Further ones, of users' files.
    """

    SHOWN: ClassVar[tuple[str, ...]] = ("kernel",)

    kernel: Literal["ode", "reversal", "flow_grpo", "sigma", "square"] = "square"
    steps: int = Field(20, ge=1)
    shift: float = Field(1.0, gt=0)
    cfg: float = 2.0
    share: bool = True
    samples: int = Field(4, ge=0)
    batch: int = Field(48, ge=1)
    trials: int = Field(0, ge=0)
    strength: float = Field(1.0, ge=0)
    unit: Literal["spread", "reward"] = "spread"
    factor: float = Field(4.0, gt=1)
    slack: float = Field(0.01, ge=0, le=1)
    tune_samples: int = Field(2, ge=2)
    drawn: int = Field(64, ge=2)
    cost_batches: tuple[int, ...] = (1, 8, 16)
    rounds: int = Field(10, ge=0)
    classic: bool = True
    errors: tuple[float, ...] = ()
    keep: bool = False
    judges: tuple[Part, ...] = ()

    @property
    def size(self) -> str:
        """How much is measured, in words."""
        return (
            f"{self.samples} samples a prompt in {self.steps} steps at guidance {self.cfg:g}, "
            f"{self.trials} strengths tried on {self.tune_samples} of each other prompt, "
            f"{self.rounds} timed rounds of a step"
        )

    @property
    def place(self) -> str:
        """Which cell of its estimator this is, in words."""
        return self.kernel


class TrainProtocol(Model):
    """How generators are trained and judged: the `train` task.

    Attributes:
        steps: Of the sampler, from 1 to 0, in training and in evaluation.
        shift: Of its time grid.
        rank: Of LoRA.
        updates: Training steps of each run.
        prompts: Prompts a training step.
        group: Samples of each.
        known: Prompts that training draws from.
        rates: Learning rates that are tried; one is taken as it is.
        trial: Training steps of each trial.
        decay: Weight decay.
        average: Share of itself that the evaluated average keeps a step.
        batch: Latents at once.
        seeds: Runs that are compared, each with a seed of its own; 0 measures costs alone.
        pilot: Whether one more run comes first, that the level to reach is read from.
        every: Training steps from one evaluation to the next.
        samples: Per prompt that is judged.
        rounds: Rounds of timed training steps, one for every stop, in turns with as many of the
            published method; 0: none.
    """

    SHOWN: ClassVar[tuple[str, ...]] = ()

    steps: int = Field(10, ge=1)
    shift: float = Field(1.0, gt=0)
    rank: int = Field(16, ge=1)
    updates: int = Field(60, ge=1)
    prompts: int = Field(12, ge=1)
    group: int = Field(16, ge=1)
    known: int = Field(240, ge=1)
    rates: tuple[float, ...] = (3e-4,)
    trial: int = Field(20, ge=1)
    decay: float = Field(0.0, ge=0)
    average: float = Field(0.9, ge=0, lt=1)
    batch: int = Field(48, ge=1)
    seeds: int = Field(1, ge=0)
    pilot: bool = False
    every: int = Field(5, ge=1)
    samples: int = Field(4, ge=1)
    rounds: int = Field(3, ge=0)

    @field_validator("rates")
    @classmethod
    def _some(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if not rates or not all(rate > 0 for rate in rates) or len(set(rates)) != len(rates):
            raise ValueError("expected distinct learning rates above 0")
        return rates

    @property
    def size(self) -> str:
        """How much is measured, in words."""
        tried = f"{len(self.rates)} rates tried for {self.trial} steps, " if self.tried else ""
        runs = self.seeds + self.pilot
        return (
            f"{tried}{runs} runs of {self.updates} steps of {self.prompts} prompts x {self.group} "
            f"samples, {self.samples} samples a judged prompt every {self.every} steps"
        )

    @property
    def tried(self) -> bool:
        """Whether the rate is chosen."""
        return len(self.rates) > 1

    @property
    def place(self) -> str:
        """Which cell of its estimator this is, in words."""
        return f"{self.updates} steps"


AnyProtocol = (
    Protocol | Robustness | InterfaceProtocol | CostProtocol | AlignProtocol | TrainProtocol
)

PROTOCOLS: dict[str, type[AnyProtocol]] = {
    "value": Protocol,
    "robustness": Robustness,
    "interface": InterfaceProtocol,
    "cost": CostProtocol,
    "align": AlignProtocol,
    "train": TrainProtocol,
}
