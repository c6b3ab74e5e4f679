import subprocess
import sys

import numpy as np

GROW = """
import numpy as np
from distill.memory import peak_rss_bytes

before = peak_rss_bytes()
held = np.ones(40_000_000)  # 320 MB
print(before, peak_rss_bytes())
"""


def test_peak_memory_is_of_this_process_alone(pytestconfig):
    held = np.ones(40_000_000)
    # in a new process, for the peak of this one may lie above all that this test could hold
    done = subprocess.run(
        [sys.executable, "-c", GROW], cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert 1e6 < before < held.nbytes
    assert after >= before + 300e6
