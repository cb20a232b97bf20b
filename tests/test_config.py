"""Arguments, overrides, durations, hashes, and the view that knows what was read."""

import pytest
from ml_collections import ConfigDict

from pretrain import config as configs
from pretrain import schema
from pretrain.errors import UserError


def test_argument_is_typed_by_the_defaults():
    defaults = dict(variant="tiny", modern=False, seq=128, rate=0.5)
    assert configs.parse_arg(None, **defaults).to_dict() == defaults
    parsed = configs.parse_arg("small,modern,seq=256,rate=1", **defaults)
    assert parsed.to_dict() == dict(variant="small", modern=True, seq=256, rate=1.0)
    assert type(parsed.rate) is float
    assert configs.parse_arg("seq=64", **defaults).variant == "tiny"
    assert configs.parse_arg("modern", **defaults).modern
    assert not configs.parse_arg("modern=false", **defaults).modern


@pytest.mark.parametrize(
    "arg, said",
    [
        ("tiny,sequence=3", "'sequence=3' is not one of variant, modern, seq"),
        ("tiny,small", "'small' is not one of"),
        ("seq=long", "'seq': found 'long', expected int"),
        ("seq=", "'seq=' is not one of"),
        ("modern=maybe", "'modern': found 'maybe', expected bool"),
    ],
)
def test_wrong_arguments_say_what_is_known(arg, said):
    with pytest.raises(UserError, match="config argument") as caught:
        configs.parse_arg(arg, variant="tiny", modern=False, seq=128)
    assert said in str(caught.value)


def test_overrides_must_name_keys_and_have_their_type():
    config = configs.base()
    configs.set_key(config, "optimizer.lr", 1)
    assert config.optimizer.lr == 1.0 and type(config.optimizer.lr) is float
    configs.set_key(config, "data.packing", False)
    assert config.data.packing is False
    for key in ("optimizer.lrr", "nope", "train.batch_size.more", "seed.x"):
        with pytest.raises(UserError, match=f"unknown key '{key}'"):
            configs.set_key(config, key, 1)
    for key, value in (
        ("train.batch_size", 1.5),
        ("train.batch_size", True),
        ("train.budget", 100),
        ("data.packing", 1),
        ("optimizer.lr", "fast"),
        ("optimizer", 1),
    ):
        with pytest.raises(UserError, match=rf"config\.{key}: found {value!r}, expected"):
            configs.set_key(config, key, value)


def test_choices_decide_which_keys_there_are():
    assert "mask_rate" in configs.base(objective="mlm").objective
    assert "mask_rate" not in configs.base(objective="causal").objective
    assert "memory" in configs.base(optimizer="lbfgs").optimizer
    assert "tokenizer" not in configs.base(model="linear", objective="classify")
    for objective, columns in schema.COLUMNS.items():
        data = set(configs.base(objective=objective).data)
        assert data & {"text", "label", "tokens", "tags", "document"} == set(columns) - {"format"}
    with pytest.raises(UserError, match=r"objective\.name: found 'mlmm', expected one of mlm"):
        configs.base(objective="mlmm")
    with pytest.raises(AttributeError):
        configs.base().optimizer.lrr = 1.0


def test_load_runs_a_file_with_its_argument(tmp_path):
    file = tmp_path / "my.py"
    file.write_text(
        "from pretrain import config\n"
        "def get_config(arg=None):\n"
        "    c = config.base()\n"
        "    c.label = arg or 'none'\n"
        "    return c\n"
    )
    assert configs.load(str(file)).label == "none"
    assert configs.load(str(file), "a", {"seed": 3}).seed == 3
    with pytest.raises(UserError, match=r"no such file: .*other\.py"):
        configs.load(str(tmp_path / "other.py"))


def test_digest_depends_on_values_and_on_nothing_else():
    config = configs.base()
    again = ConfigDict(dict(reversed(config.to_dict().items())))
    assert configs.digest(config) == configs.digest(again)
    again.cache_dir = "/elsewhere"
    assert configs.digest(config) == configs.digest(again)
    assert configs.differences(config, again) == []
    again.optimizer.lr = 2e-3
    assert configs.digest(config) != configs.digest(again)
    # Pinned: another value means that finished studies no longer find their runs.
    small = ConfigDict({"b": {"x": 1.5, "a": True}, "a": "é", "cache_dir": "/tmp"})
    assert configs.flatten(small) == {"a": "é", "b.a": True, "b.x": 1.5, "cache_dir": "/tmp"}
    digest = "f2f681c193ab3ee0c8ac82b146d4f0fdd488d767a62541bd729baf8af3075f7d"
    assert configs.digest(small) == digest


def test_differences_name_the_keys_and_both_values():
    old, new = configs.base(), configs.base()
    new.optimizer.lr = 0.5
    new.data.train = "my.txt"
    assert configs.differences(old, new) == [
        "data.train: 'docstrings:corpus:train' there, 'my.txt' here",
        "optimizer.lr: 0.001 there, 0.5 here",
    ]
    assert configs.differences({"a": {"b": 1}}, {}) == ["a.b: 1 there, None here"]
    many = configs.differences(dict.fromkeys("abcdefgh", 1), {})
    assert len(many) == 6 and many[0] == "a: 1 there, None here" and many[-1] == "and 3 more"


def test_a_model_is_inherited_and_what_was_set_is_named():
    config = configs.base(objective="classify")
    config.model.num_layers = 7  # set, and not the source's
    config.model.ffn_size = 64  # set to what the source has
    config.model.dropout = 0.3  # kept
    source = configs.base().model.to_dict()
    source |= {"num_layers": 4, "ffn_size": 64, "hidden_size": 32, "dropout": 0.0, "newer": 1}
    before = config.to_dict()
    got, replaced = configs.inherit(config, source, keep=("dropout",))
    assert replaced == ["model.num_layers"]
    assert (got.model.num_layers, got.model.ffn_size, got.model.hidden_size) == (4, 64, 32)
    assert got.model.dropout == 0.3 and "newer" not in got.model
    assert config.to_dict() == before
    assert configs.inherit(configs.base(), configs.base().model.to_dict())[1] == []


@pytest.mark.parametrize(
    "text, amount, unit",
    [
        ("1000 steps", 1000, "steps"),
        ("1 step", 1, "steps"),
        ("2e6 tokens", 2e6, "tokens"),
        ("1.5e-1 Epochs", 0.15, "epochs"),
        ("10%", 10, "%"),
        (" 2.5 % ", 2.5, "%"),
        ("300seconds", 300, "seconds"),
        ("1e15 flops", 1e15, "flops"),
        ("12 examples", 12, "examples"),
    ],
)
def test_durations(text, amount, unit):
    assert configs.duration(text, "train.budget") == (pytest.approx(amount), unit)


@pytest.mark.parametrize(
    "text", ["", "1000", "steps", "0 steps", "-3 steps", "3 hours", "1.2.3 steps", "ten steps", 5]
)
def test_wrong_durations_name_the_key_and_the_units(text):
    with pytest.raises(UserError, match=r"config\.train\.budget: found .*steps, examples, epochs"):
        configs.duration(text, "train.budget")


def test_reader_knows_what_was_not_read():
    config = ConfigDict({"a": 1, "b": {"c": 2, "d": 3, "e": {"f": 4}}})
    read = configs.Reader(config)
    assert read.unread() == ["a", "b.c", "b.d", "b.e.f"]
    section = read.b
    assert read.unread() == ["a", "b.c", "b.d", "b.e.f"], "a section alone reads no leaf"
    assert section.c == 2 and section["d"] == 3
    assert read.unread() == ["a", "b.e.f"] and section.unread() == ["b.e.f"]
    assert dict(section.e) == {"f": 4}
    assert read.unread() == ["a"]
    with pytest.raises(AttributeError, match=r"config has no key b\.x"):
        _ = section.x


def test_keys_at_their_default_are_not_called_set():
    config = configs.base()
    config.tokenizer.path, config.tokenizer.vocab_size = "a.model", 400
    read = configs.Reader(config)
    assert read.unread() == ["tokenizer.path", "tokenizer.vocab_size"]
    assert read.tokenizer.path and read.unread() == ["tokenizer.vocab_size"]


def test_numbers_have_ranges():
    for model, objective, optimizer in (
        ("transformer", "mlm", "adamw"),
        ("transformer", "causal", "adamw"),
        ("linear", "tag", "adamw"),
    ):
        configs.check(configs.base(model, objective, optimizer))
    everything = set()
    for objective in schema.OBJECTIVES:
        for model in schema.MODELS if objective in ("classify", "tag") else ("transformer",):
            for optimizer in schema.OPTIMIZERS:
                everything |= configs.flatten(configs.base(model, objective, optimizer)).keys()
    assert {key for keys, *_ in configs.RANGES for key in keys} <= everything, "a range of no key"
    for key, value, said in (
        ("train.accumulate", 0, "found 0, expected at least 1"),
        ("train.batch_size", -8, "found -8, expected at least 0"),
        ("model.num_layers", 0, "found 0, expected at least 1"),
        ("model.dropout", 1.0, "found 1.0, expected from 0 to below 1"),
        ("objective.mask_rate", 0.0, "found 0.0, expected above 0, below 1"),
        ("optimizer.ema", float("nan"), "found nan, expected a finite number"),
        *((f"optimizer.{k}", float("inf"), "found inf, expected a fin") for k in ("lr", "eps")),
        ("optimizer.end", 2.0, "found 2.0, expected from 0 to 1"),
        ("optimizer.b2", 1.0, "found 1.0, expected from 0 to below 1"),
        ("optimizer.eps", 0.0, "found 0.0, expected more than 0"),
        ("objective.mask_prob", -0.1, "found -0.1, expected from 0 to 1"),
        ("objective.random_prob", 0.3, "found 0.3 with mask_prob 0.8, expected at most 1 tog"),
    ):
        config = configs.base()
        configs.set_key(config, key, value)
        with pytest.raises(UserError, match=f"{key}: {said}"):
            configs.check(config)
    config = configs.base()
    config.objective.mask_prob, config.objective.random_prob = 0.7, 0.3
    configs.check(config)


@pytest.mark.parametrize(
    "choices, key, value, said",
    [
        (
            (),
            "optimizer.name",
            "adam",
            r"optimizer\.name: found 'adam', expected one of adamw, lamb, lion, adafactor, muon, ",
        ),
        ((), "objective.name", "foo", r"objective\.name: found 'foo', expected one of mlm, causal"),
        ((), "model.name", "rnn", r"model\.name: found 'rnn', expected one of transformer, mob"),
        (
            (),
            "optimizer.name",
            "lbfgs",
            r"optimizer: .*optimizer\.name 'lbfgs' \(b1, b2, bias_correction, clip",
        ),
        ((), "objective.name", "causal", r"objective: .* 'causal'.*\(chunk_size, mask_prob"),
        ((), "model.name", "linear", r"model\.name: found 'linear' with objective\.name 'mlm'"),
        (("transformer", "tag"), "model.name", "linear", r"model: .*model\.name 'linear'"),
        (
            ("transformer", "tag"),
            "objective.name",
            "classify",
            r"objective: .* 'classify'.*\(crf, pool, pooler d",
        ),
        (
            ("linear", "tag", "lbfgs"),
            "objective.name",
            "classify",
            r"model: .*\(beta, char_ngrams, ",
        ),
        (("transformer", "classify"), "seed", -1, r"seed: found -1, expected at least 0"),
    ],
)
def test_a_choice_comes_with_its_keys(choices, key, value, said):
    config = configs.base(*choices)
    configs.set_key(config, key, value)
    with pytest.raises(UserError, match=rf"^config\.{said}") as caught:
        configs.check(config)
    if "differ" in str(caught.value):
        assert "choose it in the config file, which sets the keys" in str(caught.value)


def test_lbfgs_needs_the_same_loss_at_every_step():
    def config(model="transformer", objective="classify", **changes):
        config = configs.base(model, objective, "lbfgs")
        values = {"train.batch_size": 0} | {k.replace("__", "."): v for k, v in changes.items()}
        dropout = ("model.dropout", "model.attention_dropout", "objective.head_dropout")
        values = dict.fromkeys(set(dropout) & configs.flatten(config).keys(), 0.0) | values
        for key, value in values.items():
            configs.set_key(config, key, value)
        return config

    configs.check(config())
    configs.check(config("linear"))
    for changes, said in (
        ({"train__batch_size": 8}, r"train\.batch_size: found 8, expected 0: the line search"),
        ({"train__accumulate": 2}, r"train\.accumulate: found 2, expected 1"),
        ({"model__dropout": 0.1}, r"model\.dropout: found 0\.1, expected 0"),
        ({"model__attention_dropout": 0.1}, r"model\.attention_dropout: found 0\.1"),
        ({"objective__head_dropout": 0.1}, r"objective\.head_dropout: found 0\.1"),
        ({"optimizer__tolerance": 0.0}, r"optimizer\.tolerance: found 0\.0, expected more than 0"),
        ({"optimizer__memory": 0}, r"optimizer\.memory: found 0, expected at least 1"),
        ({"objective": "mlm"}, r"optimizer\.name: found 'lbfgs' with objective\.name 'mlm'"),
    ):
        with pytest.raises(UserError, match=said):
            configs.check(config(**changes))
