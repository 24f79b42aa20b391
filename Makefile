# make run    collect, train, evaluate and report, small; about a quarter of an hour on two cores
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
EPISODES := 200
UPDATES := 17500
SEED := 0
# Products of bf16 where the processor has tiles for them: a training of this size takes half the time.
PRECISION := $(shell grep -qs amx_bf16 /proc/cpuinfo && echo bf16 || echo fp32)
MINUTES := 6 to 19
CELLS = --steps 1 2 4 5 --candidates 1 8 --rules argmax medoid --episodes 25 --workers 2

# set in many containers: each process would compile all that it imports
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test check bench clean

.venv/installed: pyproject.toml constraints.txt setup.py $(shell find csrc -name "*.[ch]pp" -o -name "*.json")
	$(PYTHON) -m venv .venv
	@echo "Installing sorl-fast and what training needs into .venv, compiling the runtime: two to four minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_FLAGS) -e '.[$(EXTRAS)]'
	touch $@

run: .venv/installed
	@echo
	@echo "A policy for $(ENV), from nothing to a report, in four steps:"
	@echo "about $(MINUTES) minutes on two cores. Three seeds of this setting succeeded in 95% (fp32) and 97% (bf16) of"
	@echo "75 episodes with M = 4 Euler steps and one candidate (N = 1), and in 92% with M = 5."
	@echo
	@echo "1/4  Collecting $(EPISODES) episodes of cube-single-play with OGBench's oracle into $(DATA): four to seven minutes (kept for the next time)."
	$(BIN)/sorl-fast collect --env cube-single-play-v0 --episodes $(EPISODES) --seed 0 --workers 2 --out $(DATA)
	@echo
	@echo "2/4  Training a 256 x 3 network for $(UPDATES) updates into $(RUN), in $(PRECISION): two to nine minutes (goes on where it was if stopped)."
	$(BIN)/sorl-fast train --env $(ENV) --data $(DATA) --out $(RUN) --steps $(UPDATES) --seed $(SEED) --precision $(PRECISION) \
	  --hidden 256 --depth 3 --m-disc 4 --m-btt 4 --actor-lr 1e-3 --critic-lr 1e-3 --normalize-obs --ema-actor \
	  --log-every 250 --val-every 1000 --checkpoint-every 2500 --eval-every 7500 --eval-episodes 10 \
	  --eval-steps 4 5 $$(ls -d $(RUN)/checkpoints/[0-9]* > /dev/null 2>&1 && echo --resume)
	@echo
	@echo "3/4  Evaluating: Euler steps 1, 2, 4, 5; one candidate, or 8 and two rules to choose by; 25 episodes each: two minutes at most."
	$(BIN)/sorl-fast eval $(RUN) $(CELLS)
	@echo
	@echo "4/4  Writing the report, which times every way to act on this machine: less than a minute."
	@$(BIN)/sorl-fast report $(RUN)
	@echo
	@$(BIN)/sorl-fast eval $(RUN) $(CELLS) --no-progress
	@echo
	@echo "M: Euler steps of an action. N: candidates, of which a rule chooses one. The report: $(RUN)/report.html"
	@echo "What next (. .venv/bin/activate first):"
	@echo "  sorl-fast recommend $(RUN) --budget-us 500          how to act within half a millisecond on this machine"
	@echo "  sorl-fast eval $(RUN) --steps 4 5 1/2,1/4,1/4 --candidates 1 32 --rules argmax medoid --episodes 100"
	@echo "  sorl-fast train --env $(ENV) --data $(DATA) --out runs/paper    the paper's setting, for hours"

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist worksteal

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'not slow' --ends

bench: .venv/installed
	$(BIN)/python -m pytest bench/suite --benchmark-max-time=0.5 --benchmark-autosave $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info sorl_fast/_native*.so sorl_fast/_bench*.so
