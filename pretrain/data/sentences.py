"""Where sentences begin in a tokenizer's pieces."""

import dataclasses

import numpy as np

from pretrain.data.tokenizer import AnyTokenizer

_STOPS = (".", "!", "?")
_ENDS = ("\n", "\u3002", "\uff01", "\uff1f")  # also where no space follows
_QUOTES = "\"')]\u201d\u2019\u00bb"


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Tables of a tokenizer's pieces, bool ``[vocab_size]``.

    ``stops`` end a sentence where the next piece begins a word, ``ends`` (a line break, a
    full-width stop) anywhere, closing quotation marks in the same piece aside. WordPiece's pieces
    do not tell what white space was between them, so that there punctuation begins no sentence
    behind a stop ("?!", "...", a quotation mark, which is taken to close), nor does the second part
    of a number ("3.14").
    """

    stops: np.ndarray
    ends: np.ndarray
    word_start: np.ndarray
    closes: np.ndarray  # quotation marks alone
    punctuation: np.ndarray  # those and stops alone
    digit_first: np.ndarray
    digit_last: np.ndarray

    @classmethod
    def of(cls, pieces: AnyTokenizer) -> "Sentences":
        texts = pieces.texts
        bare = [text.rstrip(_QUOTES) for text in texts]
        tables = (
            [text.endswith(_STOPS) for text in bare],
            [text.endswith(_ENDS) for text in bare],
            pieces.word_start,
            [bool(text) and not text.strip(_QUOTES) for text in texts],
            [bool(text) and not text.strip(_QUOTES + "".join(_STOPS)) for text in texts],
            [text[:1].isdigit() for text in texts],
            [text[-1:].isdigit() for text in texts],
        )
        return cls(*map(np.asarray, tables))

    def ended(self, tokens: np.ndarray) -> np.ndarray:
        """Whether a sentence may end with a token: bool, of the shape of ``tokens``."""
        places = np.arange(tokens.shape[-1])
        last = np.maximum.accumulate(np.where(self.closes[tokens], 0, places), axis=-1)
        return self.stops[np.take_along_axis(tokens, last, -1)] | self.ends[tokens]

    def begun(self, tokens: np.ndarray) -> np.ndarray:
        """Whether a sentence begins with a token, as the one before ends another.

        ``[..., S]`` int ``->`` bool; never with the first, nor with one of ``ends`` itself.
        """
        before, after = tokens[..., :-1], tokens[..., 1:]
        free = self.word_start[after] & ~self.punctuation[after]
        free[..., 1:] &= ~(self.digit_last[before[..., :-1]] & self.digit_first[after[..., 1:]])
        begun = np.zeros(tokens.shape, bool)
        begun[..., 1:] = self.ends[before] | (self.ended(tokens)[..., :-1] & free)
        begun[..., 1:] &= ~self.ends[after]
        return begun
