"""Ids of rows, of which each file has every one once: 64 bits of each are held, some 100 MB for a million."""

from quicksviewer.utils.name_table import hash_of


class Uids:
    """Tells which row was the first with an id."""

    def __init__(self):
        self._first: dict[int, int] = {}

    def first(self, source: str, uid: str, row: int) -> int:
        """The first row of a source that was told with this id; it may be this one."""
        return self._first.setdefault(hash_of(f"{source}\0{uid}".encode(errors="surrogatepass")), row)
