"""Surgery on hand-made arrays: each result is spelt out in numpy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pretrain import surgery, trees
from pretrain.errors import UserError
from pretrain.surgery import FRESH, parse, transplant
from tests import tiny

KERNEL = ("layers", "embed", "heads", "kv")
NAMES = {
    "trunk/word/embedding": ("vocab", "embed"),
    "trunk/position/embedding": ("positions", "embed"),
    "trunk/type/embedding": ("types", "embed"),
    "trunk/layers/attention/query/kernel": KERNEL,
    "trunk/layers/attention/query/bias": ("layers", "heads", "kv"),
    "trunk/layers/attention/key/kernel": KERNEL,
    "trunk/layers/attention/out/kernel": ("layers", "heads", "kv", "embed"),
    "trunk/layers/attention_norm/scale": ("layers", "norm"),
    "trunk/layers/ffn/in/kernel": ("layers", "embed", "mlp"),
    "trunk/first_layer/ffn/in/kernel": ("embed", "mlp"),
    "trunk/final_norm/scale": ("norm",),
    "lm_head/bias": ("vocab",),
    "lm_head/kernel": ("embed", "vocab"),
    "classification_head/bias": ("classes",),
}


def arrays(seed: int = 0, **shapes: tuple[int, ...]) -> dict:
    """Random arrays by path, whose keys have ``__`` for the slash."""
    rng = np.random.default_rng(seed)
    tree: dict = {}
    for key, shape in shapes.items():
        *parents, leaf = key.split("__")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = rng.normal(size=shape).astype(np.float32)
    return tree


def operate(target, source, **keys):
    """New arrays by path, in host memory, and the report."""
    params = jax.tree.map(jnp.asarray, target)
    got, report = transplant(params, source, parse(**keys), origin="runs/a", names=NAMES)
    assert jax.tree.structure(got) == jax.tree.structure(target)
    check_complete(report, target, source)
    return trees.flatten(jax.device_get(got)), report


def check_complete(report, target, source):
    """Every array of both models is named once, in the report and in what it writes."""
    loaded = [entry.path for entry in report.loaded]
    assert sorted(loaded + report.fresh) == sorted(trees.flatten(target))
    used = {path for entry in report.loaded for path in entry.sources}
    assert sorted([*used, *report.left, *report.skipped]) == sorted(trees.flatten(source))
    lines = str(report).splitlines()
    for kind in ("loaded", "fresh", "left", "skipped"):
        paths = loaded if kind == "loaded" else getattr(report, kind)
        told = [re.split(r"[ :]+", line)[1] for line in lines if line.startswith(f"{kind} ")]
        assert told == paths
    assert report.size == sum(x.size for x in jax.tree.leaves(target))


SMALL = dict(
    trunk__word__embedding=(10, 4),
    trunk__layers__ffn__in__kernel=(6, 4, 8),
    trunk__layers__attention_norm__scale=(6, 4),
    lm_head__bias=(10,),
)


def test_what_fits_is_taken_and_the_rest_is_told():
    source = arrays(1, **SMALL)
    shapes = {k: v for k, v in SMALL.items() if k != "lm_head__bias"}
    target = arrays(2, **shapes, classification_head__bias=(3,))
    got, report = operate(target, source)
    for path in ("trunk/word/embedding", "trunk/layers/ffn/in/kernel"):
        np.testing.assert_array_equal(got[path], trees.flatten(source)[path])
    np.testing.assert_array_equal(
        got["classification_head/bias"], target["classification_head"]["bias"]
    )
    assert report.summary() == (
        "from runs/a:\n"
        "  loaded 3 arrays, 256 of 259 parameters\n"
        "  fresh 1: classification_head/bias\n"
        "  left 1: lm_head/bias"
    )


def test_long_lists_are_cut_only_in_the_summary():
    source = arrays(1, trunk__word__embedding=(10, 4), **{f"a__b{i}": (1,) for i in range(9)})
    _, report = operate(arrays(trunk__word__embedding=(10, 4)), source)
    assert "left 9: a/b0, a/b1, a/b2 and 6 more" in report.summary()
    assert "left    a/b8\n" in str(report)


def test_the_layout_is_kept():
    """Of arrays that are taken as they are and of those made in host memory."""
    layout = NamedSharding(tiny.mesh(fsdp=2), PartitionSpec("fsdp"))
    target = arrays(trunk__word__embedding=(12, 4), trunk__final_norm__scale=(4,))
    params = jax.tree.map(lambda x: jax.device_put(x, layout), target)
    source = arrays(1, trunk__word__embedding=(10, 4), trunk__final_norm__scale=(4,))
    got, _ = transplant(params, source, parse(resize="vocab"), origin="x", names=NAMES)
    assert {x.sharding for x in jax.tree.leaves(got)} == {layout}
    np.testing.assert_array_equal(
        got["trunk"]["word"]["embedding"][:10], source["trunk"]["word"]["embedding"]
    )


def test_layers_of_a_teacher():
    """DistilBERT's initialisation (Sanh et al. 2019): every second layer."""
    source = arrays(1, **SMALL)
    shapes = SMALL | {
        "trunk__layers__ffn__in__kernel": (3, 4, 8),
        "trunk__layers__attention_norm__scale": (3, 4),
    }
    got, report = operate(arrays(2, **shapes), source, layers="0,2,5")
    layers = source["trunk"]["layers"]
    np.testing.assert_array_equal(
        got["trunk/layers/ffn/in/kernel"], layers["ffn"]["in"]["kernel"][[0, 2, 5]]
    )
    np.testing.assert_array_equal(
        got["trunk/layers/attention_norm/scale"], layers["attention_norm"]["scale"][[0, 2, 5]]
    )
    np.testing.assert_array_equal(got["lm_head/bias"], source["lm_head"]["bias"])
    assert "layers of trunk: 0, 2, 5 of 6; left: 1, 3, 4" in report.summary()


def test_layers_of_every_stack():
    sides = ("encoder", "decoder")
    shapes = {f"trunk__{side}__layers__ffn__in__kernel": (4, 2, 3) for side in sides}
    source = arrays(1, **shapes)
    got, _ = operate(arrays(2, **dict.fromkeys(shapes, (2, 2, 3))), source, layers="3,0")
    for side in sides:
        want = source["trunk"][side]["layers"]["ffn"]["in"]["kernel"][::-3]
        np.testing.assert_array_equal(got[f"trunk/{side}/layers/ffn/in/kernel"], want)


MODERN = dict(
    trunk__first_layer__ffn__in__kernel=(4, 8),
    trunk__layers__ffn__in__kernel=(5, 4, 8),
    trunk__layers__attention_norm__scale=(5, 4),
)


def all_layers(tree):
    """The kernels of ModernBERT-like layers, 0 first."""
    trunk = tree["trunk"]
    first = trunk["first_layer"]["ffn"]["in"]["kernel"][None]
    return np.concatenate([first, trunk["layers"]["ffn"]["in"]["kernel"]])


@pytest.mark.parametrize("layers", ["0,2,5", "5,4,3", "0,0,1", "1,0,2"])
def test_a_first_layer_that_stands_by_itself_is_layer_0(layers):
    """ModernBERT's has no norm before its attention: who takes its place drops his, and where it
    goes elsewhere that norm stays as initialised.
    """
    source = arrays(1, **MODERN)
    target = arrays(
        2,
        trunk__first_layer__ffn__in__kernel=(4, 8),
        trunk__layers__ffn__in__kernel=(2, 4, 8),
        trunk__layers__attention_norm__scale=(2, 4),
    )
    got, report = operate(target, source, layers=layers)
    numbers = [int(i) for i in layers.split(",")]
    kernels = np.concatenate(
        [got["trunk/first_layer/ffn/in/kernel"][None], got["trunk/layers/ffn/in/kernel"]]
    )
    np.testing.assert_array_equal(kernels, all_layers(source)[numbers])
    for row, number in enumerate(numbers[1:]):
        scale = source["trunk"]["layers"]["attention_norm"]["scale"][number - 1]
        if number == 0:
            scale = target["trunk"]["layers"]["attention_norm"]["scale"][row]
        np.testing.assert_array_equal(got["trunk/layers/attention_norm/scale"][row], scale)
    if 0 in numbers[1:]:
        row = numbers[1:].index(0)
        told = f"partly fresh 1: trunk/layers/attention_norm/scale layer {row + 1}"
        assert told in report.summary()
    if 0 not in numbers:
        assert report.left == ["trunk/first_layer/ffn/in/kernel"]


def test_a_first_layer_and_a_stack_of_all_layers_go_into_each_other():
    modern = arrays(1, **MODERN)
    plain = arrays(
        2,
        trunk__layers__ffn__in__kernel=(6, 4, 8),
        trunk__layers__attention_norm__scale=(6, 4),
    )
    got, _ = operate(plain, modern)
    np.testing.assert_array_equal(got["trunk/layers/ffn/in/kernel"], all_layers(modern))
    scale = got["trunk/layers/attention_norm/scale"]
    np.testing.assert_array_equal(scale[1:], modern["trunk"]["layers"]["attention_norm"]["scale"])
    np.testing.assert_array_equal(scale[0], plain["trunk"]["layers"]["attention_norm"]["scale"][0])
    got, _ = operate(modern, plain)
    kernel = plain["trunk"]["layers"]["ffn"]["in"]["kernel"]
    np.testing.assert_array_equal(got["trunk/first_layer/ffn/in/kernel"], kernel[0])
    np.testing.assert_array_equal(got["trunk/layers/ffn/in/kernel"], kernel[1:])
    np.testing.assert_array_equal(
        got["trunk/layers/attention_norm/scale"],
        plain["trunk"]["layers"]["attention_norm"]["scale"][1:],
    )


def test_tiling_keeps_the_small_matrix_in_the_middle_and_wraps():
    source = arrays(1, trunk__layers__ffn__in__kernel=(2, 4, 6), trunk__final_norm__scale=(4,))
    target = arrays(2, trunk__layers__ffn__in__kernel=(2, 8, 11), trunk__final_norm__scale=(8,))
    got, report = operate(target, source, tile=True)
    small = source["trunk"]["layers"]["ffn"]["in"]["kernel"]
    large = got["trunk/layers/ffn/in/kernel"]
    np.testing.assert_array_equal(large[:, 2:6, 2:8], small)
    np.testing.assert_array_equal(large[:, 2:6, :2], small[:, :, -2:])  # left: its right edge
    np.testing.assert_array_equal(large[:, 2:6, 8:], small[:, :, :3])  # right: its left edge
    np.testing.assert_array_equal(large[:, :2], large[:, 4:6])
    np.testing.assert_array_equal(large[:, 6:], large[:, 2:4])
    scale = source["trunk"]["final_norm"]["scale"]
    np.testing.assert_array_equal(
        got["trunk/final_norm/scale"], np.concatenate([scale[2:], scale, scale[:2]])
    )
    assert "tiled 2: trunk/final_norm/scale from (4,), trunk/layers/ffn" in report.summary()


def test_tiling_over_several_widths_wraps_all_the_way():
    np.testing.assert_array_equal(surgery.tiled(11, 3), [2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(surgery.tiled(3, 3), [0, 1, 2])


def test_tiling_keeps_heads_whole():
    """From 2 to 5 heads, an odd difference; ModernBERT's flat tiling would cut them in halves."""
    source = arrays(
        1,
        trunk__layers__attention__query__kernel=(1, 4, 2, 3),
        trunk__layers__attention__query__bias=(1, 2, 3),
        trunk__layers__attention__out__kernel=(1, 2, 3, 4),
    )
    target = arrays(
        2,
        trunk__layers__attention__query__kernel=(1, 6, 5, 3),
        trunk__layers__attention__query__bias=(1, 5, 3),
        trunk__layers__attention__out__kernel=(1, 5, 3, 6),
    )
    got, _ = operate(target, source, tile=True)
    bias = source["trunk"]["layers"]["attention"]["query"]["bias"]
    heads = [1, 0, 1, 0, 1]  # one to the left of the middle, two to the right
    np.testing.assert_array_equal(got["trunk/layers/attention/query/bias"], bias[:, heads])
    out = source["trunk"]["layers"]["attention"]["out"]["kernel"]
    large = got["trunk/layers/attention/out/kernel"]
    np.testing.assert_array_equal(large[..., 1:5], out[:, heads])
    np.testing.assert_array_equal(large[..., [0, 5]], out[:, heads][..., [3, 0]])


def test_tiling_keeps_queries_with_the_head_of_keys_that_they_share():
    """4 heads of queries on 2 of keys become 6 on 3, then 8 on 2."""
    source = arrays(
        1,
        trunk__layers__attention__query__kernel=(1, 4, 4, 3),
        trunk__layers__attention__key__kernel=(1, 4, 2, 3),
    )
    small = {k: v["kernel"] for k, v in source["trunk"]["layers"]["attention"].items()}
    for queries, keys in ((6, 3), (8, 2)):
        target = arrays(
            2,
            trunk__layers__attention__query__kernel=(1, 4, queries, 3),
            trunk__layers__attention__key__kernel=(1, 4, keys, 3),
        )
        got, _ = operate(target, source, tile=True)
        query, key = (got[f"trunk/layers/attention/{k}/kernel"] for k in ("query", "key"))
        for head in range(queries):
            shared = head // (queries // keys)
            partner = next(
                k for k in range(2) if np.array_equal(key[:, :, shared], small["key"][:, :, k])
            )
            there = next(
                q for q in range(4) if np.array_equal(query[:, :, head], small["query"][:, :, q])
            )
            assert there // 2 == partner


def test_tiling_repeats_layers_in_proportion():
    """``round(i * 22 / 28)`` is how ModernBERT-large's 28 layers come from base's 22."""
    want = [0, 1, 2, 2, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10]
    want += [11, 12, 13, 13, 14, 15, 16, 16, 17, 18, 19, 20, 20, 21]
    assert surgery.stretched(28, 22) == want
    assert surgery.stretched(5, 2) == [0, 0, 1, 1, 1]  # not 2, which is not there
    source = arrays(1, trunk__layers__ffn__in__kernel=(2, 4, 6))
    target = arrays(2, trunk__layers__ffn__in__kernel=(3, 4, 8))
    got, _ = operate(target, source, tile=True)
    small = source["trunk"]["layers"]["ffn"]["in"]["kernel"]
    np.testing.assert_array_equal(got["trunk/layers/ffn/in/kernel"][..., 1:7], small[[0, 1, 1]])
    got, _ = operate(target, source, tile=True, layers="1,0")
    np.testing.assert_array_equal(got["trunk/layers/ffn/in/kernel"][..., 1:7], small[[1, 0, 0]])


@pytest.mark.parametrize("rows", [7, 13])
def test_resized_tables_keep_common_rows(rows):
    shapes = dict(
        trunk__word__embedding=(10, 4),
        trunk__position__embedding=(10, 4),
        lm_head__bias=(10,),
        lm_head__kernel=(4, 10),
    )
    source = arrays(1, **shapes)
    other = dict(
        trunk__word__embedding=(rows, 4),
        trunk__position__embedding=(rows, 4),
        lm_head__bias=(rows,),
        lm_head__kernel=(4, rows),
    )
    target = arrays(2, **other)
    got, report = operate(target, source, resize="vocab, positions")
    old, new, both = trees.flatten(source), trees.flatten(target), min(rows, 10)
    for path in ("trunk/word/embedding", "trunk/position/embedding", "lm_head/bias"):
        np.testing.assert_array_equal(got[path][:both], old[path][:both])
        np.testing.assert_array_equal(got[path][both:], new[path][both:])
    np.testing.assert_array_equal(got["lm_head/kernel"][:, :both], old["lm_head/kernel"][:, :both])
    np.testing.assert_array_equal(got["lm_head/kernel"][:, both:], new["lm_head/kernel"][:, both:])
    told = f"trunk/word/embedding from (10, 4): {both} rows loaded, {rows - both} fresh"
    assert f"resized 4: lm_head/bias from (10,): {both} rows" in report.summary()
    assert told.replace(" from", ": resized from") in str(report)
    assert f"{both * (4 + 4 + 1 + 4)} of {rows * 13} parameters" in report.summary()


def test_rows_can_come_from_anywhere():
    """As with another tokenizer: pieces 1 and 2 changed places, 3 is new."""
    target = arrays(2, trunk__word__embedding=(5, 4))
    source = arrays(1, trunk__word__embedding=(5, 4))
    got, _ = transplant(
        jax.tree.map(jnp.asarray, target),
        source,
        parse(resize="vocab"),
        origin="x",
        names=NAMES,
        rows={"vocab": np.array([0, 2, 1, FRESH])},
    )
    old, new = (x["trunk"]["word"]["embedding"] for x in (source, target))
    want = np.stack([old[0], old[2], old[1], new[3], new[4]])
    np.testing.assert_array_equal(got["trunk"]["word"]["embedding"], want)


def test_resized_and_tiled_at_once():
    target = arrays(2, trunk__word__embedding=(7, 6))
    source = arrays(1, trunk__word__embedding=(5, 4))
    got, _ = operate(target, source, resize="vocab", tile=True)
    old, new = (x["trunk"]["word"]["embedding"] for x in (source, target))
    np.testing.assert_array_equal(got["trunk/word/embedding"][:5], old[:, [3, 0, 1, 2, 3, 0]])
    np.testing.assert_array_equal(got["trunk/word/embedding"][5:], new[5:])


def test_the_first_rule_that_matches_decides():
    source = arrays(1, a__x=(2,), a__y=(2,), a__z=(2,), b__x=(2,))
    target = arrays(2, c__x=(2,), c__y=(2,), c__z=(2,), b__x=(2,))
    rules = "a/z -> skip; a/(.*) -> c/\\1;  b/.* -> fresh\n"
    got, report = operate(target, source, rules=rules)
    np.testing.assert_array_equal(got["c/x"], source["a"]["x"])
    np.testing.assert_array_equal(got["c/y"], source["a"]["y"])
    np.testing.assert_array_equal(got["c/z"], target["c"]["z"])
    np.testing.assert_array_equal(got["b/x"], target["b"]["x"])
    assert (report.skipped, report.left) == (["a/z"], ["b/x"])
    assert "renamed 2: c/x from a/x, c/y from a/y" in report.summary()
    # What an earlier rule brings, a later "fresh" leaves.
    got, report = operate(target, source, rules=r"a/(.*) -> c/\1; .* -> fresh")
    assert report.fresh == ["b/x"]
    np.testing.assert_array_equal(got["c/z"], source["a"]["z"])
    got, report = operate(target, source, rules=r"c/z -> fresh; (?P<n>a)/(.*) -> c/\g<2>")
    assert report.fresh == ["c/z"] and report.left == ["a/z"]


def test_rules_come_before_layers():
    source = arrays(1, trunk__layers__ffn__in__kernel=(4, 2, 3))
    target = arrays(2, trunk__encoder__layers__ffn__in__kernel=(2, 2, 3))
    rules = r"trunk/layers/(.*) -> trunk/encoder/layers/\1"
    got, _ = operate(target, source, rules=rules, layers="1,3")
    np.testing.assert_array_equal(
        got["trunk/encoder/layers/ffn/in/kernel"],
        source["trunk"]["layers"]["ffn"]["in"]["kernel"][1::2],
    )


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"rules": "a b"}, "surgery.rules: found 'a b', expected 'regex -> new path', 'regex -> s"),
        ({"rules": "a ->; b -> c"}, "surgery.rules: found 'a ->', expected"),
        ({"rules": "a -> b -> c"}, "surgery.rules: found 'a -> b -> c', expected"),
        ({"rules": "a( -> b"}, r"surgery.rules: 'a\( -> b': missing \), unterminated"),
        ({"layers": "0,two"}, "surgery.layers: found '0,two', expected numbers such as '0,2,4,"),
        ({"layers": "0,-1"}, "surgery.layers: found '0,-1', expected numbers"),
        ({"resize": "vocab,types"}, "surgery.resize: found 'types', expected vocab, positions or"),
    ],
)
def test_malformed_keys(keys, said):
    with pytest.raises(UserError, match=said) as caught:
        parse(**keys)
    assert "\n" not in str(caught.value)


NONE = "trunk__layers__ffn__in__kernel"


@pytest.mark.parametrize(
    ("target", "source", "keys", "said"),
    [
        ({"a": (2,)}, {"a": (3,)}, {}, r"init_from: a is \(3,\) in runs/a, expected \(2,\); config"
            r"\.surgery\.rules='a -> fresh' would leave it out"),
        ({"a": (3, 1)}, {"a": (3,)}, {"tile": True}, r"a is \(3,\) in runs/a, expected \(3, 1\)"),
        ({"a": (3,)}, {"a": (2,)}, {}, "config.surgery.tile would allow it"),
        ({"a": (2,)}, {"a": (3,)}, {"tile": True}, "rules='a -> fresh' would leave it out"),
        ({"b": (3,)}, {"a": (2,)}, {}, "runs/a has no array in common with this model"),
        ({"trunk__word__embedding": (3, 1)}, {"trunk__word__embedding": (2, 1)}, {"tile": True},
            r"embedding is \(2, 1\) in runs/a, expected \(3, 1\); config.surgery.resize=vocab"),
        ({"trunk__position__embedding": (3, 1)}, {"trunk__position__embedding": (2, 1)},
            {"resize": "vocab"}, "config.surgery.resize=positions would allow it"),
        ({"trunk__type__embedding": (3, 1)}, {"trunk__type__embedding": (2, 1)}, {"tile": True},
            "rules='trunk/type/embedding -> fresh' would leave it out"),
        ({"classification_head__bias": (3,)}, {"classification_head__bias": (2,)}, {"tile": True},
            "rules='classification_head/bias -> fresh' would leave it out"),
        ({NONE: (3, 1, 1)}, {NONE: (2, 1, 1)}, {}, "trunk/layers has 2 layers in runs/a, expected "
            "3; config.surgery.layers would choose among them, config.surgery.tile would repeat"),
        ({NONE: (1, 1, 1)}, {NONE: (2, 1, 1)}, {"tile": True},
            "2 layers in runs/a, expected 1; config.surgery.layers would choose among them$"),
        ({NONE: (1, 1, 1)}, {NONE: (2, 1, 1)}, {"layers": "2"}, "surgery.layers: found 2, expected "
            "0 to 1: trunk/layers of runs/a has 2 layers"),
        ({NONE: (1, 1, 1)}, {NONE: (2, 1, 1)}, {"layers": "0,1"}, "surgery.layers: found 2 layers,"
            " expected 1, as many as trunk/layers has in this model"),
        ({"a": (1,)}, {"a": (1,)}, {"layers": "0"}, "surgery.layers: runs/a has layers in none, "
            "this model in none; expected one path"),
        ({"a": (1,), f"b__{NONE}": (1, 1, 1)}, {"a": (1,), NONE: (1, 1, 1)}, {"layers": "0"},
            "runs/a has layers in trunk, this model in b/trunk; expected one path"),
        ({"a": (1,)}, {"a": (1,)}, {"rules": "c -> skip"}, "surgery.rules: 'c -> skip' matches no "
            "array of runs/a, or none that the rules before it leave; found a$"),
        ({"a": (1,)}, {"a": (1,)}, {"rules": "a -> skip; a -> b"}, "'a -> b' matches no array"),
        ({"a": (1,)}, {"a": (1,)}, {"rules": "b -> fresh"}, "'b -> fresh' matches no array of th"),
        ({"a": (1,)}, {"a": (1,)}, {"rules": "a -> b"}, "surgery.rules: 'a -> b' makes b, which "
            "this model lacks; expected some of a$"),
        ({"a": (1,)}, {"a": (1,)}, {"rules": r"a -> \2"}, r"surgery.rules: 'a -> \\2': invalid"),
        ({"a": (1,)}, {"a": (1,), "b": (1,)}, {"rules": "b -> a"},
            "surgery.rules: 'b -> a' puts both a and b of runs/a at a; expected one of them"),
    ],
)  # fmt: skip
def test_nothing_is_done_in_silence(target, source, keys, said):
    with pytest.raises(UserError, match=said) as caught:
        operate(arrays(**target), arrays(**source), **keys)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("config.")


def test_a_vocabulary_in_parts_needs_its_tokenizer():
    target = jax.tree.map(jnp.asarray, arrays(trunk__word__embedding=(2, 1)))
    rows = {"vocab": np.arange(3)}
    with pytest.raises(UserError, match=r"surgery\.resize: trunk/word/embedding holds 2 of 3 rows"):
        transplant(target, target, parse(resize="vocab"), origin="x", names=NAMES, rows=rows)


def test_dimensions_are_known_by_the_names_that_models_give_them():
    objective = tiny.mlm(tied=False)
    boxed = jax.eval_shape(objective.init, jax.random.key(0))["params"]
    names = trees.dimension_names(boxed)
    for path, want in NAMES.items():
        if path in names:
            assert names[path] == want
    assert {"trunk/word/embedding", "lm_head/kernel"} < names.keys()
