import subprocess
import sys

import numpy as np

from distill.memory import peak_rss_bytes

CODE = "from distill.memory import peak_rss_bytes; print(peak_rss_bytes())"


def test_peak_memory_is_of_this_process_alone(pytestconfig):
    before = peak_rss_bytes()
    held = np.ones(40_000_000)  # 320 MB
    assert peak_rss_bytes() >= before + 100e6
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True
    )
    assert 1e6 < int(done.stdout) < held.nbytes
