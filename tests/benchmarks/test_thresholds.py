"""benchmarks/thresholds.py: how rules of a wanted precision are compared."""

import importlib

import numpy as np


def test_a_lower_bound_keeps_the_precision_of_more_labels(pytestconfig, monkeypatch, capsys):
    monkeypatch.syspath_prepend(pytestconfig.rootpath / "benchmarks")
    program = importlib.import_module("thresholds")
    draw = np.random.default_rng(0)
    p = draw.random((600, 8)) ** 4
    program.compare_rules(p, draw.random(p.shape) < p, 0.7)
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()
    ]
    rows = {name: cells for name, *cells in lines[2:]}
    point, bound = rows["point estimate, 5 texts"], rows["lower bound, confidence 0.95"]
    assert point[0] == "8.0 of 8" and float(bound[0].split()[0]) < 8
    assert int(point[1][:-1]) < 60 < int(bound[1][:-1])
    assert float(point[2]) < 0.7 < float(bound[2]) and float(bound[3]) < float(point[3])
