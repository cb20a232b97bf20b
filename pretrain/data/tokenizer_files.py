"""The tokenizer files of Hugging Face checkpoints, read as ``AutoTokenizer`` reads them.

`read` gives a *document*, the content of a ``tokenizer.json`` (the `tokenizers` library's own
format), and a *config*, that of ``tokenizer_config.json``. What ``AutoTokenizer`` changes in the
first because of the second is done here, on the document, so that the document alone says which
ids a text gets.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from pretrain.errors import UserError

Document = dict[str, Any]
Config = dict[str, Any]

TOKENIZER, CONFIG, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
# In the order in which AutoTokenizer gives ids to those that the vocabulary lacks.
NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))

_WORDPIECE, _BYTE_LEVEL = ("vocab.txt",), ("vocab.json", "merges.txt")
_PICKLES = ("vocab.pkl", "vocab.bin")
_BERT = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_ROBERTA = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
# Special tokens that a class has where the files name none.
_DEFAULTS: dict[str, Mapping[str, str]] = {
    "BertTokenizer": _BERT,
    "DistilBertTokenizer": _BERT,
    "ElectraTokenizer": _BERT,
    "MobileBertTokenizer": _BERT,
    "RobertaTokenizer": _ROBERTA,
    "BartTokenizer": _ROBERTA,
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "T5Tokenizer": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
}
# The class that goes with the model_type of config.json, where tokenizer_config.json names none.
_CLASSES = {name.removesuffix("Tokenizer").lower(): name for name in _DEFAULTS}
_GENERIC = "PreTrainedTokenizerFast"


def is_in(folder: Path) -> bool:
    """Whether a folder holds the files of a tokenizer that `read` reads."""
    files = ((TOKENIZER,), _WORDPIECE, _BYTE_LEVEL)
    return any(all((folder / name).is_file() for name in names) for names in files)


def read(path: str | Path) -> tuple[Document, Config]:
    """Reads a tokenizer.json with the files beside it, or a folder.

    A folder without tokenizer.json has vocab.txt (WordPiece) or vocab.json and merges.txt
    (byte-level BPE).

    Raises:
      UserError: on a folder with none of these, and on files that are no tokenizer.
    """
    path = epath.Path(path)
    folder = path if path.is_dir() else path.parent
    config = _config(folder)
    if path.is_dir() and (path / TOKENIZER).is_file():
        path = path / TOKENIZER
    if not path.is_dir():
        document = _read_json(path)
        if not isinstance(document.get("model"), dict) or not document["model"].get("vocab"):
            raise UserError(f"tokenizer.path: {path} holds no model.vocab; expected a tokenizer")
        config.setdefault("tokenizer_class", _GENERIC)
    elif all((path / name).is_file() for name in _WORDPIECE):
        config.setdefault("tokenizer_class", "BertTokenizer")
        document = _wordpiece(path, config)
    elif all((path / name).is_file() for name in _BYTE_LEVEL):
        document = _byte_level(path, config)
    else:
        raise _nothing_in(path)
    _apply_config(document, config)
    _add_tokens(document, config, _listed_tokens(config, folder))
    if _class(config) == "LlamaTokenizer":
        document["post_processor"] = _llama_template(document, config)
    return document, config


def special_text(config: Config, name: str) -> str | None:
    """The text of the special token ``name``, as "mask_token"; None where there is none."""
    return _content(config.get(name))


def _content(token: Any) -> Any:
    return token["content"] if isinstance(token, dict) else token


def _class(config: Config) -> str:
    return config["tokenizer_class"].removesuffix("Fast")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"tokenizer.path: {path} does not exist; expected a tokenizer") from error
    except ValueError as error:
        raise UserError(f"tokenizer.path: {path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"tokenizer.path: {path} holds no JSON object; expected one")
    return found


def _config(folder: Path) -> Config:
    """tokenizer_config.json with the special tokens of special_tokens_map.json and the class."""

    def optional(name: str) -> dict[str, Any]:
        return _read_json(folder / name) if (folder / name).is_file() else {}

    config = optional(CONFIG)
    if "added_tokens_decoder" not in config:  # as AutoTokenizer: newer files need no map
        config |= optional(SPECIAL)
    model = optional("config.json")
    found = config.get("tokenizer_class") or model.get("tokenizer_class")
    if found := found or _CLASSES.get(model.get("model_type", "").replace("_", "")):
        config["tokenizer_class"] = found
    return config


def _nothing_in(folder: Path) -> UserError:
    expected = (
        "expected tokenizer.json, or vocab.txt (WordPiece), or vocab.json and merges.txt "
        "(byte-level BPE), or tokenizer.model (of tools.tokenizer)"
    )
    for name in _PICKLES:
        if (folder / name).is_file():
            return UserError(
                f"tokenizer.path: {folder} holds {name}, Transformer-XL's pickled vocabulary, and "
                f"pickles are refused; {expected}"
            )
    for name in ("spiece.model", "sentencepiece.bpe.model"):
        if (folder / name).is_file():
            return UserError(
                f"tokenizer.path: {folder} holds {name} alone, which "
                f"transformers.AutoTokenizer.save_pretrained turns into tokenizer.json; {expected}"
            )
    return UserError(f"tokenizer.path: {folder} holds no tokenizer; {expected}")


# ---------------------------------------------------------------------- files before tokenizer.json


def _wordpiece(folder: Path, config: Config) -> Document:
    """BERT's tokenizer (Devlin et al., 2019) from its list of pieces."""
    lines = (folder / _WORDPIECE[0]).read_text(encoding="utf-8").split("\n")
    vocab = {piece: i for i, piece in enumerate(lines) if piece or i < len(lines) - 1}
    tokens = {name: _default(config, name) for name in ("unk_token", "cls_token", "sep_token")}
    for name, token in tokens.items():
        if token not in vocab:
            raise UserError(
                f"tokenizer.path: {folder / _WORDPIECE[0]} has no piece {token!r}; expected the "
                f"{name} of {folder / CONFIG}"
            )
    cls, sep = tokens["cls_token"], tokens["sep_token"]
    return {
        "version": "1.0",
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
            "strip_accents": config.get("strip_accents"),
            "lowercase": config.get("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": template(
            [cls, None, sep], [cls, None, sep, None, sep], {cls: vocab[cls], sep: vocab[sep]}
        ),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": tokens["unk_token"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }


def _byte_level(folder: Path, config: Config) -> Document:
    """Byte-level BPE (Radford et al., 2019) of GPT-2, or of RoBERTa and BART."""
    vocab = _read_json(folder / _BYTE_LEVEL[0])
    # The first line is a comment, behind the last merge there is a line's end.
    merges = (folder / _BYTE_LEVEL[1]).read_text(encoding="utf-8").split("\n")[1:-1]
    config.setdefault("tokenizer_class", "RobertaTokenizer" if "<s>" in vocab else "GPT2Tokenizer")
    bytes_ = {
        "type": "ByteLevel",
        "add_prefix_space": config.get("add_prefix_space", False),
        "trim_offsets": True,
        "use_regex": True,
    }
    after: dict[str, Any] = bytes_ | {"trim_offsets": False}
    if _class(config) != "GPT2Tokenizer":
        ends = {name: _default(config, f"{name}_token") for name in ("sep", "cls")}
        after = {
            "type": "RobertaProcessing",
            **{name: [text, vocab.get(text)] for name, text in ends.items()},
            "trim_offsets": True,
            "add_prefix_space": bytes_["add_prefix_space"],
        }
        for name, text in ends.items():
            if text not in vocab:
                raise UserError(
                    f"tokenizer.path: {folder / _BYTE_LEVEL[0]} has no piece {text!r}; expected "
                    f"the {name}_token of {folder / CONFIG}"
                )
    elif config.get("add_bos_token"):
        bos = _default(config, "bos_token")
        after = template([bos, None], [bos, None, None], {bos: vocab[bos]})
    return {
        "version": "1.0",
        "normalizer": None,
        "pre_tokenizer": bytes_,
        "post_processor": after,
        "decoder": bytes_,
        "model": {
            "type": "BPE",
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "vocab": vocab,
            "merges": [merge.split() for merge in merges],
        },
    }


def template(
    single: Iterable[str | None], pair: Iterable[str | None], ids: Mapping[str, int]
) -> dict[str, Any]:
    """A TemplateProcessing: special tokens by their text, None where a text stands.

    The second text of a pair, and what follows it, has token type 1.
    """

    def sequence(parts: Iterable[str | None]) -> list[dict[str, Any]]:
        steps, texts = [], 0
        for part in parts:
            texts += part is None
            kind = {"type_id": max(0, texts - 1)}
            if part is None:
                steps.append({"Sequence": {"id": "AB"[texts - 1], **kind}})
            else:
                steps.append({"SpecialToken": {"id": part, **kind}})
        return steps

    special = {text: {"id": text, "ids": [i], "tokens": [text]} for text, i in ids.items()}
    return {
        "type": "TemplateProcessing",
        "single": sequence(single),
        "pair": sequence(pair),
        "special_tokens": special,
    }


# ----------------------------------------------------------------------- what AutoTokenizer changes


def _default(config: Config, name: str) -> str | None:
    return _content(config.get(name, _DEFAULTS.get(_class(config), {}).get(name)))


def _apply_config(document: Document, config: Config) -> None:
    """Changes the document where the class takes the config's word over it."""
    document["truncation"] = document["padding"] = None
    normalizer, before = document.get("normalizer") or {}, document.get("pre_tokenizer") or {}
    if normalizer.get("type") == "BertNormalizer" and _DEFAULTS.get(_class(config)) is _BERT:
        normalizer["lowercase"] = config.get("do_lower_case", True)
        normalizer["strip_accents"] = config.get("strip_accents")
        normalizer["handle_chinese_chars"] = config.get("tokenize_chinese_chars", True)
    if before.get("type") == "ByteLevel":
        before["add_prefix_space"] = bool(config.get("add_prefix_space", False))
    for name, token in _DEFAULTS.get(_class(config), {}).items():
        config.setdefault(name, token)
    if _class(config) == "T5Tokenizer":
        extra = list(config.get("additional_special_tokens") or [])
        if not any("<extra_id_" in _content(token) for token in extra):
            extra += [f"<extra_id_{i}>" for i in range(config.get("extra_ids", 100))]
        config["additional_special_tokens"] = extra


def _listed_tokens(config: Config, folder: Path) -> list[Any]:
    """Added tokens that files beside the vocabulary list, in the order of their ids."""
    by_id = config.get("added_tokens_decoder", {})
    legacy = folder / "added_tokens.json"
    if by_id or not legacy.is_file() or (folder / TOKENIZER).is_file():
        return [by_id[i] for i in sorted(by_id, key=int)]
    ids = _read_json(legacy)
    return sorted(ids, key=ids.get)


def _add_tokens(document: Document, config: Config, listed: Iterable[Any]) -> None:
    """Adds the added tokens and the config's special ones that the document lacks."""
    named = [config.get(name) for name in NAMED]
    named += config.get("additional_special_tokens") or []
    special = {_content(token) for token in named}
    vocab = document["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: pieces with their scores
        vocab = {piece: i for i, (piece, _) in enumerate(vocab)}
    added = document["added_tokens"] = list(document.get("added_tokens") or [])
    known = {token["content"] for token in added}
    for token in [*listed, *named]:
        text = _content(token)
        if not text or text in known:
            continue
        known.add(text)
        options = token if isinstance(token, dict) else {}
        is_special = bool(options.get("special")) or text in special
        flags = {name: bool(options.get(name)) for name in ("single_word", "lstrip", "rstrip")}
        flags["normalized"] = bool(options.get("normalized", not is_special))
        new_id = max([len(vocab), *(1 + token["id"] for token in added)])
        known_id = vocab.get(text, new_id)
        added.append({"id": known_id, "content": text, **flags, "special": is_special})


def _llama_template(document: Document, config: Config) -> dict[str, Any]:
    """Llama's class makes its template from two options, whatever the document says."""
    ids = {token["content"]: token["id"] for token in document["added_tokens"]}
    bos = [special_text(config, "bos_token")] if config.get("add_bos_token", True) else []
    eos = [special_text(config, "eos_token")] if config.get("add_eos_token", False) else []
    single = [*bos, None, *eos]
    return template(single, [*single, *single], {text: ids[text] for text in [*bos, *eos]})
