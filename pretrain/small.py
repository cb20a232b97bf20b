"""Small models and their encoders from a config: linear models and BiLSTMs, which no text but that
of their own task trains.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import flax.linen as nn

from pretrain.config import Reader
from pretrain.data import encoders, labels
from pretrain.data.ngrams import NgramFeatures, NgramOptions
from pretrain.data.words import KNOWN, WordEncoder, WordIndex
from pretrain.errors import UserError
from pretrain.models.bilstm import BiLSTM, BiLSTMConfig
from pretrain.models.heads import Classifier, Tagger
from pretrain.models.linear import HashedLinear

POOLS = ("mean", "first", "last")


def make_encoder(
    config: Reader,
    splits: dict[str, list[dict]],
    label_names: Sequence[str],
    unlabelled: Sequence[dict],
) -> encoders.FeatureEncoder | WordEncoder:
    """The encoder of a run, fitted on its training split and the texts that a teacher labels."""
    if config.model.name == "linear":
        return _feature_encoder(config, splits["train"], label_names, unlabelled)
    return _word_encoder(config, splits, label_names, unlabelled)


def make_model(config: Reader, num_classes: int) -> nn.Module:
    """The model of a config with its head: class logits of a batch."""
    model, objective = config.model, config.objective
    if model.name == "linear":
        options = _classifier_options(model) if objective.name == "classify" else ()
        return HashedLinear(model.num_features, num_classes, *options)
    fields = {field.name: model[field.name] for field in dataclasses.fields(BiLSTMConfig)}
    trunk = BiLSTM(BiLSTMConfig(**fields))
    if objective.name == "tag":
        return Tagger(trunk, num_classes, objective.head_dropout)
    pool = objective.pool or POOLS[0]
    if pool not in POOLS:
        raise UserError(
            f"config.objective.pool: found {pool!r} with model.name 'bilstm', "
            f"expected one of {', '.join(POOLS)}"
        )
    return Classifier(trunk, num_classes, pool, objective.head_dropout)


def _classifier_options(model: Reader) -> tuple[int, float]:
    """``embedding_size`` and ``beta``; `UserError` where they do not go with the rest."""
    if model.embedding_size and model.weighting == "naive_bayes":
        raise UserError(
            f"config.model.embedding_size: found {model.embedding_size} with weighting "
            "'naive_bayes', expected 0: a feature has a weight for each class, its embedding none"
        )
    if model.embedding_size and model.beta < 1.0:
        raise UserError(
            f"config.model.beta: found {model.beta} with embedding_size {model.embedding_size}, "
            "expected 1.0: it is of the weights of features, which have embeddings instead"
        )
    return model.embedding_size, model.beta


def _feature_encoder(
    config: Reader, examples: list[dict], label_names: Sequence[str], unlabelled: Sequence[dict]
) -> encoders.FeatureEncoder:
    task, model = config.objective.name, config.model
    if task == "tag":
        options = {"num_features": model.num_features, "window": model.window}
        return encoders.FeatureEncoder(task, label_names, **options)
    options = {name: model[name] for name in ("num_features", "lowercase", "weighting")}
    for name in ("ngrams", "char_ngrams"):  # what is not used is not read either
        longest = model[name]
        options[name] = (model[f"min_{name}"] if longest else 0, longest)
    for name, weighting in (("sublinear_tf", "tfidf"), ("smoothing", "naive_bayes")):
        if model.weighting == weighting:
            options[name] = model[name]
    ngrams = NgramFeatures(NgramOptions(**options))
    classes = labels.class_ids(examples, label_names, "data.train")
    texts = [example["text"] for example in (*examples, *unlabelled)]
    ngrams.fit(texts, classes, len(label_names))
    return encoders.FeatureEncoder(
        task, label_names, num_features=model.num_features, ngrams=ngrams
    )


def _word_encoder(
    config: Reader,
    splits: dict[str, list[dict]],
    label_names: Sequence[str],
    unlabelled: Sequence[dict],
) -> WordEncoder:
    """With ``init_from`` its words, which go with its weights."""
    task, model = config.objective.name, config.model
    longest = [labels.row_lengths(examples, WordIndex()).max() for examples in splits.values()]
    seq_len = labels.fit_length(longest, config.train.seq_len)
    word_length = model.word_length
    settings = {
        "num_words": model.vocab_size - KNOWN,
        "min_count": model.min_count,
        "word_length": 0 if model.characters == "none" else word_length,
    }
    if config.init_from:
        source = encoders.load(pathlib.Path(config.init_from))
        known = {name: getattr(source, name) for name in ("words", "characters", "word_length")}
        return WordEncoder(task, label_names, seq_len=seq_len, **known)
    examples = [*splits["train"], *unlabelled]
    return WordEncoder.fit(examples, task, label_names, seq_len=seq_len, **settings)
