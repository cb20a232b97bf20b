"""Silver labelled examples made from docstrings: which package, and which Sphinx role.

*Silver* because nobody labelled them for this purpose: the labels are by-products of how people
write documentation. They are real enough to compare models on, and every installation has them.
"""

import re

# The classes: the dependencies with the most docstrings, each with the names that give it away:
# first those masked anywhere in a word, then those masked only as words of their own (between
# anything but letters, so inside dotted and snake-case names too).
PACKAGE_NAMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "flax": (("flax",), ("nnx", "linen", "nn")),
    "fonttools": (("fonttools", "ttlib", "ttfont"), ("ttx", "font", "fonts", "glyph", "glyphs")),
    "jax": (("jaxpr", "jaxlib", "jax", "xla"), ("jnp", "jsp", "lax", "pallas", "mosaic")),
    "matplotlib": (("matplotlib", "pyplot", "pylab"), ("mpl", "plt")),
    "numpy": (("numpy",), ("np", "npt")),
    "optax": (("optax",), ()),
    "orbax-checkpoint": (("orbax",), ("ocp",)),
    "python": (("python",), ()),
    "scipy": (("scipy",), ("sp",)),
    "tensorflow-datasets": (("tensorflow", "tfds"), ("tf",)),
}
MASK = "PKG"

MIN_PACKAGE_CHARACTERS = 80
MAX_PACKAGE_CHARACTERS = 300
MAX_ROLE_WORDS = 60

# Exceptions are classes; attributes, data and constants are all "a value with a name", and apart
# the latter two would be too few to score. `obj` says nothing about the kind: such text is left.
ROLE_TYPES = {
    "func": "FUNC",
    "class": "CLASS",
    "exc": "CLASS",
    "meth": "METHOD",
    "mod": "MODULE",
    "attr": "ATTR",
    "data": "ATTR",
    "const": "ATTR",
}

# Section titles with their rule, and directives' names, are no part of a sentence.
_FURNITURE = re.compile(r"^.*\n\s*[-=~^]{3,}\s*$|^\s*\.\. [\w:-]+::", re.MULTILINE)
# A block ends at a blank line, before a list item, and before an argument's "name (type):".
_BLOCK_BREAK = re.compile(
    r"\n\s*\n|\n\s*(?:[-*•]|\d+\.)\s+|\n(?=\s*\*{0,2}\w+(?: \([^()\n]*\))?:\s)|\n(?=\s*\w+ : )"
)
_SENTENCE_BREAK = re.compile(r"(?<=[.!?])\s+(?=[A-Z:`])")
_ROLE = re.compile(r"(?<![\w`]):((?:[a-z]+:)?[a-z]+):`([^`]+)`")
_TITLE = re.compile(r"(.*?)\s*<[^<>]+>", re.DOTALL)
_LITERAL = re.compile(r"``(.+?)``", re.DOTALL)
_NOT_PROSE = re.compile(r">>>|^\s*\.\. |[-=~^]{4,}|[+|]{2}", re.MULTILINE)
_WORD = re.compile(r"\w+(?:[.']\w+)*|[^\w\s]")


def _name_pattern() -> re.Pattern:
    """Matches one or more of the names in a row, such as "jax.numpy"."""
    anywhere, alone = (
        "|".join(
            sorted(
                (name for names in PACKAGE_NAMES.values() for name in names[kind]),
                key=len,
                reverse=True,
            )
        )
        for kind in (0, 1)
    )
    name = f"(?:{anywhere})|(?<![a-z])(?:{alone})(?![a-z])"
    # Looking at the first letter alone rules most places out, twice as fast.
    first = "".join(sorted({word[0] for word in f"{anywhere}|{alone}".split("|")}))
    return re.compile(rf"(?=[{first}])(?:{name})(?:[._](?:{name}))*", re.IGNORECASE)


_NAMES = _name_pattern()


def package_text(docstring: str) -> str | None:
    """What the classifier may read of a docstring, or None if that is too little.

    Its beginning, on one line and cut at a word to at most 300 characters, with the packages'
    names and aliases masked.
    """
    # Masking whole docstrings would be slow; twice the length is ample for names longer than PKG.
    beginning = " ".join(docstring[: 8 * MAX_PACKAGE_CHARACTERS].split())
    text = _NAMES.sub(MASK, beginning[: 2 * MAX_PACKAGE_CHARACTERS])
    if len(text) > MAX_PACKAGE_CHARACTERS:
        text = text[: MAX_PACKAGE_CHARACTERS + 1].rsplit(" ", 1)[0][:MAX_PACKAGE_CHARACTERS]
    return text if len(text) >= MIN_PACKAGE_CHARACTERS else None


def plain(docstring: str) -> str:
    """A docstring with its cross-references as a reader sees them, without role markup.

    Pretraining text must not hold the markup: it is what the labels of `role_examples` are made of.
    """
    return _ROLE.sub(lambda match: _shown(match[2]), docstring)


def role_examples(docstring: str) -> list[tuple[list[str], list[str]]]:
    """The sentences of a docstring with typed cross-references, as words and IOB2 tags.

    At most 60 words each. The markup is removed everywhere, so that only names and context tell an
    entity from other words; a sentence with a reference of unknown type is left out.
    """
    examples: list[tuple[list[str], list[str]]] = []
    if ":`" not in docstring:
        return examples
    for block in _BLOCK_BREAK.split(_FURNITURE.sub("\n\n", docstring)):
        if "`" in block and not _NOT_PROSE.search(block):
            for sentence in _SENTENCE_BREAK.split(" ".join(block.split())):
                tagged = _tag_sentence(sentence)
                if tagged and len(tagged[0]) <= MAX_ROLE_WORDS and len(set(tagged[1])) > 1:
                    examples.append(tagged)
    return examples


def _tag_sentence(sentence: str) -> tuple[list[str], list[str]] | None:
    """Words and tags of a sentence, or None where a reference's type is unknown."""
    sentence = _LITERAL.sub(lambda match: match[1].replace("`", " "), sentence)
    tokens: list[str] = []
    tags: list[str] = []
    end = 0
    for match in _ROLE.finditer(sentence):
        kind = ROLE_TYPES.get(match[1].removeprefix("py:"))
        name = _words(_shown(match[2]))
        before = sentence[end : match.start()]
        if kind is None or not name or "`" in before:
            return None
        before_words = _words(before)
        tokens += before_words + name
        tags += ["O"] * len(before_words) + [f"B-{kind}"] + [f"I-{kind}"] * (len(name) - 1)
        end = match.end()
    if "`" in sentence[end:]:
        return None  # the default role: a reference whose type nobody wrote down
    rest = _words(sentence[end:])
    return tokens + rest, tags + ["O"] * len(rest)


def _shown(target: str) -> str:
    """The text that a reader of the rendered page sees for a role's target."""
    title = _TITLE.fullmatch(target)
    if title and title[1]:
        return title[1]
    shown = target.lstrip("!")
    return shown[1:].rsplit(".", 1)[-1] if shown.startswith("~") else shown


def _words(text: str) -> list[str]:
    """Words, dotted names whole, and punctuation marks; a call's "()" would betray its type."""
    return _WORD.findall(text.replace("()", ""))
