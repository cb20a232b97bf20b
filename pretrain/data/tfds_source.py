"""Reads data sets that TensorFlow Datasets has prepared, without TensorFlow and without a network.

Only files with random access (ArrayRecord, Parquet) can be read that way. Nothing is ever
downloaded here: preparing a data set is a step of its own, see docs/data.md.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pretrain.data.reading import Reading, Request, check_columns, first_line, to_example
from pretrain.errors import UserError


def read(spec: str, request: Request) -> Reading:
    """``NAME[/CONFIG][:VERSION]:SPLIT`` or ``FOLDER:SPLIT`` (a folder with dataset_info.json)."""
    name, separator, split = spec.rpartition(":")
    shown = f"{request.key}=tfds:{spec}"
    if not separator or not name or not split:
        raise UserError(f"{shown}: expected tfds:NAME:SPLIT or tfds:/FOLDER:SPLIT")
    builder = _builder(name, shown)
    splits = list(builder.info.splits)
    if splits and split not in splits:
        raise UserError(f"{shown}: no split {split!r}; expected one of {', '.join(splits)}")
    check_columns(list(builder.info.features), request, shown)

    def examples() -> Iterator[dict]:
        decoders = {name: _decoder(builder.info.features[name]) for name in request.columns}
        for row, raw in enumerate(_data_source(builder, split, shown)):
            where = f"{shown}: example {row}"
            record = {name: _decoded(raw[name], decoders[name], where) for name in decoders}
            example = to_example(record, request, where)
            if example is not None:  # builders of CoNLL files append an empty sentence
                yield example

    def identity() -> str:
        size = builder.info.splits[split].num_examples if splits else "unknown"
        columns = ",".join(request.columns)
        return f"tfds {builder.info.full_name} {split} {size} {request.task} {columns}"

    return Reading(examples, identity)


def _builder(name: str, shown: str) -> Any:
    """The tfds.core.DatasetBuilder of a name or of a folder with a prepared data set."""
    import tensorflow_datasets as tfds

    try:
        if name.startswith((".", "/", "~")) or "://" in name:
            folder = name if "://" in name else Path(name).expanduser()
            return tfds.builder_from_directory(folder)
        try:
            return tfds.builder(name)
        except tfds.core.DatasetNotFoundError:
            # conll2003, wikipedia, c4, glue and others register with this import only.
            import tensorflow_datasets.text

            return tfds.builder(name)
    except tfds.core.DatasetNotFoundError:
        raise UserError(
            f"{shown}: TensorFlow Datasets knows no {name!r} and finds no prepared files of it"
        ) from None
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{shown}: cannot be opened: {first_line(error)}") from error


def _data_source(builder: Any, split: str, shown: str) -> Any:
    try:
        return builder.as_data_source(split)
    except (NotImplementedError, ValueError, AssertionError, OSError) as error:
        raise UserError(
            f"{shown}: not prepared for reading in {builder.data_dir}; where there is a network "
            '(and TensorFlow, which many builders need), run `python -c "import '
            f"tensorflow_datasets as tfds; tfds.builder('{builder.name}', "
            "file_format='array_record').download_and_prepare()\"` and copy the folder here "
            f"({first_line(error)})"
        ) from error


def _decoder(feature: Any) -> Callable[[Any], Any]:
    """A function from a stored value to text, a label name, or a list of either."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Sequence) and not isinstance(feature.feature, dict):
        decode = _decoder(feature.feature)
        return lambda values: [decode(value) for value in values]
    if isinstance(feature, tfds.features.ClassLabel):
        return lambda value: _label_name(feature, int(value))
    return _plain


def _label_name(feature: Any, value: int) -> str:
    if value < 0:  # unlabelled; int2str would count from the end
        raise ValueError(f"class {value} stands for an unknown label; expected 0 or more")
    return feature.int2str(value)


def _decoded(value: Any, decode: Callable[[Any], Any], where: str) -> Any:
    try:
        return decode(value)
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(f"{where}: {first_line(error)}") from error


def _plain(value: Any) -> Any:
    """A Python value for a NumPy one, text for UTF-8 bytes."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode("utf-8") if isinstance(value, bytes) else value
