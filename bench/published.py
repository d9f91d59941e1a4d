"""Where published weights come from: repositories of the hub, at pinned revisions.

Licences are those their repositories state; they bind whoever downloads, and nothing of the
weights ships with this project.  Nothing slow is imported: a command line offers the names.
"""

from typing import NamedTuple

PIPELINE = (
    "model_index.json",
    "scheduler/*",
    "text_encoder*/*",
    "tokenizer*/*",
    "transformer/*",
    "vae/*",
)


class Source(NamedTuple):
    """Files of one repository.

    Attributes:
        repo: Owner and name.
        revision: Commit; None where none is pinned, and the newest is taken.
        files: Patterns of what is needed.
        licence: By name.
        gated: Whether the licence must be accepted there first.
    """

    repo: str
    revision: str | None
    files: tuple[str, ...]
    licence: str
    gated: bool = False


GENERATORS = {
    "sd35-medium": Source(
        "stabilityai/stable-diffusion-3.5-medium",
        "b940f670f0eda2d07fbb75229e779da1ad11eb80",
        PIPELINE,
        "Stability AI Community",
        gated=True,
    ),
    "sd35-large": Source(
        "stabilityai/stable-diffusion-3.5-large",
        "ceddf0a7fdf2064ea28e2213e3b84e4afa170a0f",
        PIPELINE,
        "Stability AI Community",
        gated=True,
    ),
    "flux-dev": Source(
        "black-forest-labs/FLUX.1-dev",
        "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
        PIPELINE,
        "FLUX.1 [dev] Non-Commercial",
        gated=True,
    ),
}
TINY_FILES = ("config.json", "*.safetensors")
TAESD3 = Source("madebyollin/taesd3", None, TINY_FILES, "MIT")
TAEF1 = Source("madebyollin/taef1", None, TINY_FILES, "MIT")
DECODERS = {"sd35-medium": TAESD3, "sd35-large": TAESD3, "flux-dev": TAEF1}

TOKENIZER = ("tokenizer*", "vocab*", "merges*", "special_tokens_map*")
SETTINGS = ("config.json", "preprocessor_config.json", *TOKENIZER)
CLIP_336 = Source(
    "openai/clip-vit-large-patch14-336",
    "ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
    (*SETTINGS, "pytorch_model.bin"),
    "none stated",
)
CLIP_224 = Source(
    "openai/clip-vit-large-patch14",
    "32bd64288804d66eefd0ccbe215aa642df71cc41",
    (*SETTINGS, "model.safetensors"),
    "none stated",
)
PICKSCORE = Source(
    "yuvalkirstain/PickScore_v1",
    "a4e4367c6dfa7288a00c550414478f865b875800",
    ("config.json", "model.safetensors"),
    "none stated",
)
DFN = Source(
    "apple/DFN5B-CLIP-ViT-H-14-378",
    "01b771ed0d1395ca5ffdd279897d665ebe00dfd2",
    ("open_clip_pytorch_model.bin",),
    "Apple Machine Learning Research Model (research only)",
)
HPS_FILES = {"hps-v2.0": "HPS_v2_compressed.pt", "hps-v2.1": "HPS_v2.1_compressed.pt"}
HPS = {
    name: Source("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a", (file,), "Apache-2.0")
    for name, file in HPS_FILES.items()
}
AESTHETIC_FILE = "aesthetic-model.pth"
AESTHETIC = Source(
    "trl-lib/ddpo-aesthetic-predictor",
    "cf4bd10345610935a80a5d3be9a3133c50f121e4",
    (AESTHETIC_FILE,),
    "Apache-2.0",
)
# All rewards but `clip` read texts by OpenAI's vocabulary, which comes with CLIP_224.
REWARDS = {
    "clip": (CLIP_336,),
    "dfn": (DFN, CLIP_224),
    "hps-v2.0": (HPS["hps-v2.0"], CLIP_224),
    "hps-v2.1": (HPS["hps-v2.1"], CLIP_224),
    "aesthetic": (AESTHETIC, CLIP_224),
    "pick": (PICKSCORE, CLIP_224),
}
