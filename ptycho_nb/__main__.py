"""`python -m ptycho_nb` is `ptycho-nb`."""
from .cli import main

raise SystemExit(main())
