"""`python -m medretrieval`."""

from medretrieval.cli import main

raise SystemExit(main())
