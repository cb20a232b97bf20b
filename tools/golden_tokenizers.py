# ruff: noqa: RUF001 (awkward on purpose)
"""Tiny tokenizers of every kind and the ids that ``AutoTokenizer`` gives: golden files of tests.

    python -m tools.golden_tokenizers tests/golden/tokenizers

Needs the `transformers` library (4.48.3). Each folder is what ``save_pretrained`` leaves, with
``ids.json``: ids of the page of awkward texts without and with special tokens, and of its words.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TEXTS = [
    "",
    " ",
    "  two  leading and   inner spaces  ",
    "The quick brown fox doesn't jump over 13 lazy dogs.",
    "Crème brûlée, naïve façade, Ångström, Łódź, straße, ﬁne",
    "e\u0301 a\u0308 n\u0303 o\u0302\u0323 \u1100\u1161\u11a8 か\u3099 q\u0301\u0323",
    "中文字符和日本語のテキスト、한국어 텍스트。",
    "\U0001f600 \U0001f469\u200d\U0001f4bb \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea ❤\ufe0f",
    "İstanbul ISTANBUL ıstanbul iStanbul ǅ ẞ Σίσυφος ΌΣΟΣ",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "x" * 250,
    "line one\nline two\r\n\tindented\n\n\nafter blank lines\n",
    "control \x00\x01\x07\x1b[31m\x7f\x85 characters \ufffd",
    "zero\u200bwidth\u200cnon\u200djoin\ufeff\u2060 soft\u00adhyphen nb\u00a0sp \u3000wide",
    "1234567890 3.14159 1,000,000 1e-5 ½ ² Ⅷ ①",
    "https://example.org/a_b?c=d&e=%20#f mail@example.org",
    "def f(x: int) -> str:\n    return f'{x!r}'  # comment\n",
    "[CLS] literal [SEP] special [MASK] tokens [PAD] </s> <s> <mask> <|endoftext|> <unk> <0x41>",
    "▁meta ▁▁space <extra_id_0> ##piece Ġbyte",
    "שָׁלוֹם عَرَبِيّ हिन्दी ไทย",
    "“quotes” — dashes… ´`¨ ½",
    "mixed中English文and１２３ｆｕｌｌ～width",
    "\U00020000\U0001d400 \ue000",
]
WORDS = [
    "Hello",
    ",",
    "world",
    "Crème",
    "中文",
    "\U0001f600",
    "don't",
    "x-y",
    "İ",
    "1,000",
    "[SEP]",
]
_CORPUS = [
    "the quick brown fox jumps over the lazy dog and the river runs to the sea in the winter",
    "a token is a piece of text and a word is made of one or more pieces of text, they say",
    "Crème brûlée and naïve façades in Ångström, 1234567890 numbers: 3.14 and 1,000 or 20%",
    "return the value of the function f(x) = [x + 1] / {y * 2}; if x < 0: raise the error!",
    "中文 日本語 текст на русском языке, ελληνικά κείμενα and some words in English",
    "Where is the House? What is there? Nothing but WORDS, Words, words. They're here: #1 @2 &3",
]


def main(folder: Path) -> None:
    write(folder)
    sizes = {path.name: _size(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    print("\n".join(f"{name}: {size / 1000:.0f} kB" for name, size in sizes.items()))


def write(folder: Path) -> None:
    """Writes every case into a folder of its name, and the texts into texts.json."""
    from transformers import AutoTokenizer

    for name, tokenizer in _cases():
        case = folder / name
        shutil.rmtree(case, ignore_errors=True)
        tokenizer.save_pretrained(case)
        found = _ids(AutoTokenizer, case)
        if any((case / file).exists() for file in ("vocab.txt", "vocab.json")):
            with tempfile.TemporaryDirectory() as bare:  # as checkpoints before tokenizer.json
                shutil.copytree(case, bare, dirs_exist_ok=True)
                (Path(bare) / "tokenizer.json").unlink()
                if _ids(AutoTokenizer, Path(bare)) != found:
                    raise SystemExit(f"{name}: other ids without tokenizer.json")
        _write_json(case / "ids.json", found)
    _write_json(folder / "texts.json", {"texts": TEXTS, "words": WORDS})


def _ids(auto: Any, folder: Path) -> dict[str, Any]:
    tokenizer = auto.from_pretrained(folder, split_special_tokens=True)
    byte_level = "ByteLevel" in str(tokenizer.backend_tokenizer.pre_tokenizer)
    prefix = {"add_prefix_space": True} if byte_level else {}
    of_words = auto.from_pretrained(folder, split_special_tokens=True, **prefix)
    special = {f"{name}_id": getattr(tokenizer, f"{name}_token_id") for name in _KINDS}
    return {
        "plain": tokenizer(TEXTS, add_special_tokens=False)["input_ids"],
        "special": tokenizer(TEXTS)["input_ids"],
        "words": of_words(WORDS, is_split_into_words=True, add_special_tokens=False)["input_ids"],
        "named": {name: i for name, i in special.items() if i is not None},
        "all_special_ids": sorted(set(tokenizer.all_special_ids)),
        "size": len(tokenizer),
    }


_KINDS = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=True) + "\n")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _cases() -> Iterator[tuple[str, Any]]:
    import transformers

    bert = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    roberta = ["<s>", "<pad>", "</s>", "<unk>"]
    uncased = _wordpiece(bert, lowercase=True)
    uncased.enable_truncation(8)  # as in files of sentence-transformers
    uncased.enable_padding(length=8)
    yield "bert_uncased", transformers.BertTokenizerFast(tokenizer_object=uncased)
    cased = _wordpiece(bert, lowercase=False)
    yield "bert_cased", transformers.BertTokenizerFast(tokenizer_object=cased, do_lower_case=False)
    for name in ("Roberta", "Bart"):
        kind = getattr(transformers, f"{name}TokenizerFast")
        yield name.lower(), kind(tokenizer_object=_byte_level([*roberta, "<mask>"], roberta=True))
    gpt2 = _byte_level(["<|endoftext|>"])
    yield "gpt2", transformers.GPT2TokenizerFast(tokenizer_object=gpt2)
    yield "modernbert", _modernbert()
    yield "llama", transformers.LlamaTokenizerFast(tokenizer_object=_llama())
    t5 = _t5(["<pad>", "</s>", "<unk>"])
    yield "t5", transformers.T5TokenizerFast(tokenizer_object=t5, extra_ids=3)


def _wordpiece(special: list[str], *, lowercase: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    before = pre_tokenizers.BertPreTokenizer()
    chars, words, ends = _parts(normalizer, before)
    pieces = [*special, *chars, *(f"##{c}" for c in chars), *words, *(f"##{e}" for e in ends)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, before
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = _template(tokenizer, "[CLS]", "[SEP]")
    return tokenizer


def _parts(normalizer: Any, before: Any) -> tuple[list[str], list[str], list[str]]:
    """Characters, short words and ends of long ones: the library's trainers of WordPiece and
    Unigram break ties at random, and these files are to come out the same again."""
    lines = [before.pre_tokenize_str(normalizer.normalize_str(text)) for text in _CORPUS]
    words = sorted({word for line in lines for word, _ in line})
    short = [word for word in words if 1 < len(word) < 6]
    ends = sorted({word[-3:] for word in words if len(word) > 5})
    return sorted(set("".join(words))), short, ends


def _template(tokenizer: Any, first: str, last: str) -> Any:
    from tokenizers import processors

    ends = [text for text in (first, last) if text]
    return processors.TemplateProcessing(
        single=f"{first} $A {last}".strip(),
        pair=f"{first} $A {last} $B:1 {last}:1".strip() if last else None,
        special_tokens=[(text, tokenizer.token_to_id(text)) for text in ends],
    )


def _byte_level(special: list[str], *, roberta: bool = False) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if roberta:
        ends = [(text, tokenizer.token_to_id(text)) for text in ("</s>", "<s>")]
        tokenizer.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
    return tokenizer


def _modernbert() -> Any:
    from tokenizers import AddedToken, normalizers
    from transformers import PreTrainedTokenizerFast

    names = ("unk", "cls", "sep", "pad", "mask")
    special = [f"[{name.upper()}]" for name in names]
    tokenizer = _byte_level(["<|padding|>", "<|endoftext|>", *special])
    tokenizer.add_tokens([AddedToken("    ", normalized=True)])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = _template(tokenizer, "[CLS]", "[SEP]")
    named = {f"{n}_token": text for n, text in zip(names, special, strict=True)}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
        **named | {"mask_token": AddedToken("[MASK]", lstrip=True, special=True)},
    )


def _llama() -> Any:
    """BPE with the 256 bytes behind the special tokens, as of a SentencePiece model."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    small = Tokenizer(models.BPE())
    small.pre_tokenizer = pre_tokenizers.Metaspace()
    small.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=220, show_progress=False))
    learned = json.loads(small.to_str())["model"]
    special = ["<unk>", "<s>", "</s>"]
    pieces = [*special, *(f"<0x{i:02X}>" for i in range(256)), *learned["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            [tuple(pair) for pair in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(special)
    return tokenizer


def _t5(special: list[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    steps = [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    normalizer, before = normalizers.Sequence(steps), pre_tokenizers.Metaspace()
    scores = dict.fromkeys(special, 0.0)
    for pieces, score in zip(_parts(normalizer, before), (-9.0, -5.0, -7.0), strict=True):
        scores |= {piece: score - i / 64 for i, piece in enumerate(pieces) if piece not in scores}
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=2, byte_fallback=False))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, before
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = _template(tokenizer, "", "</s>")
    return tokenizer


if __name__ == "__main__":
    main(Path(sys.argv[1]))
