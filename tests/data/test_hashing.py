import numpy as np

from pretrain.data.hashing import mix


def test_integers_and_arrays_agree():
    values = [0, 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15]
    mixed = mix(np.array(values, np.uint64))
    assert mixed.dtype == np.uint64
    assert mixed.tolist() == [mix(value) for value in values]
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # SplitMix64's first number from seed 0
