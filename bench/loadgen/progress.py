"""A progress bar on a terminal, and nothing elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show a bar by tqdm where it is installed; yield what is to be called with the number done."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda _: None
        return
    with tqdm(total=total, unit=f" {unit}", disable=None, leave=False) as shown:
        yield lambda done: shown.update(done - shown.n)
