"""The quality of a bundle on labelled data of any readable form."""

from __future__ import annotations

import tempfile
