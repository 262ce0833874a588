# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3.12
BIN := .venv/bin
# Compiled modules are kept, whatever the environment says: without them a command takes twice as long to start.
export PYTHONDONTWRITEBYTECODE =
# A world whose packages stay apart from those of the project: it brings another OpenCV.
PUSHT := gym-pusht==0.1.8 pymunk==6.11.1 pygame==2.6.1 shapely==2.2.0 scikit-image==0.26.0 lazy_loader==0.6 \
  opencv-python-headless==5.0.0.93 cffi==2.1.1
LIBRARIES := libegl1 libgl1 libgl1-mesa-dri libosmesa6

.PHONY: demo test test-all check system clean
.NOTPARALLEL:

demo: system .venv/.installed
	$(BIN)/vag demo out=outputs/demo overwrite=true

test: system .venv/.installed
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

# The same and their long versions: 40 kills of every command, 5,000 damaged files, every folder a user may have.
test-all: system .venv/.installed
	VAG_LONG=1 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder
	$(BIN)/uv pip install --quiet --target build/pusht --no-deps $(PUSHT)
	PYTHONPATH=build/pusht $(BIN)/pytest tests/toolkit/test_worlds.py -k pusht

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.12, or name it with make PYTHON=..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv -c constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[robot,dev]"
	touch $@

# The GL libraries that render without a screen.
system:
	@missing=""; for name in $(LIBRARIES); do \
	  dpkg-query -W -f='$${Status}' $$name 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$name"; done; \
	if ! command -v dpkg-query >/dev/null; then \
	  echo "not a Debian system: make sure that EGL and OSMesa are installed"; \
	elif [ -n "$$missing" ] && [ "$$(id -u)" = 0 ]; then \
	  echo "installing$$missing"; apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	elif [ -n "$$missing" ]; then \
	  echo "missing Debian packages; run: sudo apt-get install$$missing"; exit 2; fi

clean:
	rm -rf .venv build *.egg-info
