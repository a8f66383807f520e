"""What a leader of the housekeeping tells before it has looked."""

import math

from pipeline import metrics
from pipeline.gauges import Gauges
from pipeline.settings import Settings


def test_the_books_are_no_number_until_they_were_looked_at_and_keep_nothing_else_back(tmp_path):
    """Under load a partition may not stand still for long; whether Redis is full must be told then, above all."""
    gauges = Gauges(Settings(data_dir=str(tmp_path)), None, None)
    assert math.isnan(metrics.BOOKS_IMBALANCE._value.get()) and not gauges.known
    gauges._seen = {"redis", "lake"}
    assert gauges.known
    metrics.BOOKS_IMBALANCE.set(0)
    gauges.forget()
    assert math.isnan(metrics.BOOKS_IMBALANCE._value.get()) and not gauges.known
