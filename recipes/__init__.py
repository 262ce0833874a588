"""One module per command; Hydra configs beside them."""

import os

# Before torch loads OpenMP: waiting threads should sleep soon instead of spinning. With another busy process on
# the machine, spinning made a training step of two threads eight times slower here.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
