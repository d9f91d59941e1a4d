"""The shapes world: trained networks, their rewards, and truth from a bank of clean latents."""

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from bench.worlds.quiet import quietly
from bench.worlds.shapes.bank import Bank, pick
from bench.worlds.shapes.banks import Banks
from bench.worlds.shapes.captions import admitted, parse, seen, told
from bench.worlds.shapes.evaluation import EVALUATIONS
from bench.worlds.shapes.prompts import prompt_set, training_set
from bench.worlds.shapes.reference import Reference, ReferenceTruth
from bench.worlds.shapes.reference import load as load_reference
from bench.worlds.shapes.scenes import draw, render
from bench.worlds.shapes.verifier import correct
from bench.worlds.shapes.weights import verify
from stitchvm.backbone import NULL, Backbone, Prompts
from stitchvm.evaluation import Evaluation
from stitchvm.models import aesthetic, clip, lora, sd3
from stitchvm.models.clip import ClipTower
from stitchvm.models.folder import load_network
from stitchvm.models.sd3 import Sd3Backbone
from stitchvm.reward import Features, Reward
from stitchvm.streams import Streams
from stitchvm.value import EmbeddingEstimator, Target, ValueEstimator
from stitchvm.world import Certainty, Drawn, Finish, Shown, Split, World

TOWERS = {"clip": "clip", "aesthetic": "clip", "hps": "hps", "pick": "pick"}  # whose embedding
GENERATORS = ("large", "small")
TRAINED = Path(__file__).parent / "trained"  # value models of the large generator
REFERENCE = "reference.safetensors"
AT_ONCE = 256  # images
JUDGES = ("pick",)  # held out: nothing is trained or guided by them


class ShapesWorld(World):
    """A miniature of SD 3.5, CLIP and their rewards, on captioned scenes of flat shapes.

    Args:
        generator: `large`, or the `small` one on the same latents.
        members: Of the bank behind the `data` posterior.
        prompt_members: Of the bank behind each prompt's posterior.
        prompts: The `eval` or the `tune` prompts.
        per_kind: Prompts of each kind.
        folder: Of the weights.
        device: Where to compute.

    Raises:
        FileNotFoundError: if weights are missing.
        ValueError: if they are not what their digests say.
    """

    name = "shapes"
    rewards = tuple(r for r in TOWERS if r not in JUDGES)
    judges = JUDGES
    tiny: Backbone

    def __init__(
        self,
        *,
        generator: str,
        members: int,
        prompt_members: int,
        prompts: str,
        per_kind: int,
        folder: Path,
        device: str,
    ) -> None:
        if generator not in GENERATORS:
            raise ValueError(f"expected a generator in {GENERATORS}, got {generator!r}")
        self.folder, self.device, self.generator = folder, device, generator
        self.version = verify(folder)
        self.digest = f"{self.version}-{generator}-{members}-{prompt_members}"
        self._generator = self._load(generator)
        self.backbone = self._generator  # what is asked; it may be wrapped
        tiny = load_network(AutoencoderTiny, folder / "tiny", torch.float32).to(device)
        self.tiny = self._generator.with_decoder(tiny)
        self.members, self.prompt_members = members, prompt_members
        self.prompts = prompt_set(prompts, per_kind)  # type: ignore[arg-type]
        self.tuning = prompt_set("tune", per_kind) if prompts == "eval" else ()
        self._rewards: dict[str, ClipTower] = {}
        towers = {t: lambda t=t: self.reward(t) for t in dict.fromkeys(TOWERS.values())}
        self.banks = Banks(self.backbone, towers, folder / "banks", self.version)

    def admit(self, c: Prompts) -> None:
        """Refuse captions that grammar or data cannot say.

        Raises:
            ValueError: naming one.
        """
        for caption in c:
            admitted(caption)

    def _load(self, generator: str) -> Sd3Backbone:
        vae = self.folder / "large" / "vae"
        return sd3.load(self.folder / generator, vae=vae, text_length=0, device=self.device)

    def other(self, generator: str) -> Backbone:
        """The `large` or the `small` one.

        Raises:
            ValueError: for another.
        """
        if generator not in GENERATORS:
            raise ValueError(f"expected a generator in {GENERATORS}, got {generator!r}")
        return self._load(generator)

    def training(self, count: int) -> tuple[str, ...]:
        """Captions of training scenes, none among the `tune` and `eval` prompts."""
        known = training_set(count)
        if not set(known) & set(self.prompts):
            return known
        more = training_set(count + len(self.prompts))
        return tuple(text for text in more if text not in self.prompts)[:count]

    def trainable(self, rank: int, seed: int) -> Backbone:
        """With LoRA on all attention."""
        return lora.adapted(self._generator, rank, seed=seed)

    def reward(self, name: str) -> Reward:
        """The reward of that name: clip, aesthetic, hps, or the held-out judge pick.

        Raises:
            ValueError: for any other name.
        """
        if name not in TOWERS:
            raise ValueError(f"expected a reward in {tuple(TOWERS)}, got {name!r}")
        if name not in self._rewards:
            with quietly():
                self._rewards[name] = self._load_reward(name)
        return self._rewards[name]

    def _load_reward(self, name: str) -> ClipTower:
        tower = self.folder / TOWERS[name]
        if name == "aesthetic":
            head = self.folder / "aesthetic" / "head.safetensors"
            return aesthetic.load(tower, head, device=self.device)
        return clip.load(tower, scale=1.0, device=self.device)

    def trained(self, reward: str) -> dict[str, Path]:
        """Those in `trained/<reward>/` beside the weights that ship."""
        folders = sorted((TRAINED / reward).glob("*/*.json")) if reward in TOWERS else []
        return {file.parent.name: file.parent for file in folders}

    def called(self, reward: Reward) -> str | None:
        """The name of a reward, the judge's too; None for one that is not the world's."""
        return next((name for name, known in self._rewards.items() if known is reward), None)

    def tower(self, reward: Reward) -> str | None:
        """Whose embeddings in the banks a reward reads; None for one that is not the world's."""
        name = self.called(reward)
        return None if name is None else TOWERS[name]

    def bank(self, posterior: str, caption: str) -> Bank:
        """The bank behind a posterior.

        Raises:
            ValueError: for a caption that grammar or data cannot say, or another posterior.
        """
        if posterior not in {"data", "prompt"}:
            raise ValueError(f"expected the data or prompt posterior, got {posterior!r}")
        if posterior == "data" or caption == NULL:
            return self.banks.data(self.members)
        admitted(caption)
        return self.banks.prompt(caption, self.prompt_members)

    def draw(self, c: Prompts, rng: Streams) -> Tensor:
        """Clean latents of prompts, members of their banks, (B, *latent)."""
        out = torch.empty(len(c), *self.backbone.latent, device=self.device)
        for caption, rows in by_prompt(c).items():
            streams = Streams([rng.seeds[row] for row in rows])
            out[rows] = self.bank("prompt", caption).prior(streams).to(out)
        return out

    def images(self, split: Split, count: int) -> Iterator[Shown]:
        """Rendered scenes of the split that the networks were trained on, or of `tune`."""
        scenes = draw("train" if split == "train" else "tune", count)
        rng = torch.Generator().manual_seed(0)
        for first in range(0, count, AT_ONCE):
            part = scenes[slice(first, first + AT_ONCE)]
            said = [told(scene) for scene in seen(part)]
            p = (torch.tensor(list(captions.values())) for captions in said)
            chosen = [int(torch.multinomial(weights, 1, generator=rng)) for weights in p]
            c = [list(captions)[k] for captions, k in zip(said, chosen, strict=True)]
            yield Shown(render(part).to(self.device), c)

    def evaluation(self, reward: Reward, items: int) -> Evaluation | None:
        """Of clip, hps and aesthetic: on the first scenes of the `eval` split."""
        make = EVALUATIONS.get(self.called(reward) or "")
        return None if make is None else make(items, self.device)

    def ceiling(self, reward: Reward, tested: Tensor) -> EmbeddingEstimator:
        """Under the bank behind the `data` posterior, the tested latents among its members."""
        return BankEmbedding(self, reward, tested)

    @torch.no_grad()
    def pictures(self, z_0: Tensor) -> Tensor:
        """Decoded, (B, 3, 32, 32)."""
        return self.backbone.decode(z_0).clamp(-1, 1)

    @torch.no_grad()
    def seen(self, z_0: Tensor) -> Tensor:
        """CLIP's embedding of the decoded picture, of unit length, (B, D)."""
        return embedded(self, self.reward("clip"), z_0)

    def correct(self, z_0: Tensor, c: Prompts) -> Tensor:
        """What the verifier says of the decoded picture."""
        return correct(self.pictures(z_0), c)

    def kinds(self, c: Prompts) -> list[str]:
        """As GenEval has them."""
        return [parse(text).kind for text in c]

    def tilted_draws(self, reward: Reward, c: str, lam: float, rng: Streams) -> Drawn:
        """Members of the prompt's bank, weighted by exp(lambda r)."""
        bank = self.bank("prompt", c)
        r = BankTruth(self, reward, Target("soft", "prompt", lam)).rewards(bank, c)
        p = (bank.log_weights + lam * r).softmax(0)
        chosen = pick(p.expand(len(rng), -1), rng)
        return Drawn(bank.embeddings[TOWERS["clip"]][chosen], r[chosen])

    def truth(self, reward: Reward, target: Target) -> ValueEstimator | None:
        """The value under the bank's posterior; of the `model`, what was rolled out, or None."""
        if target.posterior == "model":
            return self._reference(reward, target)
        return BankTruth(self, reward, target)

    def reference(self) -> Reference:
        """Rollouts of the large generator at a few latents.

        Raises:
            FileNotFoundError: if the weights came without them.
        """
        path = self.folder / REFERENCE
        if not path.is_file():
            raise FileNotFoundError(f"expected rollouts in {path}, got no such file")
        return load_reference(path)

    def _reference(self, reward: Reward, target: Target) -> ValueEstimator | None:
        name = self.called(reward)
        if name is None or target.value != "mean" or not (self.folder / REFERENCE).is_file():
            return None
        reference = self.reference()
        if target.kernel != reference.kernel or self.generator != "large":
            return None
        return ReferenceTruth(reference, name)

    def certainty(
        self, reward: Reward, target: Target, z_t: Tensor, t: Tensor, c: Prompts
    ) -> Certainty | None:
        """Effective members, and the variance that the bank adds to every squared error."""
        if target.posterior == "model":
            return None
        return BankTruth(self, reward, target).certainty(z_t, t, c)

    def posterior(self, posterior: str) -> Finish:
        """Exact draws from the bank's posterior."""

        def finish(z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None) -> Tensor:
            if rng is None:
                raise ValueError("expected rng, one stream per latent, got None")
            out = torch.empty_like(z_t)
            seen = c if posterior == "prompt" else [NULL] * len(c)
            for caption, rows in by_prompt(seen).items():
                streams = Streams([rng.seeds[row] for row in rows])
                time = t if t.ndim == 0 else t[rows]
                out[rows] = self.bank(posterior, caption).draw(z_t[rows], time, streams)
            return out

        return finish


def by_prompt(c: Prompts) -> dict[str, list[int]]:
    """Rows of each distinct prompt."""
    rows: dict[str, list[int]] = {}
    for row, caption in enumerate(c):
        rows.setdefault(caption, []).append(row)
    return rows


class BankTruth(ValueEstimator):
    """The mean or soft value under the posterior of the world's banks.

    Args:
        world: Whose banks.
        reward: One of the world's, or any other; that one then sees every member once.
        target: What to compute, under the `data` or `prompt` posterior.
    """

    def __init__(self, world: ShapesWorld, reward: Reward, target: Target) -> None:
        super().__init__()
        self.world, self.target, self.latent = world, target, world.backbone.latent
        self.reward = reward
        self._tower = world.tower(reward)
        self._embeddings: dict[int, Tensor] = {}
        self._known: dict[str, Tensor] = {}

    def forward(self, z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None = None) -> Tensor:
        """The value, (B,)."""
        found: dict[int, Tensor] = {}
        for caption, rows in by_prompt(c).items():
            bank, time = (
                self.world.bank(self.target.posterior, caption),
                t if t.ndim == 0 else t[rows],
            )
            values = bank.value(z_t[rows], time, self.rewards(bank, caption), self.target.lam)
            found |= dict(zip(rows, values.unbind(), strict=True))
        return torch.stack([found[row] for row in range(len(c))])

    def certainty(self, z_t: Tensor, t: Tensor, c: Prompts) -> Certainty:
        """How well the value is known at these latents."""
        out = Certainty(*(torch.empty(len(c), dtype=torch.float64) for _ in range(2)))
        for caption, rows in by_prompt(c).items():
            bank, time = (
                self.world.bank(self.target.posterior, caption),
                t if t.ndim == 0 else t[rows],
            )
            r = self.rewards(bank, caption)
            members, variance = bank.certainty(z_t[rows], time, r, self.target.lam)
            out.members[rows], out.variance[rows] = members.cpu(), variance.cpu()
        return out

    @torch.no_grad()
    def rewards(self, bank: Bank, caption: str) -> Tensor:
        """The reward of every member under a prompt, (M,), float64."""
        if caption not in self._known:
            e = self._members(bank)
            parts = [self.reward.score(part, [caption] * len(part)) for part in e.split(4096)]
            self._known[caption] = torch.cat(parts).double()
        return self._known[caption]

    def _members(self, bank: Bank) -> Tensor:
        """The reward's embedding of every member, (M, D)."""
        if self._tower is not None:
            return bank.embeddings[self._tower]
        if id(bank) not in self._embeddings:
            self._embeddings[id(bank)] = embedded(self.world, self.reward, bank.latents.float())
        return self._embeddings[id(bank)]


class BankEmbedding(EmbeddingEstimator):
    """The posterior mean embedding under the bank of all data, tested latents among its members.

    Args:
        world: Whose bank.
        reward: One of the world's, or any other; that one then sees every member once.
        tested: Clean latents to add, (B, *latent).
    """

    def __init__(self, world: ShapesWorld, reward: Reward, tested: Tensor) -> None:
        super().__init__()
        self.reward, self.latent = reward, world.backbone.latent
        self.target = Target(value="mean", posterior="data")
        bank, tower = world.bank("data", NULL), world.tower(reward)
        known = (
            embedded(world, reward, bank.latents.float())
            if tower is None
            else bank.embeddings[tower]
        )
        self.bank = bank.joined(tested)
        self.members = torch.cat([known, embedded(world, reward, tested)]).double()

    @torch.no_grad()
    def features(self, z_t: Tensor, t: Tensor, c: Prompts) -> Features:
        """The mean, which has no tokens and is shorter than 1."""
        e = self.bank.mean(z_t, t, self.members).to(z_t.dtype)
        return Features(e[:, None], e)


@torch.no_grad()
def embedded(world: ShapesWorld, reward: Reward, z_0: Tensor) -> Tensor:
    """A reward's embeddings of decoded latents, (B, D)."""
    parts = (world.backbone.decode(part) for part in z_0.split(128))
    return torch.cat([reward.features(x).embedding for x in parts])
