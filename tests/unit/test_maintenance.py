"""When the housekeeping does what, and again where it failed."""

import shutil

import pytest

from pipeline import metrics
from pipeline.maintenance import CLEAN_EVERY, Maintenance
from pipeline.settings import Settings, semantics_of
from pipeline.stores.lake import Lake


@pytest.fixture
def leader(tmp_path):
    settings = Settings(data_dir=str(tmp_path), redis_url="redis://127.0.0.1:1")  # asked for nothing here
    Lake(settings.lake).create(semantics_of(settings), 1)
    leading = Maintenance(settings)
    leading._token = 1
    leading.health.at_rest()
    return leading


def vacuums() -> float:
    """Tables that were vacuumed, or tried, so far."""
    return metrics.HOUSEKEEPING_SECONDS.labels("vacuum")._sum.get()


def test_it_cleans_each_tenth_turn_and_in_the_next_turn_what_failed(leader, tmp_path):
    """A minute's failure leaves neither old days nor a role that is not ready for ten minutes."""

    def turn() -> bool:
        before = vacuums()
        leading._clean()
        return vacuums() > before

    leading = leader
    assert [turn() for _ in range(CLEAN_EVERY)] == [False] * (CLEAN_EVERY - 1) + [True]
    assert [turn() for _ in range(CLEAN_EVERY - 1)] == [False] * (CLEAN_EVERY - 1)
    shutil.move(tmp_path / "lake" / "late", tmp_path / "late")
    assert turn() and "expire late" in leading.health._failing
    assert turn() and "expire late" in leading.health._failing
    shutil.move(tmp_path / "late", tmp_path / "lake" / "late")
    assert turn() and not leading.health._failing
    assert not turn()


def test_the_catalog_is_written_again_where_that_failed_and_where_it_is_gone(leader, tmp_path):
    catalog = tmp_path / "catalog.duckdb"
    catalog.mkdir()
    (catalog / "in-the-way").touch()
    leader._catalog()
    assert "write_catalog" in next(iter(leader.health._failing))
    shutil.rmtree(catalog)
    leader._catalog()
    assert catalog.is_file() and not leader.health._failing
    catalog.unlink()
    leader._catalog()
    assert catalog.is_file()
