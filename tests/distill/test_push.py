from distill.push import _anywhere


def test_a_pushed_recipe_names_no_path_of_the_machine_and_no_server():
    recipe = {
        "name": "a/b",
        "data": {"root": "/home/me", "train": [{"file": "/home/me/inputs/train.parquet"}], "text": "text"},
        "teacher": {
            "encoder": "org/name",
            "merge": {"intent": [{"model": "/runs/one/stages/fit_student"}]},
            "llm": {"base_url": "http://inside:8000/v1", "model": "m", "cache": "/home/me/cache"},
        },
    }
    assert _anywhere(recipe) == {
        "name": "a/b",
        "data": {"root": ".", "train": [{"file": "train.parquet"}], "text": "text"},
        "teacher": {
            "encoder": "org/name",
            "merge": {"intent": [{"model": "fit_student"}]},
            "llm": {"base_url": "http://localhost", "model": "m"},
        },
    }
