"""Prompts' embeddings whose encoders come for a moment and go: T5 alone takes 9.5 GB.

What was encoded once is kept on disk, so that of all the processes of a suite only the first loads
the encoders, and none keeps them beside the transformer.
"""

import gc
import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from stitchvm.backbone import Prompts
from stitchvm.models.texts import EMBEDS, Text, Texts
from stitchvm.saved import put


class RememberedTexts(Texts):
    """Embeds prompts by encoders that are read when an unknown one comes, and then forgotten.

    Args:
        read: Reads the encoders.
        folder: Where embeddings are kept, a file each.
        identity: Of the encoders and their precision: others have other files.
        length: Tokens of the T5 part.
        expected: Prompts to encode as well whenever encoders are read.
        place: Where encoders run; None: where embeddings are asked for.
    """

    def __init__(
        self,
        read: Callable[[], Texts],
        folder: Path,
        identity: str,
        length: int,
        expected: Callable[[], Prompts] = tuple,
        place: torch.device | None = None,
    ) -> None:
        super().__init__(None, length)
        self.read, self.folder, self.identity = read, folder, identity
        self.expected, self.place = expected, place

    def encode(self, prompt: str, device: torch.device) -> Text:
        """The embedding of one prompt, (1, L, D) and (1, P); asks for the expected ones too.

        Raises:
            ValueError: if the tokenizer does not know a word.
        """
        if not self._file(prompt).is_file():
            self._make([prompt], device)
        kept = load_file(self._file(prompt), device=str(device))
        return Text(*(kept[name] for name in EMBEDS))

    def forward(self, c: Prompts, like: Tensor) -> Text:
        """Embeddings of prompts, in the dtype and on the device of a tensor.

        Raises:
            ValueError: if the tokenizer does not know a word.
        """
        unknown = [prompt for prompt in c if prompt not in self._seen]
        with torch.inference_mode(mode=False), torch.no_grad():  # what is kept serves autograd
            if missing := [prompt for prompt in unknown if not self._file(prompt).is_file()]:
                self._make(missing, like.device)
            for prompt in unknown:
                tokens, pooled = self.encode(prompt, like.device)
                self._seen[prompt] = Text(tokens[0], pooled[0])
        return super().forward(c, like)

    def _encode(self, prompt: str) -> Text:
        tokens, pooled = self.encode(prompt, torch.device("cpu"))
        return Text(tokens[0], pooled[0])

    def _file(self, prompt: str) -> Path:
        name = hashlib.sha256(f"{self.identity} {self.length} {prompt}".encode()).hexdigest()
        return self.folder / f"{name[:32]}.safetensors"

    def _make(self, prompts: Prompts, device: torch.device) -> None:
        """Encode prompts, and all expected ones that are not there, and forget the encoders."""
        if device.type == "meta":
            raise ValueError("expected a device with numbers to encode prompts on, got meta")
        device = self.place or device
        self.folder.mkdir(parents=True, exist_ok=True)
        texts = self.read().to(device)
        for one in dict.fromkeys([*prompts, *self.expected()]):
            if not self._file(one).is_file():
                rows = texts([one], torch.empty((), dtype=_dtype_of(texts), device=device))
                named = zip(EMBEDS, rows, strict=True)
                put(self._file(one), save({name: x.cpu().contiguous() for name, x in named}))
        del texts
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _dtype_of(texts: Texts) -> torch.dtype:
    return next(texts.encoders.parameters()).dtype
