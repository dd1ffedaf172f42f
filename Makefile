# Every target is a line or two over programs in tools/ and playbooks/. Whoever knows Ansible needs none of them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# The tools of .venv come first. Ansible wants UTF-8, whatever the machine's locale is.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export LC_ALL := C.UTF-8
# What has been compiled once is kept, also where the machine's images say otherwise: some targets start Python thousands of times.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: bootstrap
bootstrap:  ## Install what the other targets need: packages, Docker engine, .venv (they do it by themselves)
	@tools/bootstrap

.PHONY: tools
tools:  ## The same without Docker engine, for targets that need no test hosts
	@tools/bootstrap --without-hosts

.PHONY: node
node:  ## Install Node.js and npm from Debian where they are missing, for targets that build or test the web client
	@tools/bootstrap --without-hosts --with-node

.PHONY: demo
demo: bootstrap  ## A server in a container on this machine: from bare Debian to a chat in your browser
	@tools/demo

.PHONY: demo-down
demo-down: bootstrap  ## Remove the demo and all it has stored
	@tools/demo down

.PHONY: dev
dev: tools  ## The application on this machine, restarted on every change: MODEL_URL=… MODEL_KEY=… for another model
	@tools/dev

.PHONY: inventory
inventory: tools  ## A new inventory with fresh, encrypted secrets: make inventory NAME=prod HOST=… DOMAIN=…
	@tools/new-inventory

.PHONY: test
test:  ## Every test: linters, unit tests, all roles and the whole site on fresh hosts (41 minutes on two cores)
	@tools/bootstrap --with-node --with-browser --with-valkey
	@tools/test

.PHONY: test-fast
test-fast: node  ## Linters, unit tests, checks of the repository itself: no hosts, no running server
	@tools/test --fast

.PHONY: lint
lint: tools  ## All linters; none may find anything
	@tools/lint

.PHONY: docs
docs: tools  ## Write the tables of variables in roles/*/README.md anew
	@tools/role-docs

.PHONY: web
web: node  ## Build the web client into the application (Node.js 20.19 or newer)
	@cd app/web && npm ci --no-progress && npm run build

.PHONY: benchmark
benchmark: bootstrap  ## Measure the running demo
	@tools/benchmark
