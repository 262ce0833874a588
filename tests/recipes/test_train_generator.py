"""Which episodes lend their actions to a generator's training, and how often each is drawn."""

import numpy as np
import pytest

from recipes.train_generator import episode_shares, labelled_episodes
from toolkit.base.errors import UserError
from toolkit.data.clips import ClipStore
from toolkit.data.selection import subset


def test_a_share_of_every_instruction_is_labelled(store: ClipStore) -> None:
    assert labelled_episodes(store, 1.0) is None
    labelled = labelled_episodes(store, 0.34)
    assert labelled is not None
    assert np.bincount(store.episode_tasks[labelled]).tolist() == [1, 1]  # of three each
    assert labelled.tolist() == [True, True, False, False, False, False]
    rows = store.rows_of(np.flatnonzero(labelled))
    assert rows.tolist() == [*range(17), *range(17, 35)]


def test_each_dataset_has_its_share_however_many_episodes_it_has(store: ClipStore) -> None:
    small = subset(store, np.array([0, 1]))
    assert episode_shares([small, store], None) is None
    shares = episode_shares([small, store], [1, 3])
    assert shares is not None
    np.testing.assert_allclose(shares, [0.25 / 2] * 2 + [0.75 / 6] * 6)
    for wrong in ([1.0], [0.0, 0.0]):
        with pytest.raises(UserError, match="for each of dataset="):
            episode_shares([small, store], wrong)
