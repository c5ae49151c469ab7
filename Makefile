# Everything sets itself up: the environment in .venv, and a RabbitMQ from Docker, apt-get or UNLOST_BROKER_URL.
VENV ?= .venv
READY := $(VENV)/.installed
BIN := $(VENV)/bin

.PHONY: demo demo-plain test chaos long chaos-core record pytest-celery comparison loss-modes matrix bench-publish bench-idempotency bench-redrive check lock image broker stores clean help

help: ## Say what there is.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@scripts/make-venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

broker:
	@scripts/provide-broker

stores:
	@scripts/provide-stores

demo: $(READY) broker ## Kill workers and the broker under load; exit 0 when nothing was lost or done twice.
	@$(BIN)/unlost demo $(ARGS)

demo-plain: $(READY) broker ## The same load and kills on plain Celery.
	@# Status 1 says that tasks were lost or repeated, which is what this target is there to show.
	@$(BIN)/unlost demo --plain $(ARGS) || test $$? -eq 1

test: $(READY) broker stores ## Run all tests; what needs a broker or a store runs on every one that can be had.
	@$(BIN)/pytest --numprocesses=4 --dist=worksteal $(ARGS)

pytest-celery: $(READY) ## Run the smoke tests on pytest-celery's components; needs Docker.
	@test -x $(VENV)-pytest-celery/bin/pytest || { scripts/make-venv $(VENV)-pytest-celery && \
	    $(VENV)-pytest-celery/bin/python -m pip install --quiet -c constraints.txt -e '.[chaos]' \
	    -r integrations/pytest-celery/requirements.txt; }
	@rabbitmq/image/build 4.3 >/dev/null
	@cd integrations/pytest-celery && $(abspath $(VENV))-pytest-celery/bin/pytest -q $(ARGS)

loss-modes: $(READY) broker ## Run the loss-mode tests and make docs/loss-modes.md of what they saw.
	@records=$$(mktemp -d) && $(BIN)/pytest -m '' -n 2 --dist=loadfile --loss-modes-record $$records tests/loss_modes $(ARGS) \
		&& $(BIN)/python -m tests.support.lossmodes.page $$records

chaos: $(READY) broker ## Run every nemesis against one node and three; half an hour.
	@$(BIN)/pytest -m long tests/system/test_scenarios.py $(ARGS)

long: $(READY) broker stores ## Run all long tests, the scenarios too; hours.
	@$(BIN)/pytest -m long $(ARGS)

bench-idempotency: $(READY) broker stores ## What the ledger costs against plain Celery; the last line is JSON.
	@PYTHONPATH=. $(BIN)/python -m benchmarks.idempotency $(ARGS)

matrix: $(READY) broker stores ## Run all tests that need a broker on every broker that can be had.
	@$(BIN)/pytest --every-broker --numprocesses=3 --dist=loadfile tests/integration tests/system $(ARGS)
	@$(MAKE) --no-print-directory chaos-core
	@UNLOST_RABBITMQ_IMAGE=unlost/rabbitmq:4.0 $(BIN)/pytest -m long -k 'core and docker' tests/system/test_scenarios.py

chaos-core: $(READY) broker ## The scenarios that every release must survive, with fixed seeds; a few minutes.
	@$(BIN)/pytest -m long -k core tests/system/test_scenarios.py $(ARGS)

record: $(READY) broker ## Append a run to the record of long runs in docs/evidence; MINUTES=5 SEED=1.
	@PYTHONPATH=examples $(BIN)/unlost chaos run --app shop.app:app --workload shop.workload:Reservations \
	    --minutes $(or $(MINUTES),5) --seed $(or $(SEED),1) --rate $(or $(RATE),400) --option batch=50 --workers 2 \
	    --nemesis KillWorkers:every=2.5 --nemesis KillBroker:every=75,lasting=1 --nemesis CloseConnections:every=60 \
	    --record docs/evidence/chaos.jsonl $(ARGS)

check: $(READY) ## Lint, types and layers only.
	@$(BIN)/pytest tests/unit/test_architecture.py $(ARGS)

comparison: $(READY) broker ## The same load and faults on Celery and Dramatiq; writes docs/comparison.md.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[comparison]'
	@PYTHONPATH=.:examples $(BIN)/python -m benchmarks.chaos --page docs/comparison.md $(ARGS)

bench-publish: $(READY) broker ## Compare ways to publish; the last line is the ratios as JSON.
	@$(BIN)/python -m benchmarks.publish $(ARGS)

bench-redrive: $(READY) broker ## Dead letters sent back per second; the last line is JSON.
	@PYTHONPATH=. $(BIN)/python -m benchmarks.redrive $(ARGS)

image: ## Build the RabbitMQ image from Debian packages; VERSION=4.3, 4.0 or 3.10.
	@rabbitmq/image/build $(VERSION)

lock: ## Write constraints.txt anew from the newest releases.
	@rm -rf $(VENV)-lock && scripts/make-venv $(VENV)-lock
	@$(VENV)-lock/bin/python -m pip install --quiet -e '.[dev]'
	@echo '# The versions that this tree is built and tested with; `make lock` writes them anew.' > constraints.txt
	@$(VENV)-lock/bin/python -m pip freeze --exclude-editable >> constraints.txt
	@rm -rf $(VENV)-lock

clean: ## Remove the environment and caches.
	@rm -rf $(VENV) $(VENV)-pytest-celery .mypy_cache .ruff_cache .pytest_cache .hypothesis
