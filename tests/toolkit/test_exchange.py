"""How many real episodes a synthetic one is worth, by a learning curve."""

import numpy as np
import pytest

from toolkit.evaluation.exchange import exchange_rate
from toolkit.evaluation.systems import Trained


def test_a_synthetic_episode_is_worth_what_the_learning_curve_says() -> None:
    def table(rate: float) -> Trained:
        return Trained(np.repeat([[1.0] * round(1000 * rate) + [0.0] * round(1000 * (1 - rate))], 2, axis=0))

    curve = {5: table(0.3), 10: table(0.5), 20: table(0.7)}
    assert exchange_rate(table(0.5), curve, few=5, synthetic=100)["value"] == pytest.approx(5 / 100)
    assert exchange_rate(table(0.6), curve, 5, 100)["value"] == pytest.approx((np.sqrt(200) - 5) / 100)
    assert exchange_rate(table(0.9), curve, 5, 100)["value"] == pytest.approx(15 / 100)  # the end of the curve
    flat = {**curve, 40: table(0.7)}
    assert exchange_rate(table(0.7), flat, 5, 100)["value"] == pytest.approx(15 / 100)  # so many suffice
    beyond = exchange_rate(table(0.9), flat, 5, 100)
    assert (beyond["value"], beyond["at_end_of_curve"]) == (pytest.approx(35 / 100), 1)
    falling = {5: table(0.5), 50: table(0.4)}
    assert exchange_rate(table(0.9), falling, 5, 100)["value"] == pytest.approx(45 / 100)
    worse = exchange_rate(table(0.2), curve, 5, 100)
    assert worse["value"] == worse["low_these_checkpoints"] == 0
    assert worse["low"] is worse["high"] is None  # two trainings: nobody knows what others would be worth
    with pytest.raises(ValueError, match="expected 5 and more"):
        exchange_rate(table(0.5), {5: table(0.3)}, 5, 100)
