"""Writes a run's model and tokenizer as a folder that the `transformers` library loads.

    python -m tools.export_hf WORKDIR DST_DIR

AutoModel...from_pretrained(DST_DIR) gives the same hidden states and logits,
AutoTokenizer.from_pretrained(DST_DIR) the same ids. It takes the parameters that the run stands
for: the best step by validation where the run keeps one, else the last.
"""

import pathlib

import jax
import numpy as np

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

LM, CLASSIFICATION, TAGGING, DISCRIMINATOR = HEADS
_IDS = ("bos", "eos", "cls", "sep")  # special tokens of which config.json knows
OBJECTIVE_HEADS = {
    "mlm": LM,
    "causal": LM,
    "denoising": LM,
    "rtd": DISCRIMINATOR,
    "classify": CLASSIFICATION,
    "tag": TAGGING,
    "none": "",
}


def export(workdir: pathlib.Path, directory: pathlib.Path) -> str:
    """Writes the folder, which must not exist or be empty; returns the class of transformers."""
    check_new_folder(directory, "DST_DIR")
    config = tasks.read_config(workdir)
    if "model_type" in config:
        raise UserError(
            f"WORKDIR: {workdir} is a Hugging Face checkpoint, expected the workdir of a run "
            "(tools.import_hf makes one of it)"
        )
    if config.model.name == "linear":
        raise UserError("config.model.name: found 'linear', expected a transformer")
    about = read_json(workdir / encoders.ABOUT)
    pieces = encoders.load(workdir).tokenizer if has_tokenizer(workdir) else None
    options = tasks.backbone_options(config, pieces)
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.local_devices()[:1])
    params = jax.tree.map(np.asarray, load_params(workdir, mesh)[0])
    objective = config.objective.name
    given = {"head": OBJECTIVE_HEADS[objective], "label_names": about["label_names"]}
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
    architecture = export(workdir, directory)
    tokens = "with its tokenizer" if has_tokenizer(workdir) else "without a tokenizer"
    print(f"wrote {directory}: {architecture}, {tokens}")


if __name__ == "__main__":
    cli.main(main, __doc__, positional=True)
