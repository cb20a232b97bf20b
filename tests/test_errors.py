import pytest

from pretrain.errors import is_interrupt


@pytest.mark.parametrize("raised, expected", [(KeyboardInterrupt, True), (OSError, False)])
def test_an_interrupt_is_known_behind_the_error_of_a_clean_up(raised, expected):
    try:
        try:
            raise raised
        finally:
            raise ValueError("a file that is still open cannot be closed")
    except ValueError as error:
        assert is_interrupt(error) is expected
    assert is_interrupt(KeyboardInterrupt())
