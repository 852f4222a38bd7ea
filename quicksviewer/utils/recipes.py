"""Where recipes lie: one YAML file each, found by name."""

from pathlib import Path

from quicksviewer.utils.registry import lookup

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "recipes"


def recipe_path(name: str) -> Path:
    """The file of a recipe: a path, or a name in configs/recipes/. ValueError where there is none."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"there is no recipe file {name}")
        return path
    return lookup({path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}, name, "recipe")
