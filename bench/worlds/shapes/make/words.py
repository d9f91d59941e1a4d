"""The tokenizer: one token a word of the grammar."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from bench.worlds.shapes.captions import WORDS

LENGTH = 18  # the longest caption has 15 words; begin and end
PAD, BEGIN, END, UNKNOWN = "<pad>", "<begin>", "<end>", "<unknown>"
SPECIAL = (PAD, UNKNOWN, BEGIN, END)  # 2 must not be the end: CLIP's text tower reads that as old


def tokenizer() -> PreTrainedTokenizerFast:
    """Text to LENGTH tokens: begin, words, end, padding."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    words.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        special_tokens=[(BEGIN, vocabulary[BEGIN]), (END, vocabulary[END])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=LENGTH,
    )


def text_config(width: int, layers: int, heads: int) -> dict[str, int]:
    """Settings of a CLIP text tower that reads this tokenizer."""
    return {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": LENGTH,
        "pad_token_id": SPECIAL.index(PAD),
        "bos_token_id": SPECIAL.index(BEGIN),
        "eos_token_id": SPECIAL.index(END),
    }
