#!/usr/bin/env bash
# Formatting, lint and types in one command.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff format --check .
ruff check .
pyright
