import signal

import pytest

from pretrain.errors import Interrupt


def test_an_interrupt_that_a_destructor_lost_is_remembered(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Interrupt, "came", False)
    Interrupt.listen()
    try:
        Interrupt.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            Interrupt.check()
    finally:
        signal.signal(signal.SIGINT, before)
