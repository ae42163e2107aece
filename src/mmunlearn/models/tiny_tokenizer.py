"""A small byte-level tokenizer that is learned from a corpus, with the special tokens of a model family."""

from collections.abc import Iterable, Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


def train_tokenizer(
    corpus: Iterable[str],
    *,
    vocabulary: int,
    max_length: int,
    special: Sequence[str],
    names: Mapping[str, str],
    last: Sequence[str] = (),
    layout: str = "USER: {0}\nASSISTANT: {0}",
    split_lines: bool = True,
) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE tokenizer.

    Args:
        corpus: texts from which the vocabulary is learned; any other text can still be encoded.
        vocabulary: number of tokens, `special` among them, `last` not.
        max_length: `model_max_length`.
        special: special tokens; the first ids.
        names: what special tokens are for: pad_token, eos_token, bos_token, or a name by which a processor asks for them. A
            `bos_token` is written before every text, as the published tokenizers do.
        last: special tokens whose ids come behind all others.
        layout: each text is learned inside these words, so that they become single tokens too.
        split_lines: keep line breaks apart from each other and from words, so that a prompt that ends in them is a prefix.
    """
    tokenizer = Tokenizer(models.BPE())
    # Digits one by one and a space glued to the word behind it, so that "ASSISTANT:" + " answer" splits at the boundary.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *([pre_tokenizers.Split("\n", "isolated")] if split_lines else []),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((layout.format(text) for text in corpus), trainer)
    if last:
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in last])
    bos = names.get("bos_token")
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    own = {name: token for name, token in names.items() if name in ("pad_token", "eos_token", "bos_token")}
    others = {name: token for name, token in names.items() if name not in own}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, extra_special_tokens=others, **own)
