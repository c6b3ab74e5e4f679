"""benchmarks/ablation.py: every variant changes the recipe."""

import importlib

from distill.recipe.load import load_recipe


def test_every_variant_is_a_valid_recipe_that_differs_from_the_base(pytestconfig, monkeypatch):
    monkeypatch.syspath_prepend(pytestconfig.rootpath / "benchmarks")
    variants = importlib.import_module("ablation").VARIANTS
    recipe = pytestconfig.rootpath / "recipes" / "clinc150.yaml"
    digests = [load_recipe(recipe, overrides=settings).digest() for settings in [[], *variants.values()]]
    assert len(set(digests)) == len(digests)
