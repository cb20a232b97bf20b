"""Writes a run's model and tokenizer as a folder that the `transformers` library loads.

    python -m tools.export_hf WORKDIR DST_DIR

AutoModel...from_pretrained(DST_DIR) gives the same hidden states and logits,
AutoTokenizer.from_pretrained(DST_DIR) the same ids. It takes the parameters that the run stands
for: the best step by validation where the run keeps one, else the last. A run that trained an
ELECTRA gives its discriminator, with --generator its generator.
"""

import pathlib

import jax
import numpy as np
from absl import flags

from pretrain import cli, hf, sharding, tasks
from pretrain.checkpoint import load_params
from pretrain.data import encoders
from pretrain.data.cache import atomic_directory
from pretrain.data.fast_tokenizer import FastTokenizer
from pretrain.data.tokenizer import AnyTokenizer, Tokenizer
from pretrain.data.tokenizer_export import export_tokenizer
from pretrain.data.tokenizer_files import NAMED, special_text
from pretrain.errors import UserError
from pretrain.files import check_new_folder, read_json
from pretrain.hf.family import HEADS
from pretrain.masked import generator_options
from pretrain.objectives.distill import model_params
from pretrain.objectives.rtd import generator_params
from pretrain.schema import SMALL_MODELS

PAIR, LM, CLASSIFICATION, TAGGING, DISCRIMINATOR = HEADS
_IDS = ("bos", "eos", "cls", "sep")  # special tokens of which config.json knows
OBJECTIVE_HEADS = {
    "mlm": LM,
    "causal": LM,
    **dict.fromkeys(("denoising", "spans", "infilling", "prefix", "recurrent"), LM),
    "rtd": DISCRIMINATOR,
    "classify": CLASSIFICATION,
    "tag": TAGGING,
    "none": "",
}


def export(workdir: pathlib.Path, directory: pathlib.Path, generator: bool = False) -> str:
    """Writes the folder, which must not exist or be empty; returns the class of transformers.

    ``generator``: that of a run with replaced-token detection, in place of the discriminator.
    """
    check_new_folder(directory, "DST_DIR")
    config = tasks.read_config(workdir)
    if "model_type" in config:
        raise UserError(
            f"WORKDIR: {workdir} is a Hugging Face checkpoint, expected the workdir of a run "
            "(tools.import_hf makes one of it)"
        )
    if (name := config.model.name) in SMALL_MODELS:
        raise UserError(f"config.model.name: found {name!r}, expected a transformer")
    if config.objective.name == "tag" and config.objective.crf:
        raise UserError(
            "config.objective.crf: found True, expected False: transformers has no model with a "
            "conditional random field"
        )
    about = read_json(workdir / encoders.ABOUT)
    pieces = encoders.load(workdir).tokenizer if has_tokenizer(workdir) else None
    options = tasks.backbone_options(config, pieces)
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.local_devices()[:1])
    params = model_params(jax.tree.map(np.asarray, load_params(workdir, mesh)[0]))
    objective = config.objective.name
    given = {"head": OBJECTIVE_HEADS[objective], "label_names": about["label_names"]}
    if generator:
        if "generator" not in params:
            raise UserError(f"--generator: {workdir} has none, expected a run of electra.py")
        section, given["head"] = config.objective, LM
        options = generator_options(options, section.generator_size, section.generator_layers)
        params = generator_params(params)
    params.pop("generator", None)
    if objective == "mlm" and config.objective.sentence_pairs:
        given["head"] = PAIR
    if objective == "classify":
        given["pool"] = tasks.pooling(config, options)
    if objective in ("classify", "tag"):
        given["head_dropout"] = config.objective.head_dropout
    if pieces is not None:
        given["special_ids"] = special_ids(pieces)
    elif (workdir / tasks.RESULT).is_file():  # a checkpoint that came without a tokenizer
        imported = read_json(workdir / tasks.RESULT).get("imported", {})
        given["special_ids"] = imported.get("special_ids")
    with atomic_directory(directory) as building:
        architecture = hf.save(building, options, params, **given)
        if pieces is not None:
            export_tokenizer(pieces, building, model_max_length=options.max_positions)
        if directory.is_dir():
            directory.rmdir()  # empty
    return architecture


def has_tokenizer(workdir: pathlib.Path) -> bool:
    """Whether the workdir has one; imported checkpoints may lack it."""
    names = (Tokenizer.file_name, FastTokenizer.file_name)
    return any((workdir / name).exists() for name in names)


def special_ids(pieces: AnyTokenizer) -> dict[str, int]:
    """``{"pad_token_id": 0, ...}``: what config.json says of the tokenizer."""
    if isinstance(pieces, Tokenizer):
        return {
            "pad_token_id": pieces.pad_id,
            "bos_token_id": pieces.cls_id,
            "eos_token_id": pieces.sep_id,
        }
    texts = {name: special_text(pieces.config, name) for name in NAMED if name[:3] in _IDS}
    ids = {f"{name}_id": pieces.pieces.index(text) for name, text in texts.items() if text}
    return ids | {"pad_token_id": pieces.pad_id}


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise UserError(f"found {len(arguments)} arguments, expected WORKDIR DST_DIR")
    workdir, directory = map(pathlib.Path, arguments)
    architecture = export(workdir, directory, flags.FLAGS.generator)
    tokens = "with its tokenizer" if has_tokenizer(workdir) else "without a tokenizer"
    print(f"wrote {directory}: {architecture}, {tokens}")


if __name__ == "__main__":
    flags.DEFINE_bool("generator", False, "Of an ELECTRA, the generator that made replacements.")
    cli.main(main, __doc__, positional=True)
