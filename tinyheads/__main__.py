"""`python -m tinyheads` is the command `distill`."""

from distill.cli.main import main

raise SystemExit(main())
