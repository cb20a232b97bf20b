"""Makes a workdir of a Hugging Face checkpoint, to start from in training, and to evaluate.

    python -m tools.import_hf SRC_DIR WORKDIR

SRC_DIR is as `save_pretrained` leaves it: config.json, model.safetensors (or shards with an index)
and the tokenizer's files. Its head decides what the workdir can do: a classifier or a tagger is
evaluated and predicts, a language model predicts and is trained on, a model without a head is
trained on (--config.init_from=WORKDIR) or embeds texts (tools.embed).
"""

import dataclasses
import hashlib
import logging
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags

from pretrain import cli, hf, record, state, trees
from pretrain import config as configs
from pretrain.checkpoint import LAST, Checkpointer
from pretrain.data import encoders, tokenizer, tokenizer_files
from pretrain.data.cache import atomic_directory
from pretrain.errors import UserError
from pretrain.files import check_new_folder, write_json
from pretrain.hf.files import read_json
from pretrain.monitor import Counters
from pretrain.tasks import CONFIG, RESULT

logger = logging.getLogger(__name__)

LONGEST = 512  # tokens of a row, if the model has positions for them
OBJECTIVES = {  # by head
    "": "none",
    "classification_head": "classify",
    "tagging_head": "tag",
    "discriminator_head": "rtd",
}


@dataclasses.dataclass(frozen=True)
class Imported:
    """What became of a checkpoint. ``pieces``: its tokenizer, None where it has none."""

    loaded: hf.reading.Loaded
    objective: str
    params: dict[str, int]
    pieces: tokenizer.AnyTokenizer | None

    def __str__(self) -> str:
        loaded, params, pieces = self.loaded, self.params, self.pieces
        rows = loaded.options.vocab_size
        kind = "none; commands that need one will say so"
        if pieces is not None:
            kind = f"{_kind(pieces)}, {pieces.vocab_size:,} pieces for {rows:,} embeddings"
        unused = f"{len(loaded.unused)}: {', '.join(loaded.unused)}" if loaded.unused else "none"
        return "\n".join(
            [
                f"family         {loaded.family.model_type}",
                f"architecture   {loaded.architecture}",
                f"objective      {self.objective}",
                f"parameters     {params['total']:,} ({params['embedding']:,} in embeddings)",
                f"tensors used   {len(loaded.used)}",
                f"unused         {unused}",
                f"tokenizer      {kind}",
                *([f"labels         {', '.join(loaded.label_names)}"] * bool(loaded.label_names)),
            ]
        )


def import_checkpoint(
    source: pathlib.Path, workdir: pathlib.Path, seq_len: int = 0, label: str = ""
) -> Imported:
    """Writes ``workdir``, which must not exist or be empty, from a checkpoint's folder.

    Args:
      source: a folder that ``save_pretrained`` wrote; further files in it do not matter.
      workdir: appears whole or not at all, with the checkpoint as step 0 of a finished run.
      seq_len: tokens of a row in evaluation; 0: `LONGEST`, or the model's positions.
      label: its name in reports; "": the architecture.
    """
    check_new_folder(workdir, "WORKDIR")
    loaded = hf.read(source)
    pieces = _tokenizer(source, loaded)
    longest = loaded.options.max_positions
    seq_len = seq_len or min(LONGEST, longest)
    if seq_len > longest:
        raise UserError(f"--seq_len: found {seq_len}, expected at most the model's {longest}")
    objective = _objective(loaded)
    config = _config(loaded, objective, seq_len, label)
    params = state.count_params(loaded.params)
    result = {
        "task": objective,
        "model": config.model.to_dict(),
        "label": config.label,
        "params": params,
        "init_from": None,
        "seed": config.seed,
        "data": {"tokenizer": pieces.fingerprint if pieces is not None else None},
        "environment": record.environment(),
        "imported": {
            "model_type": loaded.family.model_type,
            "architecture": loaded.architecture,
            "tensors": len(loaded.used),
            "unused": loaded.unused,
            "sha256": _digest(loaded.params),
            "special_ids": _special_ids(loaded) if pieces is None else {},
        },
        "scores": {},
        "selection": {"metric": None, "step": 0},
        "config_hash": configs.digest(config),
    }
    with atomic_directory(workdir) as building:
        write_json(building / CONFIG, config.to_dict())
        if pieces is not None:
            pieces.save(building / pieces.file_name)
        about = {"label_names": loaded.label_names, "seq_len": seq_len}
        kind = encoders.TokenEncoder.kind
        write_json(building / encoders.ABOUT, {"kind": kind, "task": objective, **about})
        checkpointer = Checkpointer(building / LAST)
        step = jnp.zeros((), jnp.int32)
        checkpointer.save(state.TrainState(step, loaded.params, {}), dataclasses.asdict(Counters()))
        checkpointer.close()
        write_json(building / RESULT, result)
        if workdir.is_dir():
            workdir.rmdir()  # empty
    return Imported(loaded, objective, params, pieces)


def _digest(params: dict[str, Any]) -> str:
    """SHA-256 (hex) of the names and values of parameters."""
    found = hashlib.sha256()
    for name, array in sorted(trees.flatten(params).items()):
        found.update(name.encode())
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()


def _objective(loaded: hf.reading.Loaded) -> str:
    """What our workdir learns and predicts, by the head; `UserError` for labels of other kinds."""
    if loaded.head in OBJECTIVES:
        found = loaded.config.get("problem_type")
        if loaded.head == "classification_head" and (
            found not in (None, "single_label_classification") or len(loaded.label_names) < 2
        ):
            raise UserError(
                f"{CONFIG}: problem_type: found {found!r} with {len(loaded.label_names)} labels, "
                "expected 'single_label_classification' with two or more"
            )
        return OBJECTIVES[loaded.head]
    if loaded.options.causal:
        return "causal"
    if loaded.family.model == "encoder_decoder":
        return "spans" if loaded.family.model_type == "t5" else "infilling"
    return "mlm"


def _config(loaded: hf.reading.Loaded, objective: str, seq_len: int, label: str) -> Any:
    """The config of a run that would have led to this model."""
    config = configs.base(model=loaded.family.model, objective=objective)
    for field in dataclasses.fields(loaded.options):
        config.model[field.name] = getattr(loaded.options, field.name)
    if loaded.head == "pair_head":
        config.objective.sentence_pairs, config.data.packing = "nsp", False
    if objective == "rtd":
        config.objective.generator_size = 0.0  # the discriminator comes alone
    if objective == "classify":
        config.objective.pool = loaded.family.pool
    if objective == "tag":
        config.objective.pooler = loaded.family.tag_pooler
    if objective in ("classify", "tag"):
        config.objective.head_dropout = _head_dropout(loaded)
    config.label = label or loaded.architecture
    config.data.train = config.data.validation = ""
    config.train.seq_len = seq_len
    configs.check(config)
    return config


def _head_dropout(loaded: hf.reading.Loaded) -> float:
    """Before the head's last layer, as the class of transformers has it."""
    if loaded.head == "classification_head" and loaded.family.pool == "last":
        return 0.0  # a plain matrix, whatever config.json says for taggers
    defaults = loaded.family.head_dropout
    values = (loaded.config.get(key, default) for key, default in defaults.items())
    key, rate = next(
        (pair for pair in zip(defaults, values, strict=True) if pair[1] is not None), ("", 0.0)
    )
    if not isinstance(rate, int | float):
        raise UserError(f"{CONFIG}: {key}: found {rate!r}, expected float")
    return float(rate)


def _special_ids(loaded: hf.reading.Loaded) -> dict[str, int]:
    """Those of config.json, which an export keeps where no tokenizer says them."""
    ids = {f"{name}_token_id" for name in ("pad", "bos", "eos", "sep", "cls")}
    return {key: i for key, i in loaded.config.items() if key in ids and isinstance(i, int)}


def _tokenizer(source: pathlib.Path, loaded: hf.reading.Loaded) -> tokenizer.AnyTokenizer | None:
    """That of the folder, if it has one."""
    names = (tokenizer.Tokenizer.file_name, "spiece.model", "sentencepiece.bpe.model")
    if not tokenizer_files.is_in(source) and not any((source / n).is_file() for n in names):
        return None
    pieces = tokenizer.load(source)
    if pieces.vocab_size > (rows := loaded.options.vocab_size):
        raise UserError(
            f"{source}: the tokenizer has {pieces.vocab_size} pieces, expected at most the {rows} "
            "rows of the word embedding (vocab_size)"
        )
    return pieces


def _kind(pieces: tokenizer.AnyTokenizer) -> str:
    if isinstance(pieces, tokenizer.Tokenizer):
        return "SentencePiece"
    return pieces.document["model"].get("type", "tokenizer.json")


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise UserError(f"found {len(arguments)} arguments, expected SRC_DIR WORKDIR")
    source, workdir = map(pathlib.Path, arguments)
    if (workdir / CONFIG).is_file() and "model_type" in read_json(workdir / CONFIG):
        raise UserError(
            f"WORKDIR: {workdir} is a Hugging Face checkpoint; the order is SRC_DIR WORKDIR"
        )
    values = flags.FLAGS
    if values.seq_len < 0:
        raise UserError(f"--seq_len: found {values.seq_len}, expected at least 1, or 0")
    print(import_checkpoint(source, workdir, values.seq_len, values.label))
    print(f"wrote          {workdir}")


if __name__ == "__main__":
    flags.DEFINE_integer(
        "seq_len", 0, f"Tokens of a row in evaluation; 0: {LONGEST}, or the model's positions."
    )
    flags.DEFINE_string("label", "", "Its name in reports; default: the architecture.")
    cli.main(main, __doc__, positional=True)
