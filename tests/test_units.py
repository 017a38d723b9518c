"""Numbers as people write them."""

from __future__ import annotations

import pytest

from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.units import seconds_of, tokens_of


def test_durations_and_tokens() -> None:
    assert [seconds_of(text) for text in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]
    assert [tokens_of(text) for text in ("4096", "4k", "32K")] == [4096, 4096, 32768]


@pytest.mark.parametrize("text", ["", "k", "0", "-1", "1.5k", "4m", "99999k", "1e3", "٣"])
def test_what_is_no_number_of_tokens_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no number of tokens"):
        tokens_of(text)
