"""Names that Keras gives to layers whose author gave none."""

from collections import Counter


class AutomaticNames:
    """Counts as a fresh Keras session does: activation, activation_1, activation_2, ..."""

    def __init__(self) -> None:
        self._used: Counter[str] = Counter()

    def __call__(self, kind: str) -> str:
        number = self._used[kind]
        self._used[kind] += 1
        return f"{kind}_{number}" if number else kind
