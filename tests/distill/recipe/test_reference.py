"""docs/recipe.md is what the schema says."""

from pathlib import Path

from distill.recipe.reference import reference, settings

PAGE = Path(__file__).parents[3] / "docs" / "recipe.md"


def test_the_page_is_the_schema():
    assert PAGE.read_text("utf-8") == reference(), "run python -m distill.recipe.reference > docs/recipe.md"


def test_every_setting_is_described():
    described = [(section, name, field.description) for section, name, field in settings()]
    assert all(description for _, _, description in described), described
    assert len(described) <= 125
