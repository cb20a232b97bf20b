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

    ``stops`` end a sentence where the next piece begins a word (not in "3.14"), ``ends`` (a line
    break, a full-width stop) anywhere, closing quotation marks in the same piece aside.
    """

    stops: np.ndarray
    ends: np.ndarray
    word_start: np.ndarray

    @classmethod
    def of(cls, pieces: AnyTokenizer) -> "Sentences":
        texts = [text.rstrip(_QUOTES) for text in pieces.texts]
        stops, ends = (np.array([x.endswith(y) for x in texts]) for y in (_STOPS, _ENDS))
        return cls(stops, ends, pieces.word_start)

    def ended(self, tokens: np.ndarray) -> np.ndarray:
        """Whether a sentence may end with a token: bool, of the shape of ``tokens``."""
        return self.stops[tokens] | self.ends[tokens]

    def begun(self, tokens: np.ndarray) -> np.ndarray:
        """Whether a sentence begins with a token, as the one before ends another.

        ``[..., S]`` int ``->`` bool; never with the first, nor with one of ``ends`` itself.
        """
        before, after = tokens[..., :-1], tokens[..., 1:]
        begun = np.zeros(tokens.shape, bool)
        begun[..., 1:] = self.ends[before] | (self.stops[before] & self.word_start[after])
        begun[..., 1:] &= ~self.ends[after]
        return begun
