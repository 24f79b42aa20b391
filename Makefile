# make run    collect, train, evaluate and report, small; about ten minutes on two cores
# make test   every test, on all cores
# make check  format, lint, types and the fast tests, on all cores: the everyday loop
# make bench  the benchmarks of bench/suite, a few minutes; saved, for a comparison of commits (bench/README.md)
# All make .venv and install what they need into it.

PYTHON ?= python3
BIN := .venv/bin
DATA := datasets
RUN := runs/demo
EXTRAS := train,tensorboard,dev
ENV := cube-single-play-singletask-task2-v0

.PHONY: run test check bench clean

.venv/installed: pyproject.toml constraints.txt setup.py $(shell find csrc -name "*.[ch]pp" -o -name "*.json")
	$(PYTHON) -m venv .venv
	@echo "Installing sorl-fast and what training needs into .venv, compiling the runtime: two to four minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

run: .venv/installed
	@echo
	@echo "1/4  Collecting 100 episodes of cube-single-play with OGBench's oracle into $(DATA): about two minutes (kept for the next time)."
	$(BIN)/sorl-fast collect --env cube-single-play-v0 --episodes 100 --seed 0 --workers 2 --out $(DATA)
	@echo
	@echo "2/4  Training a 256 x 3 network for 20,000 updates into $(RUN): about 6 minutes (goes on where it was if stopped)."
	$(BIN)/sorl-fast train --env $(ENV) --data $(DATA) --out $(RUN) --steps 20000 --seed 0 \
	  --hidden 256 --depth 3 --actor-lr 3e-4 --critic-lr 3e-4 --log-every 250 --val-every 1000 \
	  --checkpoint-every 2500 --eval-every 5000 --eval-episodes 10 --eval-steps 1 4 $$(ls -d $(RUN)/checkpoints/[0-9]* > /dev/null 2>&1 && echo --resume)
	@echo
	@echo "3/4  Evaluating: Euler steps 1, 2, 4, 8 with 1 and 4 candidates, 25 episodes each: about a minute."
	$(BIN)/sorl-fast eval $(RUN) --steps 1 2 4 8 --candidates 1 4 --episodes 25 --workers 2
	@echo
	@echo "4/4  Writing the report: some seconds."
	@$(BIN)/sorl-fast report $(RUN)
	@echo "A short run with three times the paper's learning rate: README.md has a longer one, and what the paper reports."

test: .venv/installed
	$(BIN)/python -m pytest -n auto

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto -m 'not slow'

bench: .venv/installed
	$(BIN)/python -m pytest bench/suite --benchmark-max-time=0.5 --benchmark-autosave $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info sorl_fast/_native*.so sorl_fast/_bench*.so
