"""Which episodes lend their actions to a generator's training."""

import numpy as np
import pytest

from recipes.train_generator import labelled_episodes
from toolkit.data.clips import ClipStore
from toolkit.errors import UserError


def test_a_share_of_every_instruction_is_labelled(store: ClipStore) -> None:
    assert labelled_episodes(store, 1.0) is None
    labelled = labelled_episodes(store, 0.34)
    assert labelled is not None
    assert np.bincount(store.episode_tasks[labelled]).tolist() == [1, 1]  # of three each
    assert labelled.tolist() == [True, True, False, False, False, False]
    rows = store.rows_of(np.flatnonzero(labelled))
    assert rows.tolist() == [*range(17), *range(17, 35)]
    for fraction in (0.0, 1.5):
        with pytest.raises(UserError, match="labelled_fraction"):
            labelled_episodes(store, fraction)
