"""`from models import load_model`: the names of quicksviewer.zoo."""

from quicksviewer import zoo
from quicksviewer.zoo import __all__ as __all__


def __getattr__(name: str):
    return getattr(zoo, name)
